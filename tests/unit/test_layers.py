"""What a part of the package may import; imports in functions and under TYPE_CHECKING count, too."""

import ast
from functools import lru_cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import crafter_pl

ROOT = Path(crafter_pl.__file__).parent


@lru_cache
def imports():
    """The modules that each module of the package imports, by their dotted names."""
    files = {}
    for file in ROOT.rglob("*.py"):
        parts = ["crafter_pl", *file.relative_to(ROOT).with_suffix("").parts]
        files[".".join(parts).removesuffix(".__init__")] = file
    found = {}
    for name, file in files.items():
        given = found.setdefault(name, set())
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                given |= {one.name for one in node.names} & files.keys()
            elif isinstance(node, ast.ImportFrom):
                below = {one.name: f"{node.module}.{one.name}" for one in node.names}
                given |= {full if full in files else node.module for full in below.values()} & files.keys()
        given.discard(name)
    return found


def test_there_is_no_circle():
    TopologicalSorter(imports()).prepare()  # says which one


@pytest.mark.parametrize(
    ("part", "above"),
    [
        ("edge", ("audit", "attacks", "cli", "benchmark", "cloud")),
        ("cloud", ("audit", "attacks", "cli", "benchmark", "edge")),
        ("cli", ("audit", "attacks", "benchmark", "tune", "edge", "cloud")),
        ("data", ("stages", "defenses", "attacks", "audit", "cli")),
        ("nets", ("stages", "defenses", "attacks", "audit", "cli", "data")),
        ("attacks", ("audit", "cli", "benchmark", "tune", "edge", "cloud", "look")),
        ("audit", ("benchmark", "tune", "edge", "look")),
        ("look", ("benchmark", "tune", "cli", "cloud")),
        ("benchmark", ("tune", "edge", "cloud", "look")),
        ("files", ("data", "stages", "cli")),
        ("commands", ("stages", "cli")),
        ("device", ("data", "stages", "cli")),
    ],
)
def test_nothing_imports_upwards(part, above):
    refused = tuple(f"crafter_pl.{one}." for one in above)
    for name, given in imports().items():
        if f"{name}.".startswith(f"crafter_pl.{part}."):
            assert not [one for one in given if f"{one}.".startswith(refused)], name
