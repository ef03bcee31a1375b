"""Reads weights of well-known nets from the user's own files, or has torchvision download them."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from crafter_pl.errors import UserError
from crafter_pl.nets.cut import last_linear, replace_head

_NESTED = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema")  # where others put one
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")  # what wrappers put before every name


def read_weights(path: str, net: str, option: str = "weights") -> dict[str, Tensor]:
    """The state dict in a file, on the CPU; ``net`` says in messages whose it should be, ``option`` where.

    The file is one of safetensors, or torch.save's, of which no code is run.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{option}: no file {path!r}; expected a state dict of {net}, saved by torch.save")
    if not file.stat().st_size:
        raise UserError(f"{option}: {path!r} is empty; copy it again")
    try:
        if file.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged bytes
        pickled = file.read_bytes()[:1] in (b"\x80", b"P")  # by itself, or in torch's archive
        if not isinstance(error, UnpicklingError) or not pickled:
            raise UserError(
                f"{option}: {path!r} cannot be read ({type(error).__name__}); expected a state dict of {net},"
                " saved by torch.save"
            ) from error
        raise UserError(
            f"{option}: {path!r} holds Python objects besides tensors, a whole module perhaps, and code in "
            "files is not run; where you trust it, load it and save its weights alone, "
            "torch.save(net.state_dict(), FILE) or safetensors.torch.save_file(net.state_dict(), FILE)"
        ) from error
    return _state_dict(state, path, net, option)


def _state_dict(state: Any, path: str, net: str, option: str) -> dict[str, Tensor]:  # noqa: ANN401
    """What a file of torch.save's holds, taken out of the training checkpoint that it may be a part of."""
    if isinstance(state, dict) and state and all(isinstance(value, Tensor) for value in state.values()):
        return state
    inside = [name for name in _NESTED if isinstance(state, dict) and isinstance(state.get(name), dict)]
    if len(inside) > 1:
        raise UserError(
            f"{option}: {path!r} holds several state dicts ({', '.join(inside)}): save the one meant alone"
        )
    if inside:
        print(f"note: {option}: the entry {inside[0]!r} of {path} is read", flush=True)
        return _state_dict(state[inside[0]], path, net, option)
    raise UserError(f"{option}: {path!r} holds no state dict; expected one of {net}, saved by torch.save")


def load_whole(net: nn.Module, path: str, arch: str) -> None:
    """Loads a file of weights into a net; its last linear layer gets as many outputs as it has in the file.

    A prefix that a wrapper has put before every name is taken off.

    Raises:
        UserError: the file cannot be read, or is of another net.
    """
    own = f"torchvision's {arch}" if ":" not in arch else arch
    state, names = read_weights(path, own), net.state_dict().keys()
    while prefix := next((one for one in _PREFIXES if all(name.startswith(one) for name in state)), None):
        if any(name.startswith(prefix) for name in names):
            break  # its own names begin so
        print(f"note: weights: the names in {path} begin with {prefix!r}, which is taken off", flush=True)
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    refused = f"weights {path!r} do not fit {own}"
    if (head := last_linear(net)) and (kept := state.get(f"{head}.weight")) is not None:
        layer: Any = net.get_submodule(head)
        if kept.ndim == 2 and kept.shape[1] == layer.in_features and len(kept) != layer.out_features:
            replace_head(net, arch, len(kept), layer.out_features)
    load_trunk(net, state, (), refused, ": give the arch that they were trained with, or its own weights")


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
        raise UserError(f"{refused}: {str(error).splitlines()[-1].strip()}{advice}") from error
    missing = [name for name in missing if not name.startswith(heads)]
    if missing or unknown:
        raise UserError(
            f"{refused}: {len(missing)} tensors are missing and {len(unknown)} unknown "
            f"({', '.join([*missing, *unknown][:3])}){advice}"
        )
