"""The verbs that are functions: their options are its arguments, or the fields of the dataclass it takes."""

import re
from collections.abc import Callable
from dataclasses import is_dataclass
from pkgutil import resolve_name
from typing import Any, get_type_hints

from jsonargparse import ActionConfigFile, Namespace

from crafter_pl.cli.options import expanded
from crafter_pl.cli.parsing import Parser, parser_settings
from crafter_pl.cli.verbs import FUNCTIONS, POSITIONAL
from crafter_pl.commands import with_bases
from crafter_pl.errors import UserError
from crafter_pl.plugins import import_stages


def options_class(function: Callable[..., Any]) -> Any:  # noqa: ANN401 (a class)
    """The dataclass whose fields are the options of a verb's function; None: its arguments are."""
    first, *others = get_type_hints(function).values()
    # The other one is what it returns.
    return first if len(others) == 1 and isinstance(first, type) and is_dataclass(first) else None


def parser(verb: str) -> Parser:
    """The options of a verb, or a YAML file with any of them."""
    import_stages()
    made = Parser(**parser_settings(verb), allow_abbrev=False)
    made.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file with any of these options")
    made.add_argument("--base", type=str | None, help="in a config: another one, which it builds on")
    positional, text = POSITIONAL.get(verb, ("", ""))
    if positional:
        made.add_argument(positional, nargs="*", type=str, default=[], help=text)
    function = resolve_name(FUNCTIONS[verb])
    how: dict[str, Any] = {"fail_untyped": False, "as_positional": False, "sub_configs": True}
    how["skip"] = {positional} - {""}
    if options := options_class(function):
        made.hints = get_type_hints(options)
        made.add_class_arguments(options, instantiate=False, **how)
    else:
        made.hints = get_type_hints(function)
        made.add_function_arguments(function, **how)
    return made


def parsed(args: list[str]) -> tuple[Namespace, Namespace]:
    """The options of the function behind a command: as they were given, and instantiated.

    Raises:
        UserError: an option is wrong, or a config that one builds on.
    """
    made = parser(args[0])
    given = expanded(made.parse_args(with_bases(args)[1:]))
    options = made.instantiate(given)
    del options["config"], options["base"]
    return given, options


def call(args: list[str]) -> None:
    """Runs a command, the verb first, by the function behind it."""
    verb = args[0]
    if verb == "serve" and any(re.match("--tok[a-z]*(=|$)", word) for word in args):
        raise UserError("a token on the command line can be seen by others: give --token_file FILE")
    _, config = parsed(args)
    function = resolve_name(FUNCTIONS[verb])
    options = options_class(function)
    function(options(**config)) if options else function(**config)
