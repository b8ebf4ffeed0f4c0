"""Threads, the command line within this process, a tiny checkpoint; the place of the optional trial data, which lies
beside a checkout of the developers and nowhere else."""
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest
import torch

from gslrm_mouse.cameras.domain import FACELIFT_DOMAIN
from gslrm_mouse.cli import main
from gslrm_mouse.models.checkpoint import ModelCard, save_checkpoint
from gslrm_mouse.models.gslrm import GSLRM, GSLRMConfig

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent/"shared/data"


LONGEST = ("docs/test_site", "training/test_loop", "reconstruction/test_pipeline", "experiments/test_runner",
           "test_cli_interrupt", "preprocess/test_bound", "doctor/test_diagnose") # files, by the time they take


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes half a minute or more; `make slow` runs it, `make test` does not")


def pytest_collection_modifyitems(items):
    "The longest files first, so that two workers, to which whole files go, end together."
    def rank(item):
        name = item.path.relative_to(ROOT/"tests").with_suffix("").as_posix()
        return LONGEST.index(name) if name in LONGEST else len(LONGEST)
    items.sort(key=rank)


def recorded_numbers(name):
    "What the original computed, by name; skips where the file is missing."
    path = DATA/"parity"/name
    if not path.is_file(): pytest.skip(f"the parity numbers ../shared/data/parity/{name} are not on this machine")
    with np.load(path) as arrays: return {key: torch.from_numpy(arrays[key]) for key in arrays}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def command_process(*args, **options):
    "`gslrm_mouse` in a process of its own, which takes seconds to start: for what only a process shows."
    code = "from gslrm_mouse.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, **options)


@pytest.fixture
def run_command(capsys):
    "`gslrm_mouse` within this process: a function of the arguments that returns status, stdout and stderr."
    n_threads = torch.get_num_threads()

    def run(*args):
        capsys.readouterr() # what was printed before
        arguments = [str(arg) for arg in args]
        try:
            status = main(arguments) or 0
        except SystemExit as end:
            status = end.code
        stdout, stderr = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, stdout, stderr)

    yield run
    torch.set_num_threads(n_threads) # the doctor takes one


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    "An untrained network for images of 32 px that takes milliseconds."
    torch.manual_seed(0)
    network = GSLRM(GSLRMConfig(image_size=32, d=64, n_layer=1))
    card = ModelCard(network.config, replace(FACELIFT_DOMAIN, image_size=32))
    return save_checkpoint(tmp_path_factory.mktemp("net")/"m.safetensors", network, card)


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
