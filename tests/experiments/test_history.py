"An arm of the history experiments that is killed between and within its stops goes on and says the same."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
from gslrm_mouse.experiments.history import _arm, run_arm

ARM = lambda: _arm("history_b", "heads, tiny", "exact", "heads", 1e-3, 1, (0, 1, 4, 8), 1, 1, None, 2)

def test_a_killed_arm_goes_on_with_the_same_records(tmp_path):
    arm = ARM()
    whole = run_arm(arm, None, tmp_path/"whole")
    (tmp_path/"killed").mkdir()
    os.symlink(tmp_path/"whole"/"moments", tmp_path/"killed"/"moments")
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_history import ARM, run_arm; "
            f"run_arm(ARM(), None, {str(tmp_path/'killed')!r})")
    seen = tmp_path/"killed"/"runs"/arm.key/"seen"
    log = seen.parent/"log.jsonl"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    def is_between_stops(): return (seen/"000001.json").is_file() and log.read_text().count('"loss"') >= 2
    while child.poll() is None and not is_between_stops(): time.sleep(.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL and not (seen/"000008.json").exists()
    assert json.dumps(run_arm(arm, None, tmp_path/"killed")) == json.dumps(whole)
    assert any('"resumed"' in x for x in log.read_text().splitlines()) and not (seen.parent/"checkpoints").exists()

def test_records_that_were_seen_are_not_made_again(tmp_path):
    arm = ARM()
    first = run_arm(arm, None, tmp_path)
    f = tmp_path/"runs"/arm.key/"seen"/"000004.json"
    x = json.loads(f.read_text())
    x[0]["iou"] = [.123]
    f.write_text(json.dumps(x))
    again = run_arm(arm, None, tmp_path)
    changed = [a for a, b in zip(first, again) if a != b]
    assert [(r["step"], r["split"]) for r in changed] == [(4, "novel")]
    with pytest.raises(json.JSONDecodeError):
        f.write_text("{")
        run_arm(arm, None, tmp_path)
