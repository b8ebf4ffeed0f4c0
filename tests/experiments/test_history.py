"A training run of the history experiments that is killed, between and within its stops, resumes with the same records."
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gslrm_mouse.experiments.history import history_arm, history_run
from gslrm_mouse.training.record import Record


def short_arm():
    return history_arm(
        "history_b", "heads, tiny", data="exact", learner="heads", lr=1e-3, seed=1, stops=(0, 1, 4, 8),
        mice=1, heads=1, scenes=2)


def run_until_killed(cache, step):
    "Train, and die by SIGKILL once the log has the step: what another process could do, at a known moment."
    update = Record.update

    def update_and_die(self, record, event):
        update(self, record, event)
        if record["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Record.update = update_and_die
    history_run(short_arm(), None, cache)


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_records(tmp_path):
    arm = short_arm()
    expected = history_run(arm, None, tmp_path/"whole")
    cache = tmp_path/"killed"
    cache.mkdir()
    os.symlink(tmp_path/"whole"/"moments", cache/"moments")
    run = cache/"runs"/arm.key
    log = run/"log.jsonl"
    code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
            f"from test_history import run_until_killed; run_until_killed({str(cache)!r}, step=2)")
    child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert child.returncode == -signal.SIGKILL
    assert (run/"seen"/"000001.json").is_file() and not (run/"seen"/"000004.json").exists()
    assert json.dumps(history_run(arm, None, cache)) == json.dumps(expected)
    assert '"resumed"' in log.read_text()
    assert not (run/"checkpoints").exists()


def test_saved_records_are_not_made_again(tmp_path):
    arm = short_arm()
    first = history_run(arm, None, tmp_path)
    saved = tmp_path/"runs"/arm.key/"seen"/"000004.json"
    records = json.loads(saved.read_text())
    records[0]["iou"] = [.123]
    saved.write_text(json.dumps(records))
    second = history_run(arm, None, tmp_path)
    changed = [a for a, b in zip(first, second) if a != b]
    assert [(r["step"], r["split"]) for r in changed] == [(4, "novel")]
    saved.write_text("{")
    with pytest.raises(json.JSONDecodeError): history_run(arm, None, tmp_path)
