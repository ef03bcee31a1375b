"""Puts values into an audit config; everything else in it stays byte for byte."""

from pathlib import Path
from typing import Any

import yaml

from crafter_pl.commands import yaml_text
from crafter_pl.errors import UserError
from crafter_pl.files import write_file

Setting = dict[str, Any]  # values of some of an attack's init arguments, by name


def shown(setting: Setting) -> str:
    """A setting as tables and messages write it, ``steps 100, lr 0.8``."""
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def write_setting(file: Path, place: tuple[str | int, ...], setting: Setting) -> None:
    """Puts values into ``init_args`` of an attack of an audit config.

    Args:
        file: the audit config.
        place: the way to the attack, such as ``("attacks", 0)`` or ``("budgets", "standard", 0)``.
        setting: names and new values.

    Raises:
        UserError: the file has no such attack.
    """
    text = file.read_text(encoding="utf-8")
    wanted = target = yaml.safe_load(text)
    by_hand = UserError(
        f"{file} does not list this attack with its class_path: put {shown(setting)} in by hand"
    )
    try:
        for key in place:
            target = target[key]
        target.setdefault("init_args", {}).update(setting)
        for name, value in setting.items():
            node = yaml.compose(text)
            for key in place:
                node = node.value[key] if isinstance(key, int) else _child(node, key)
            start, end, words = _edit(node, name, yaml_text(value))
            text = text[:start] + words + text[end:]
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise by_hand from error
    if yaml.safe_load(text) != wanted:
        raise by_hand
    write_file(file, text)


def _edit(attack: yaml.MappingNode, name: str, value: str) -> tuple[int, int, str]:
    """What is to stand in place of the text from one character to another."""
    init = _child(attack, "init_args")
    if init is None:
        key, path = next(pair for pair in attack.value if pair[0].value == "class_path")
        glue = ", " if attack.flow_style else "\n" + " " * key.start_mark.column
        return path.end_mark.index, path.end_mark.index, f"{glue}init_args: {{{name}: {value}}}"
    if (old := _child(init, name)) is not None:
        return old.start_mark.index, old.end_mark.index, value
    if init.flow_style:
        end = init.end_mark.index - 1
        return end, end, (", " if init.value else "") + f"{name}: {value}"
    first = init.value[0][0].start_mark
    return first.index, first.index, f"{name}: {value}\n" + " " * first.column


def _child(node: Any, key: str) -> Any:  # noqa: ANN401 (nodes of PyYAML, which has no types)
    """The value of a key in a mapping node; None if it has none."""
    return next((value for name, value in node.value if name.value == key), None)
