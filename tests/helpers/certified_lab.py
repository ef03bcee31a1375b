"""A small certified defence, trained once a process."""

from pathlib import Path

import pytest

from crafter_pl.cli import main
from crafter_pl.defenses import load_defense


@pytest.fixture(scope="module")
def trained(tiny):
    if not Path(file := tiny.ckpt("certified")).is_file():
        assert main(tiny.command("fit", "certified")) == 0
    return file


@pytest.fixture
def stage(trained):
    return load_defense(trained)


@pytest.fixture(scope="module")
def faces(tiny):
    return tiny.data().rows("public")
