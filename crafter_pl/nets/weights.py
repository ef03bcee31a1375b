"""Reads weights of well-known nets from the user's own files, or has torchvision download them."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

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
        return torchvision.models.get_model_weights(arch).DEFAULT.get_state_dict(check_hash=True)
    except OSError as error:
        raise UserError(
            f"ImageNet weights of {arch} could not be downloaded ({error}); give a file instead "
            f"(--model.init_args.{option} PATH), or do without ({option} null)"
        ) from error


def load_trunk(
    net: nn.Module,
    state: Mapping[str, Tensor],
    heads: tuple[str, ...],
    refused: str,
    advice: str = "",
    assign: bool = False,
) -> None:
    """Loads a state dict into ``net``, all but its heads.

    Args:
        net: what is loaded into.
        state: of the whole net, as it was published.
        heads: how the names of the heads' tensors begin, which are neither read nor missed.
        refused: how the message begins where the state dict is of another net.
        advice: how it ends where tensors are missing or unknown.
        assign: see `torch.nn.Module.load_state_dict`.

    Raises:
        UserError: the state dict is of another net.
    """
    kept = {name: value for name, value in state.items() if not name.startswith(heads)}
    try:
        missing, unknown = net.load_state_dict(kept, strict=False, assign=assign)
    except RuntimeError as error:
        raise UserError(f"{refused}: {str(error).splitlines()[-1].strip()}") from error
    missing = [name for name in missing if not name.startswith(heads)]
    if missing or unknown:
        raise UserError(
            f"{refused}: {len(missing)} tensors are missing and {len(unknown)} unknown "
            f"({', '.join([*missing, *unknown][:3])}){advice}"
        )
