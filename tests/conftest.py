"""Threads and the place of the optional trial data, which lies beside a checkout of the developers and nowhere else."""
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent/"shared/data"


def recorded_numbers(name):
    "What the original computed, by name; skips where the file is missing."
    path = DATA/"parity"/name
    if not path.is_file(): pytest.skip(f"the parity numbers ../shared/data/parity/{name} are not on this machine")
    with np.load(path) as arrays: return {key: torch.from_numpy(arrays[key]) for key in arrays}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def recording():
    if not (DATA/"mammal_standin").is_dir():
        pytest.skip("the rendered recording ../shared/data/mammal_standin is not on this machine")
    return DATA/"mammal_standin"


@pytest.fixture(scope="session")
def sample():
    if not (DATA/"facelift_sample/sample_000").is_dir():
        pytest.skip("FaceLift's sample ../shared/data/facelift_sample is not on this machine")
    return DATA/"facelift_sample/sample_000"
