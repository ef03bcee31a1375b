"""Commands as lists of arguments: shown, resumed, handed on to upstream stages. No torch here."""

import shlex
from typing import TypeVar

T = TypeVar("T")

# Options of a command that its upstream stages are trained with, too (each with what is below it).
PASSED_ON = (
    "--data",
    "--seed_everything",
    "--trainer.accelerator",
    "--trainer.devices",
    "--trainer.precision",
)
OWN = "--data.order_seed"  # of these but each training's own: the order of other stages is not changed by it


def command(args: list[str]) -> str:
    """The shell command that `args` stand for."""
    return f"python -m crafter_pl {shlex.join(args)}"


def without(args: list[str], *options: str) -> list[str]:
    """`args` without some options and their values."""
    kept: list[str] = []
    for before, arg in zip(["", *args], args, strict=False):
        if before not in options and arg.partition("=")[0] not in options:
            kept.append(arg)
    return kept


def resume_command(args: list[str]) -> str:
    """The shell command that goes on where `args` (of a `fit`) stopped."""
    return command([*without(args, "--ckpt_path"), "--ckpt_path", "last"])


def passed_on(args: list[str]) -> list[str]:
    """Those of `args` that upstream stages get, too: `--option value` or `--option=value`."""
    kept: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, has_value, _ = arg.partition("=")
        if any(name == option or name.startswith(option + ".") for option in PASSED_ON):
            given = [arg] if has_value else [arg, next(rest, "")]
            kept += [] if name == OWN else given
    return kept


def listed(value: list[T] | T | None) -> list[T]:
    """The value of an option that takes one or many: one is a list of one, none an empty list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
