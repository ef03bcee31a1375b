"""What jsonargparse, Lightning and torch say about a command, in plain words."""

import inspect
import re
import tempfile
import traceback
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser

from crafter_pl.cli.verbs import VERBS
from crafter_pl.errors import UserError
from crafter_pl.files import write_file
from crafter_pl.limits import WORDS
from crafter_pl.processes import tells_of_another

_WORDS = WORDS | {"bool": "true or false", "dict": "{NAME: VALUE}"}
_OWN = re.compile(  # lines that say nothing to a user
    r"Parser key|Not of type|Does not validate|Subtypes:|Errors:|Given value|Expected an? "
    r"|Not a valid subclass|Subclass types expect|a class path \(str\)|a dict (with|without) "
    r"|Problem with given class_path|$"
)


@contextmanager
def blamed(args: list[str], folder: Path | None = None) -> Iterator[None]:
    """Turns what Lightning, torch or another library raises into a message that names the options given.

    What our own code raises is left alone, but for the errors that an impossible number makes anywhere.

    Args:
        args: the command.
        folder: for the traceback, which becomes ``error.txt``; None: a temporary one.

    Raises:
        UserError: with the error's first line, the options, and where the whole traceback is.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except Exception as error:
        cause: BaseException | None = error  # jsonargparse wraps what a class raises when it is built
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        frames = traceback.extract_tb(error.__traceback__)
        ours = bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent.parent)
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
        number = isinstance(error, (ValueError, ArithmeticError))
        if tells_of_another(error) or (ours and not memory and not number):
            raise
        text = "no memory left: give a smaller --data.batch_size, --data.image_size or --data.people"
        if not memory:
            said = [line.strip()[:300] for line in str(error).splitlines() if line.strip()]
            text = ": ".join([type(error).__name__, *said[:1]])
        given = re.sub(r"(^| )(-c|--config)[ =]\S+", "", " ".join(args[1:])).strip()
        folder = folder or Path(tempfile.mkdtemp(prefix="crafter_pl-"))
        place = write_file(folder / "error.txt", traceback.format_exc())
        raise UserError(f"{text} (options: {given or 'of the config alone'}; traceback: {place})") from error


class Parser(LightningArgumentParser):
    """Says what is wrong with an option in one message.

    Attributes:
        hints: the types of some options, by name: what a list holds is said where one is wrong.
    """

    hints: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    def parse_args(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 (as inherited)
        """As inherited.

        Raises:
            UserError: names the option, its value, what is wrong, and what may be given.
        """
        try:
            return super().parse_args(*args, **options)
        except ArgumentError as error:
            raise UserError(plain(str(error), self.hints)) from error


def parser_settings(verb: str) -> dict[str, Any]:
    """The settings of a verb's parser."""
    return {"prog": f"crafter_pl {verb}", "description": VERBS[verb], "exit_on_error": False}


def plain(message: str, hints: dict[str, Any]) -> str:
    """A message of jsonargparse without its types.

    Args:
        message: of its `error`.
        hints: the types of the options, by name.
    """
    keys = re.findall(r'Parser key "([^"]+)":', message)
    if not keys:
        return message
    option, value = f"--{'.'.join(keys)}", _value(message)
    given = value[1].strip() if value else ""
    if nested := re.fullmatch(r"NestedArg\(key='(.+?)', val=(.*)\)", given):
        if keys[-1] != nested[1]:
            option += f".{nested[1]}"
        given = nested[2].strip("'\"")
    head = message[: value.start()] if value else message
    lines = [line.strip().removeprefix("- ").strip() for line in head.splitlines()]
    wrong = [re.sub(r'^Parser key "[^"]+": *', "", line) for line in lines]
    wrong = [line for line in dict.fromkeys(wrong) if not _OWN.match(line)]
    if missing := re.search(r"Expected a path but (\S+\.ya?ml) either not accessible", head):
        wrong = [f"there is no file {missing[1]}"]
    elif unknown := re.search(r"Expected a dot import path string: (\S+)", head):
        wrong.insert(0, f"there is no class {unknown[1]}")
    wanted = (_form(f"--{keys[0]}", hints.get(keys[0])) if len(keys) == 1 else "") or _expected(head)
    text = f"{option} {given}".strip() + (f": {'; '.join(wrong)}" if wrong else "")
    return f"{text}; give {wanted}" if wanted else text


def _value(message: str) -> re.Match[str] | None:
    """Where a message repeats what was given: at its end, or in its only line about a type."""
    whole = re.search(r"\s*Given value type: [^\n]*\n\s*Given value: (.*)\Z", message, re.DOTALL)
    return whole or re.search(r"(?:Got|Given) value: (.*)\Z", message, re.DOTALL)


def _expected(head: str) -> str:
    """What the innermost type of a message takes; empty where the message says it otherwise."""
    if choices := re.findall(r"Literal\[([^\]]*)\]", head):
        return f"one of {choices[-1]}".replace("'", "")
    kinds = re.findall(r"(?:Expected a <class '|Not of type )(\w+)", head)
    return " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds if kind in _WORDS))


def _form(option: str, hint: Any) -> str:  # noqa: ANN401 (any type)
    """What an option that takes one or many is given, as on the command line; empty for others."""
    many = [one for one in (hint, *get_args(hint)) if get_origin(one) is list]
    if not many:
        return ""
    (kind,) = get_args(many[0])
    if is_dataclass(kind):
        first, *more = (field.name for field in fields(kind))
        return f'one or a list: {option} "{{{first}: ...}}" (and {", ".join(more)}), or "[{{...}}, {{...}}]"'
    if inspect.isclass(kind) and inspect.isabstract(kind):
        names = sorted(cls.__name__ for cls in _below(kind) if not inspect.isabstract(cls))
        many_of = f'{option} "[{{class_path: {names[0]}, init_args: {{...}}}}, ...]"'
        return f"a class or a list: {option} {names[0]}, or {many_of}; there are {', '.join(names)}"
    what = _WORDS.get(getattr(kind, "__name__", ""), "one")
    return f'{what} or a list: {option} A, or {option} "[A, B]"'


def _below(cls: type[Any]) -> set[type[Any]]:
    return {cls}.union(*map(_below, cls.__subclasses__()))
