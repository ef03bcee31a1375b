"""CEM: clusters, their loss, and what training does to them."""

import math

import pytest
import torch

from crafter_pl.defenses.baselines.cem import Cem, class_means, cluster_loss
from crafter_pl.errors import UserError


def test_means_of_two_classes_of_two_clusters_each():
    noise = torch.Generator().manual_seed(0)
    true = torch.tensor([[[0.0, 0], [9, 0]], [[0, 9], [9, 9]]])
    classes = torch.arange(2).repeat_interleave(40)
    which = torch.arange(80) % 2
    points = true[classes, which] + 0.1 * torch.randn(80, 2, generator=noise)
    found = class_means(points, classes, 3, 2)
    for number in (0, 1):
        order = found[number, :, 0].argsort()
        assert torch.allclose(found[number][order], true[number], atol=0.1)
    assert torch.equal(found[2], torch.zeros(2, 2))  # nobody is of the third


def test_a_class_of_fewer_points_than_centres():
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = class_means(points, torch.zeros(2, dtype=torch.long), 1, 5)[0]
    assert all(any(torch.allclose(mean, point) for point in points) for mean in found)


def test_the_loss_on_clusters_by_hand():
    """Two clusters, of 3 and 1 members, with mean squares 2 and 0.5 an entry."""
    means = torch.zeros(4, 1, 2)
    points = torch.tensor([[2.0, 0], [0, 2], [2, 0], [1, 0]])
    classes = torch.tensor([0, 0, 0, 1])
    found = cluster_loss(points, means, classes, allowed=0.5, gamma=0.1)
    assert found.item() == pytest.approx(0.75 * (math.log(2.1) - math.log(0.6)), rel=1e-5)
    assert cluster_loss(points, means, classes, allowed=2.5, gamma=0.1) == 0
    split = cluster_loss(points, torch.tensor([[[2.0, 0], [0, 2]]] * 4), classes, allowed=0.1, gamma=0.1)
    assert split.item() == pytest.approx(0.25 * (math.log(0.6) - math.log(0.2)), rel=1e-5)


def test_validation_hears_the_noise(tiny, game):
    stage = game(Cem, steps=0, sigma=0.5)[0]
    seen = []
    stage.net.cloud.register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    batch = tiny.data().rows("private_test")
    with torch.no_grad():
        stage.validation_step(batch, 0)
        quiet = stage.features(batch["image"])
    assert (seen[0] - quiet).std().item() == pytest.approx(0.5, rel=0.1)


def test_training_tightens_the_clusters(tiny, game):
    """With the loss on clusters the features move towards their centres, more than without it."""
    batch = tiny.data().rows("private_test")

    def begin(stage):
        with torch.no_grad():
            points = stage.net.encode(batch["image"]).flatten(1)
        stage._chosen = [0]
        stage._means = class_means(points, stage._class(batch["attributes"]), 2, 2)

    settings = {"sigma": 0.2, "centres": 2, "lr": 1e-3, "decoder": "paper", "width": 8}
    tight, free = (
        [step["train/clusters"] for step in game(Cem, steps=12, begin=begin, entropy=e, **settings)[1]]
        for e in (8.0, 0.0)
    )
    assert tight[-1] < 0.8 * tight[0] and tight[-1] < free[-1]


def test_stacked_on_adversarial_learning_both_losses_count(tiny, game):
    batch = tiny.data().rows("private_test")

    def begin(stage):
        stage._chosen = [0]
        with torch.no_grad():
            points = stage.net.encode(batch["image"]).flatten(1)
        stage._means = class_means(points, stage._class(batch["attributes"]), 2, 2)

    settings = {"sigma": 0.2, "centres": 2, "lr": 1e-3, "decoder": "paper", "width": 8, "entropy": 4.0}
    stage, (logged,) = game(Cem, steps=1, begin=begin, lambda_=0.3, **settings)
    spy, defend = stage.backwards
    expected = 0.7 * logged["train/task"] - 0.3 * logged["train/decoder_error"]
    assert defend == pytest.approx(expected + 4 * logged["train/clusters"], rel=1e-4) and spy > 0
    alone, (logged,) = game(Cem, steps=1, begin=begin, **settings)
    assert len(alone.backwards) == 1 and "train/decoder_error" not in logged


@pytest.mark.parametrize(
    "bad", [{"sigma": 0.0}, {"tau": 0.0}, {"entropy": -1.0}, {"centres": 0}, {"class_attributes": -1}]
)
def test_settings_out_of_range(bad, tiny):
    with pytest.raises(UserError, match=f"{next(iter(bad))} {next(iter(bad.values()))}"):
        Cem(tiny.ckpt("task"), **bad)
