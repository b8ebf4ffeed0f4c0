"""Whatever the bytes of a file that the package reads: it is read, or one sentence says why not. The short form;
`python tools/fuzz.py` is the long one."""
import collections

import pytest
from fuzz import READERS, SHARES, case_rng, outcome


@pytest.mark.parametrize("name", READERS)
def test_reader(tmp_path, name):
    case = READERS[name](tmp_path)
    assert outcome(case(None)) == "read" # what is damaged below is whole
    n = max(10, round(120*SHARES.get(name, 1)))
    outcomes = collections.Counter()
    for i in range(n):
        found = outcome(case(case_rng(name, 0, i)))
        assert found in ("read", "refused"), f"case {i}: {found}"
        outcomes[found] += 1
    assert outcomes["refused"], "nothing was damaged"
