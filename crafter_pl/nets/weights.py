"""Reads weights of well-known nets from the user's own files, or has torchvision download them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor

from crafter_pl.errors import UserError


def read_weights(path: str, net: str, option: str = "weights") -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; ``net`` says in messages whose it should be, ``option`` where.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise UserError(f"{option}: no file {path!r}; expected a state dict of {net}, saved by torch.save")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged bytes
        raise UserError(
            f"{option}: {path!r} cannot be read ({type(error).__name__}); expected a state dict of {net}, "
            "saved by torch.save"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{option}: {path!r} holds no state dict; expected one of {net}, saved by torch.save")
    return state


def imagenet_weights(given: str, arch: str, option: str = "weights") -> Mapping[str, Tensor]:
    """The state dict of torchvision's ``arch``: from a file, or for ``download`` torchvision's ImageNet one.

    Args:
        given: path of the file, or ``download``.
        arch: torchvision's name of the model.
        option: the init argument that ``given`` comes from, for messages.

    Raises:
        UserError: the file is missing or holds something else, or there is no network.
    """
    if given != "download":
        return read_weights(given, f"torchvision's {arch}", option)
    try:
        state: Mapping[str, Tensor] = torchvision.models.get_model_weights(arch).DEFAULT.get_state_dict(
            check_hash=True
        )
    except OSError as error:
        raise UserError(
            f"ImageNet weights of {arch} could not be downloaded ({error}); give a file instead "
            f"(--model.init_args.{option} PATH), or do without ({option} null)"
        ) from error
    return state
