"""The options of a defence: frozen, declared by each class, and handed over to `protect`."""

from dataclasses import MISSING, dataclass, fields
from typing import TypeVar, get_type_hints

from docstring_parser import parse
from jsonargparse import ArgumentParser

from crafter_pl.data.transport import Transport

OptionsT = TypeVar("OptionsT", bound="ProtectOptions")


@dataclass(frozen=True, kw_only=True)
class ProtectOptions:
    """The options of every defence.

    Args:
        transport: how the features travel.
    """

    transport: Transport = "float32"


@dataclass(frozen=True, kw_only=True)
class KeyedOptions(ProtectOptions):
    """Of a defence that draws noise, keyed by (seed, picture).

    Args:
        seed: of the noise.
    """

    seed: int = 0


def names(cls: type[ProtectOptions]) -> list[str]:
    """The options of a class of defence."""
    return [field.name for field in fields(cls)]


def declare(parser: ArgumentParser, cls: type[ProtectOptions], group: str = "protect") -> None:
    """Adds the options of a class to a command line, each null (as the defence was trained) by default."""
    texts = {
        one.arg_name: one.description for kind in cls.__mro__ for one in parse(kind.__doc__ or "").params
    }
    hints = get_type_hints(cls)
    for field in fields(cls):
        known = "" if field.default is MISSING else f" If training does not say: {field.default}."
        text = f"{texts[field.name]}{known}"
        parser.add_argument(f"--{group}.{field.name}", type=hints[field.name] | None, default=None, help=text)
