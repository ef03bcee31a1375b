"""Versions: results that change without one being raised are caught."""

import copy
import inspect
import json
from pathlib import Path

import pytest
import versions

import crafter_pl
from crafter_pl.attacks.base import Adversary
from crafter_pl.defenses.base import Defense
from crafter_pl.plugins import import_stages


@pytest.fixture(scope="module")
def found():
    return versions.measured()


@pytest.fixture(scope="module")
def kept():
    return json.loads(versions.FILE.read_text())


def test_no_result_changes_without_a_version(found, kept):
    assert versions.renewed(kept, found) == kept, versions.RENEW


def test_every_defence_and_attack_has_a_version_and_a_case(found):
    import_stages()

    def below(cls):
        return [cls, *(deeper for sub in cls.__subclasses__() for deeper in below(sub))]

    every = {cls for base in (Defense, Adversary) for cls in below(base)} - {Defense, Adversary}
    package = Path(crafter_pl.__file__).parent  # what other tests drop in lies elsewhere
    ours = {cls for cls in every if Path(inspect.getfile(cls)).is_relative_to(package)}
    named = [cls for cls in ours if issubclass(cls, Defense) and "stage_name" in vars(cls)]
    named += [cls for cls in ours if issubclass(cls, Adversary) and not inspect.isabstract(cls)]
    cases = set(found) - {"FacesDataModule"}
    assert {cls.__name__ for cls in named} == cases, f"a case to Lab is missing in {versions.__file__}"
    assert {cls for cls in ours if not cls.__subclasses__()} <= set(named)


def test_a_change_is_caught_and_a_raised_version_renews(found):
    changed = copy.deepcopy(found)
    changed["Noise"]["figures"]["gaussian"][2] += 1e-4
    with pytest.raises(ValueError, match=r"Noise \(gaussian\)"):
        versions.renewed(found, changed)
    changed["Noise"]["version"] += 1
    assert versions.renewed(found, changed) == changed
    rounded = copy.deepcopy(found)
    rounded["Noise"]["figures"]["gaussian"][2] += 1e-6
    assert versions.renewed(found, rounded) == found


def test_figures_see_a_single_value():
    values = versions.keyed("any", 3, 64, 8, 8)
    other = values.clone()
    other[1, 5, 2, 2] += 0.1
    assert versions.changed(versions.figures(values), versions.figures(other))
