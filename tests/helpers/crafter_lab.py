"""The tiny experiment's Crafter and its variants, with options."""

from dataclasses import replace

import pytest
from experiment import Told

from crafter_pl.crafting.settings import CraftSettings
from crafter_pl.defenses import Answers, Crafter
from crafter_pl.stages import load_stage


@pytest.fixture(scope="module")
def loaded(tiny):
    return load_stage(tiny.ckpt("crafter"), Crafter)


@pytest.fixture
def crafter(loaded):
    """The tiny Crafter with options as `predict --protect.*` gives them."""
    return lambda **options: Told(loaded, **options)


@pytest.fixture
def variant(tiny):
    """`variant(cls, **options)`: another defence by the tiny Crafter; ``craft`` are settings of its own."""

    def configure(cls, craft=None, **options):
        if cls is Answers:
            return Told(
                Answers(
                    tiny.ckpt("task"), tiny.ckpt("prior"), CraftSettings(beta=0.0, task_weight=0.5, steps=3)
                ),
                **options,
            )
        stage = cls(tiny.ckpt("task"), tiny.ckpt("crafter"))
        stage.crafter.craft_settings = replace(stage.crafter.craft_settings, **(craft or {}))
        return Told(stage, **options)

    return configure


@pytest.fixture(scope="module")
def audited(tiny):
    """The 16 pictures of private_test and their indices."""
    rows = tiny.data().rows("private_test")
    return rows["image"], rows["index"]


def distance(a, b):
    """Relative distance of each sample."""
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
