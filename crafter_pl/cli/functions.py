"""The verbs that are functions: their options are the function's arguments."""

from __future__ import annotations

import re
from pkgutil import resolve_name
from typing import get_type_hints

from crafter_pl.cli.options import expanded
from crafter_pl.cli.parsing import Parser, verb_parser
from crafter_pl.cli.verbs import FUNCTIONS, POSITIONAL
from crafter_pl.commands import with_bases
from crafter_pl.errors import UserError
from crafter_pl.plugins import import_stages


def parser(verb: str) -> Parser:
    """The options of a verb: its function's arguments, or a YAML file with any of them."""
    import_stages()
    made = verb_parser(verb, allow_abbrev=False)
    made.add_argument("--base", type=str | None, help="in a config: another one, which it builds on")
    positional: set[str | int] = set()
    if verb in POSITIONAL:
        name, text = POSITIONAL[verb]
        made.add_argument(name, nargs="*", type=str, default=[], help=text)
        positional = {name}
    function = resolve_name(FUNCTIONS[verb])
    made.hints = get_type_hints(function)
    made.add_function_arguments(
        function, fail_untyped=False, as_positional=False, sub_configs=True, skip=positional
    )
    return made


def call(args: list[str]) -> None:
    """Runs a command, the verb first, by the function behind it."""
    verb = args[0]
    if verb == "serve" and any(re.match("--tok[a-z]*(=|$)", word) for word in args):
        raise UserError("a token on the command line can be seen by others: give --token_file FILE")
    made = parser(verb)
    config = made.instantiate(expanded(made.parse_args(with_bases(args)[1:])))
    del config["config"], config["base"]
    resolve_name(FUNCTIONS[verb])(**config)
