"""What the results that are kept for later also depend on: the code that made them."""

import hashlib
from functools import cache
from pathlib import Path

from crafter_pl import __version__

CRAFTING = ("crafting", "data", "defenses", "nets")  # what makes crafted features
ATTACKING = ("attacks", "crafting", "defenses", "nets", "stages")  # what makes reconstructions


@cache
def code_hash(parts: tuple[str, ...]) -> str:
    """The version, and SHA-256 of the source files of some of our packages."""
    home, digest = Path(__file__).parent, hashlib.sha256(__version__.encode())
    for part in parts:
        for file in sorted((home / part).rglob("*.py")):
            digest.update(f"{file.relative_to(home)}\n".encode() + file.read_bytes())
    return digest.hexdigest()
