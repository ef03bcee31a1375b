"""Options with which no verb can do what it is for, as one message; `~` and `$VARIABLES` in them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
import yaml
from jsonargparse import Namespace

from crafter_pl.commands import shipped
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.device import check_processes
from crafter_pl.errors import UserError
from crafter_pl.files import expand

CONFIG_OPTIONS = ("--config", "-c", "--data")


def _count(least: int, most: float = float("inf")) -> tuple[Callable[[Any], bool], str]:
    """A whole number from ``least`` to ``most``."""
    return lambda v: least <= v <= most, f"at least {least}" + ("" if most > 2**40 else f", at most {most}")


_SHARE = (
    lambda v: 0 < v <= 1 or (v > 1 and v == int(v)),
    "a share above 0.0 and up to 1.0, or a number of batches from 1",
)


# Of every verb, whatever the stage: the option, when it is right, and how to say that.
_EVERY = {
    "seed_everything": _count(0, 2**32 - 1),
    "data.batch_size": _count(1),
    "data.predict_batch_size": _count(1),
    "data.image_size": _count(4),
    "data.max_memory_mb": _count(0),
    "trainer.num_nodes": _count(1),
    "trainer.num_sanity_val_steps": _count(-1),
    "trainer.overfit_batches": (
        lambda v: v == 0 or _SHARE[0](v),
        "0 for none, a share up to 1.0, or a number of batches from 1",
    ),
    "trainer.log_every_n_steps": _count(0),
    "trainer.reload_dataloaders_every_n_epochs": _count(0),
}
_OF_FIT = {
    "trainer.max_epochs": (
        lambda v: v >= 1,
        "at least 1: stages plan their learning rate over all epochs (--trainer.max_time ends a run early)",
    ),
    "trainer.max_steps": (lambda v: v == -1 or v >= 1, "-1 for no limit, or at least 1"),
    "trainer.min_epochs": _count(0),
    "trainer.min_steps": _count(0),
    "trainer.accumulate_grad_batches": _count(1),
    "trainer.check_val_every_n_epoch": _count(1),
    "trainer.val_check_interval": _SHARE,
    "trainer.limit_train_batches": _SHARE,
    "trainer.limit_val_batches": (lambda v: v == 0 or _SHARE[0](v), "not below 0"),
    "trainer.gradient_clip_val": (lambda v: v > 0, "above 0, or null for none"),
}
_OF_VERB = {
    "fit": _OF_FIT,
    "validate": {"trainer.limit_val_batches": _SHARE},
    "test": {"trainer.limit_test_batches": _SHARE},
    "predict": {"trainer.limit_predict_batches": (lambda v: v == 1.0, "1.0: a store is of a whole split")},
}


def check(verb: str, options: Namespace, monitor: str | None) -> None:
    """Refuses, before anything is touched, values with which a verb cannot do what it is for.

    Args:
        verb: fit, validate, test or predict.
        options: of that verb.
        monitor: the logged figure that picks the stage's best checkpoint.

    Raises:
        UserError: names the option, its value and what it may be.
    """
    for part in ("trainer", "data", "model"):
        if not isinstance(options.get(part), Namespace):
            raise UserError(f"{part} is {options.get(part)!r}; give NAME: VALUE for each of its settings")
    data = options.data.init_args
    for name in ("experiment", "runs_dir"):
        if not isinstance(options[name], str) or not options[name].strip():
            raise UserError(f"--{name} is {options[name]!r}; give a name")
    if options.name is not None and not (re.fullmatch(r"[\w-][\w.-]*", options.name)):
        raise UserError(f"--name is {options.name!r}; give letters, digits, -, _ and dots")
    if options.ckpt_path == "":
        raise UserError("--ckpt_path is empty; give a file, last or best, or leave it out")
    for name, kind in get_type_hints(FacesDataModule.__init__).items():
        if name in data and data[name] is None and type(None) not in get_args(kind):
            raise UserError(f"--data.{name} is null; give a value, or leave it out")
    for name, (right, what) in {**_EVERY, **_OF_VERB[verb]}.items():
        value = options.get(name.replace("data.", "data.init_args."))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not right(value):
            raise UserError(f"--{name} is {value}; give {what}")
    trainer = options.trainer
    if not torch.cuda.is_available():
        check_processes(device_count(trainer), "--trainer.devices")
    if verb == "fit" and trainer.max_epochs is None:
        raise UserError("--trainer.max_epochs is missing: a stage plans its learning rate over all epochs")
    if verb == "fit" and (trainer.min_epochs or 0) > trainer.max_epochs:
        raise UserError(
            f"--trainer.min_epochs {trainer.min_epochs} is more than max_epochs {trainer.max_epochs}"
        )
    if verb != "fit" or trainer.fast_dev_run or not (monitor or "").startswith("val/"):
        return
    each, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if trainer.limit_val_batches == 0:
        raise UserError(
            f"--trainer.limit_val_batches is 0, but {monitor} picks the best checkpoint: give more"
        )
    if each is not None and each > epochs:
        raise UserError(
            f"--trainer.check_val_every_n_epoch {each} is more than --trainer.max_epochs {epochs}, but "
            f"{monitor}, a figure of the validation, picks the best checkpoint: give at most {epochs}"
        )


def check_configs(args: list[str]) -> None:
    """Refuses config files, and those that they name, which YAML would take otherwise than they look.

    Raises:
        UserError: one is no UTF-8 or no YAML, or has a name twice in one section; it names file and line.
    """
    seen: set[str] = set()
    for arg in args:
        _check_config(Path(arg.rpartition("=")[2] if arg.startswith("-") else arg), seen)


def _check_config(file: Path, seen: set[str]) -> None:
    if file.suffix not in (".yaml", ".yml") or not file.is_file() or str(file) in seen:
        return
    seen.add(str(file))
    try:
        top = yaml.compose(file.read_bytes().decode("utf-8-sig"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8 (byte {error.start}): save it as that") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = "" if mark is None else f", line {mark.line + 1}"
        raise UserError(f"{file}{at}: no YAML ({getattr(error, 'problem', error)})") from error
    nodes, known = [top], set()
    while nodes:
        node = nodes.pop()
        if id(node) in known:
            continue
        known.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                if key.value in names:
                    raise UserError(f"{file}, line {key.start_mark.line + 1}: {key.value} stands there twice")
                names.add(str(key.value))
                nodes.append(value)
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif node is not None:
            _check_config(file.parent / str(node.value), seen)


def device_count(trainer: Namespace) -> int:
    """How many processes the trainer will start on this machine."""
    devices = str(trainer.devices)
    if devices in ("auto", "-1"):
        return max(torch.cuda.device_count(), 1)
    return int(devices) if devices.isdigit() else len(devices.strip("[], ").split(","))


def located(args: list[str]) -> list[str]:
    """A command whose configs may be named, or be this package's own: see `shipped`."""
    found = []
    for before, arg in zip(["", *args], args, strict=False):
        option, equals, value = arg.partition("=")
        if equals and option in CONFIG_OPTIONS:
            arg = f"{option}={shipped(value)}"
        found.append(shipped(arg) if before in CONFIG_OPTIONS else arg)
    return found


def expanded(value: Any) -> Any:  # noqa: ANN401 (whatever a config holds)
    """Settings, or one command, in which every text that is a path from `~` or `$HOME` is meant as such."""
    if isinstance(value, str):
        name, equals, path = value.partition("=")
        if equals and name.startswith("--"):
            return f"{name}={expanded(path)}"
        return expand(value) if value.startswith(("~", "$")) else value
    if isinstance(value, list):
        return [expanded(one) for one in value]
    if isinstance(value, dict):
        return {key: expanded(one) for key, one in value.items()}
    if isinstance(value, Namespace):
        for key, one in list(vars(value).items()):
            value[key] = expanded(one)
    return value
