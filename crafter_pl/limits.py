"""Numbers in a range, as types of settings: a command line refuses others, and `checked` does in Python."""

import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt, restricted_number_type

from crafter_pl.errors import UserError

__all__ = [
    "WORDS",
    "AboveZero",
    "BelowOne",
    "ClosedUnitInterval",
    "FromZero",
    "NonNegativeInt",
    "PositiveInt",
    "checked",
]

AboveZero = restricted_number_type("AboveZero", float, [(">", 0), ("<", math.inf)])
FromZero = restricted_number_type("FromZero", float, [(">=", 0), ("<", math.inf)])
BelowOne = restricted_number_type("BelowOne", float, [(">=", 0), ("<", 1)])
WORDS = {  # what is to be given, by the type's name
    "int": "a whole number",
    "float": "a number",
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number, 0 or above",
    "AboveZero": "a number above 0",
    "FromZero": "a number, 0 or above",
    "BelowOne": "a number from 0 to below 1",
    "ClosedUnitInterval": "a number from 0 to 1",
}


def checked(taken: Any, values: Mapping[str, Any], group: str) -> dict[str, Any]:  # noqa: ANN401 (a callable)
    """Settings as plain numbers, which a checkpoint can hold: a parsed one is of the class of its type.

    Args:
        taken: the class or function whose annotations say what numbers and `Literal` names may be.
        values: settings by name; null ones, and those of other types, are let through.
        group: of the options on the command line, such as ``--model.init_args``.

    Raises:
        UserError: one is of another type or out of range.
    """
    hints, made = get_type_hints(taken), dict(values)
    for name in [name for name in hints if values.get(name) is not None]:
        value, inner = values[name], get_args(hints[name])
        kind = inner[0] if len(inner) == 2 and inner[1] is NoneType else hints[name]
        number, choices = getattr(kind, "_type", kind), get_args(kind) if get_origin(kind) is Literal else ()
        try:
            made[name] = number(kind(value)) if number in (int, float) else value
        except (TypeError, ValueError, OverflowError):
            made[name] = None
        if made[name] != value or (choices and value not in choices):
            wanted = " or ".join(map(str, choices)) or WORDS[kind.__name__]
            raise UserError(f"{name} {value!r} must be {wanted} ({group}.{name})")
    return made
