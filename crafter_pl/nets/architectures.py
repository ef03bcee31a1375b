"""Whole nets by their names: torchvision's, timm's, and those of the user's own code."""

import copy
import difflib
import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from crafter_pl.errors import UserError
from crafter_pl.nets.cut import torchvision_classifier

_HUB, _FOLDER = "hf-hub:", "local-dir:"


def build_net(arch: str, download: bool = False) -> nn.Module:
    """A whole net, untrained, or as its own code makes it. Nothing is downloaded unless ``download`` says so.

    Args:
        arch: a classifier of torchvision, ``resnet18`` or ``torchvision:resnet18``; one of timm,
            ``timm:NAME``, or by a folder with its config.json, ``timm:local-dir:PATH``; or of the user's own
            code, ``package.module:callable`` or ``path/file.py:callable``: what is called without arguments
            and returns a module, or the module itself.
        download: also fetch what the name stands for: timm's pretrained weights, and ``timm:hf-hub:NAME``.

    Raises:
        UserError: there is no such net, timm is not installed, or the user's code fails.
    """
    kind, _, name = arch.partition(":")
    if arch.startswith("timm:"):
        net = _timm(name, download)
    elif not name or kind == "torchvision":
        return torchvision_classifier(name or arch)
    else:
        net = _own(kind, name)
    module: Any
    for module in net.modules():  # the same function, of which derivatives of any order are known
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
        if hasattr(module, "inplace"):
            module.inplace = False  # what is given out at a cut stays what it was
    return net


def _timm(name: str, download: bool) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError(f"arch 'timm:{name}' needs timm: pip install timm") from error
    if name.startswith(_HUB) and not download:
        raise UserError(f"arch 'timm:{name}' is fetched from a hub: say --download true")
    if name.startswith(_FOLDER):
        if not (config := Path(name.removeprefix(_FOLDER), "config.json")).is_file():
            raise UserError(f"arch 'timm:{name}': there is no {config}, which says what net it is")
        download = False
    elif not name.startswith(_HUB) and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), 5)
        raise UserError(
            f"arch 'timm:{name}': timm {timm.__version__} has no such model"
            + (f"; near are {', '.join(near)}" if near else "; `timm.list_models()` has all")
        )
    try:
        net: nn.Module = timm.create_model(name, pretrained=download)
    except Exception as error:  # the hub's client, the network, timm's own checks of a config
        said = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"arch 'timm:{name}' could not be built ({said[0][:160]})") from error
    return net


def folder_weights(arch: str) -> str | None:
    """The file of weights beside the config.json of a ``timm:local-dir:PATH``; None: there is none."""
    if not arch.startswith(f"timm:{_FOLDER}"):
        return None
    folder = Path(arch.removeprefix(f"timm:{_FOLDER}"))
    names = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth")
    return next((str(folder / name) for name in names if (folder / name).is_file()), None)


def lasting(arch: str, net: nn.Module) -> str:
    """A name by which this version builds the net again without folder and network.

    Raises:
        UserError: there is none, for a net of a hub.
    """
    if not arch.startswith((f"timm:{_FOLDER}", f"timm:{_HUB}")):
        return arch
    plain = f"timm:{_cfg(net).get('architecture')}"
    try:
        same = _shapes(build_net(plain)) == _shapes(net)
    except UserError:
        same = False
    if same:
        return plain
    if arch.startswith(f"timm:{_FOLDER}"):
        return arch
    raise UserError(
        f"arch {arch!r} is {plain} with settings of its own, which no checkpoint could build again without "
        "the network: keep its config.json and weights in a folder, and give timm:local-dir:PATH"
    )


def _shapes(net: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Of all tensors of the trunk: a head has as many outputs as it was trained for."""
    found = [(name, tuple(value.shape)) for name, value in net.state_dict().items()]
    head = str(_cfg(net).get("classifier") or "head")
    return [one for one in found if not one[0].startswith(f"{head}.")]


@dataclass(frozen=True)
class Expected:
    """What a net was trained to take, as far as it says so.

    Attributes:
        side: of its pictures, in pixels.
        mean: of the three channels of pictures in [0, 1], which is taken off.
        std: by which they are then divided.
    """

    side: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


def expected(net: nn.Module) -> Expected:
    """Of a net of timm's by its ``pretrained_cfg``; of others nothing.

    Raises:
        UserError: it takes other than square pictures of three channels.
    """
    if not (cfg := _cfg(net)) or not cfg.get("input_size"):
        return Expected()
    channels, *sides = cfg["input_size"]
    if channels != 3 or sides[0] != sides[1]:
        raise UserError(
            f"this net takes pictures of {channels} channels, {sides[0]}x{sides[1]}: faces are RGB and "
            "square; wrap it in a module that makes its pictures of these"
        )
    return Expected(int(sides[0]), *([float(one) for one in cfg[name]] for name in ("mean", "std")))


def _cfg(net: nn.Module) -> dict[str, Any]:
    """What timm says of a net; empty for others."""
    cfg = getattr(net, "pretrained_cfg", None)
    return cfg if isinstance(cfg, dict) else {}


def _own(module: str, name: str) -> nn.Module:
    """What the user's own code makes."""
    where = f"arch '{module}:{name}'"
    code = _file(Path(module), where) if module.endswith(".py") else _import(module, where)
    if (found := getattr(code, name, None)) is None:
        there = ", ".join(one for one in vars(code) if not one.startswith("_") and callable(vars(code)[one]))
        raise UserError(f"{where}: {module} has no {name}; it has {there or 'nothing that can be called'}")
    if isinstance(found, nn.Module):
        return copy.deepcopy(found)
    try:
        net = found()
    except Exception as error:  # whatever the user's code raises
        said = str(error).splitlines() or [""]
        raise UserError(
            f"{where} fails, called without arguments ({type(error).__name__}: {said[0][:160]}): give a "
            "function that needs none"
        ) from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{where} gives a {type(net).__name__}: a torch.nn.Module is needed")
    return net


def _import(module: str, where: str) -> ModuleType:
    """A module by its dotted name, also of the working directory; none of Python's own.

    A checkpoint names its net's code, and one from strangers must not name what Python itself can do.
    """
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(f"{where}: {module} is Python's own and has no nets: name a module of yours")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever the user's code raises when it is imported
        raise UserError(
            f"{where}: {module} cannot be imported from {Path.cwd()} ({type(error).__name__}: {error}); "
            "known are torchvision:NAME, timm:NAME, package.module:callable and file.py:callable"
        ) from error
    finally:
        sys.path.remove(str(Path.cwd()))


def _file(file: Path, where: str) -> ModuleType:
    """A module by its file."""
    if not file.is_file():
        raise UserError(f"{where}: there is no file {file} (from {Path.cwd()})")
    spec = importlib.util.spec_from_file_location(f"crafter_pl_net_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = code  # dataclasses and torch.fx.wrap look their module up there
    try:
        spec.loader.exec_module(code)
    except Exception as error:  # as above
        raise UserError(f"{where}: {file} cannot be imported ({type(error).__name__}: {error})") from error
    return code
