"""Noise: its size, its shape, and what it is measured against."""

import pytest
import torch
from experiment import Told

from crafter_pl.defenses.baselines.noise import Noise
from crafter_pl.errors import UserError


@pytest.fixture
def noise(tiny):
    """`noise(kind, scale)`: measured on two unequal batches of private_test."""
    images = tiny.data().rows("private_test")["image"]

    def make(**settings):
        stage = Noise(tiny.ckpt("task"), **settings).eval()
        stage.log = lambda *_: None
        for part in (images[:5], images[5:]):
            stage.training_step({"image": part}, 0)
        return stage

    return make


def test_the_deviation_is_that_of_all_entries(tiny, noise):
    stage = noise()
    with torch.no_grad():
        features = stage.task.edge(tiny.data().rows("private_test")["image"])
    assert stage.deviation == pytest.approx(features.double().std(correction=0).item(), rel=1e-5)


@pytest.mark.parametrize(("kind", "kurtosis"), [("gaussian", 3.0), ("laplace", 6.0)])
def test_size_and_shape(kind, kurtosis, tiny, noise):
    faces = tiny.data().rows("private_test")
    stage = noise(kind=kind, scale=0.7)
    drawn = (
        (Told(stage).protect(faces["image"], faces["index"]) - stage.task.edge(faces["image"]))
        .double()
        .detach()
    )
    unit = drawn / drawn.std()
    assert drawn.std().item() == pytest.approx(0.7 * stage.deviation, rel=0.03)
    assert abs(unit.mean()) < 0.02 and abs(unit.pow(3).mean()) < 0.3
    assert unit.pow(4).mean().item() == pytest.approx(kurtosis, rel=0.12)


def test_no_noise_leaves_the_features(tiny, noise):
    faces = tiny.data().rows("private_test")
    stage = noise(scale=0.0)
    assert torch.equal(Told(stage).protect(faces["image"], faces["index"]), stage.task.edge(faces["image"]))


@pytest.mark.parametrize("bad", [{"kind": "salt"}, {"scale": -1.0}, {"scale": float("inf")}])
def test_settings_out_of_range(bad, tiny):
    with pytest.raises(UserError, match=next(iter(bad))):
        Noise(tiny.ckpt("task"), **bad)
