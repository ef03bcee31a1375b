"""The real pictures, where they are."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def real():
    default = Path(__file__).parents[3] / "shared" / "data"
    root = Path(os.environ.get("CRAFTER_DATA") or default)
    if not (root / "celeba").is_dir():
        pytest.skip(f"no real pictures in {root}: set CRAFTER_DATA")
    return root
