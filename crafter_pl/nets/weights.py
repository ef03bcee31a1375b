"""Reads weights of well-known nets from the user's own files."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from crafter_pl.errors import UserError


def read_weights(path: str, net: str) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; ``net`` says in messages whose it should be.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise UserError(f"weights: no file {path!r}; expected a state dict of {net}, saved by torch.save")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged bytes
        raise UserError(
            f"weights: {path!r} cannot be read ({type(error).__name__}); expected a state dict of {net}, "
            "saved by torch.save"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"weights: {path!r} holds no state dict; expected one of {net}, saved by torch.save")
    return state
