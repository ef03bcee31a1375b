"""Checkpoint files: read, and found again where they or what they stand on has moved."""

import re
from pathlib import Path
from typing import Any

import torch

from crafter_pl.errors import UserError
from crafter_pl.files import sha256


def named_run(stage: str, given: str | None) -> str | None:
    """The run of the same experiment that a checkpoint argument means; None: it is the path of a file.

    Args:
        stage: what it is the checkpoint of.
        given: null for the run that bears the stage's name, a bare name for another run (``prior_g2``), or a
            path.
    """
    if given is None:
        return stage
    return given if re.fullmatch(r"[\w-]+", given) else None


def read_checkpoint(path: str | Path, stage: str = "") -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU; ``stage`` says in messages whose it should be.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    path = Path(path)
    if not path.is_file():
        what = f"the stage {stage!r}" if stage else "the stage"
        raise UserError(f"no checkpoint {path}: train {what} first, or give the right path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged bytes
        raise UserError(
            f"{path} is no readable checkpoint ({type(error).__name__}): it is damaged or no checkpoint; "
            "train the stage again, or give another file"
        ) from error
    return content if isinstance(content, dict) else {}


def kept_as(file: str | Path, digest: str) -> Path:
    """Where a checkpoint is kept once a longer training has replaced it."""
    return Path(file).with_name(f"best-{digest[:12]}.ckpt")


def find_upstream(path: Path, key: str, file: str, digest: str) -> Path:
    """The file that a checkpoint was trained on: where it was, or beside the checkpoint in a moved folder.

    A relative path is one from the working directory of the training, which is looked for above the
    checkpoint.

    Raises:
        UserError: it is nowhere, or another file is in its place.
    """
    above = path.absolute().parents
    places = [Path(file), *(folder / file for folder in above if not Path(file).is_absolute())]
    places += [folder / Path(*Path(file).parts[-3:]) for folder in above[2:3]]  # EXPERIMENT/STAGE/checkpoints
    there = [place for place in places if place.is_file()]
    if not there:
        raise UserError(
            f"{path} was trained on {file} (stage {key}), which is missing; it was looked for from "
            f"{Path.cwd()} and the folders above {path}: bring it back, or train {path} again"
        )
    for place in there:
        for candidate in (place, kept_as(place, digest)):
            if candidate.is_file() and sha256(candidate) == digest:
                return candidate
    raise UserError(
        f"upstream mismatch: {path} was trained on {file} with sha256 {digest[:12]}…, but {there[0]} "
        f"has {sha256(there[0])[:12]}…; train {path} again, or bring the old {file} back"
    )
