import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the same sums on any machine

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # tiny_stage.py, by its name in configs

torch.set_num_threads(1)


@pytest.fixture
def runs_dir(tmp_path):
    """An empty folder of runs."""
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def _environment():
    """Whatever a test or Lightning writes into the environment is gone after it; Ctrl+C works."""
    before = dict(os.environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny experiment, trained once: see `experiment.Experiment`."""
    from experiment import make

    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_store(tiny):
    """The tiny experiment's private_test part, crafted by `predict`."""
    from crafter_pl.cli import main

    assert main(tiny.command("predict", "crafter")) == 0
    return tiny.store()
