"""Options of the verbs that are functions: one value is a list of one, and what is wrong is said plainly."""

from pkgutil import resolve_name
from typing import get_args, get_origin, get_type_hints

import pytest

from crafter_pl.attacks import DecoderAttack
from crafter_pl.cli.functions import parser
from crafter_pl.cli.verbs import FUNCTIONS, POSITIONAL
from crafter_pl.commands import listed
from crafter_pl.errors import UserError

DATA = ["--data", "configs/small.yaml"]


def read(verb, *args):
    made = parser(verb)
    return made.instantiate(made.parse_args(list(args)))


@pytest.mark.parametrize("verb", sorted(FUNCTIONS))
def test_every_list_option_takes_one_value(verb):
    for name, hint in get_type_hints(resolve_name(FUNCTIONS[verb])).items():
        kinds = (hint, *get_args(hint))
        lists = [kind for kind in kinds if get_origin(kind) is list]
        if lists and name != POSITIONAL.get(verb, ("",))[0]:
            assert get_args(lists[0])[0] in kinds, f"--{name} of {verb} takes a list alone"


def test_one_value_is_a_list_of_one():
    for value in ("runs/x.ckpt", "[runs/x.ckpt]"):
        assert listed(read("audit", *DATA, "--oracles", value).oracles) == ["runs/x.ckpt"]
    assert listed(read("audit", *DATA, "--groups", "Pale_Skin").groups) == ["Pale_Skin"]
    assert listed(read("audit", *DATA, "--features", "[a, b]").features) == ["a", "b"]
    for value in (
        "DecoderAttack",
        "{class_path: DecoderAttack}",
        "[DecoderAttack]",
        "[{class_path: DecoderAttack}]",
    ):
        (attack,) = listed(read("audit", *DATA, "--attacks", value).attacks)
        assert isinstance(attack, DecoderAttack)
    made = read("benchmark", "--audit", "a", "--oracles", "o", "--seeds", "3", "--defenses", "{stage: noise}")
    assert listed(made.seeds) == [3] and listed(made.defenses)[0].stage == "noise"
    assert listed(None) == []


@pytest.mark.parametrize(
    ("verb", "args", "words"),
    [
        (
            "audit",
            ["--attacks", "Nonsense"],
            ["--attacks Nonsense", "no class Nonsense", "[{class_path: ", "DecoderAttack"],
        ),
        ("audit", ["--attacks.name", "x"], ["--attacks.name x", "DecoderAttack"]),
        ("audit", ["--rulers", "[{class_path: Nope}]"], ["no class Nope", "FeatureToID"]),
        ("audit", ["--attacks", "{class_path: DecoderAttack, init_args: {nme: 3}}"], ["nme"]),
        ("audit", ["--data", "nofile.yaml"], ["no file nofile.yaml"]),
        ("audit", ["--bootstrap", "many"], ["--bootstrap many"]),
        ("audit", ["--data.people", "x"], ["--data.people x"]),
        ("protect", ["--faces", "x"], ["one of largest, all, none"]),
        ("protect", ["--margin", "x"], ["--margin x; give a number"]),
        ("benchmark", ["--seeds", "x"], ["--seeds x", '--seeds "[A, B]"']),
        ("benchmark", ["--defenses", "noise"], ["{stage: ...}"]),
        ("export", ["--format", "x"], ["all, torch"]),
    ],
)
def test_what_is_wrong_is_said_in_the_users_words(verb, args, words):
    with pytest.raises(UserError) as error:
        read(verb, *args)
    said = str(error.value)
    assert all(word in said for word in words), said
    assert not any(
        word in said for word in ("<class", "NestedArg", "Union", "Parser key", "Subtypes", "Wrapper")
    )
