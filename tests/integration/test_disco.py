"""DISCO: which channels are pruned, and that the game reaches the filter."""

import pytest
import torch

from crafter_pl.defenses.baselines.disco import Disco
from crafter_pl.errors import UserError
from crafter_pl.nets import ChannelPruner


@pytest.mark.parametrize(("ratio", "kept"), [(0.0, 20), (0.5, 10), (0.9, 2), (0.99, 1)])
def test_the_share_of_channels_that_is_kept(ratio, kept):
    torch.manual_seed(0)
    pruner, features = ChannelPruner(20, ratio, temperature=1e-4), torch.rand(6, 20, 4, 4)
    mask = pruner.mask(features)
    assert mask.round().sum(1).tolist() == [kept] * 6
    left = pruner(features).flatten(2).abs().sum(2) > 1e-6 * features.flatten(2).sum(2)
    assert left.sum(1).min() >= kept and torch.equal(pruner(features), features * mask[:, :, None, None])


def test_which_channels_depends_on_the_picture():
    torch.manual_seed(0)
    pruner = ChannelPruner(20, 0.5, temperature=1e-3)
    masks = pruner.mask(torch.rand(16, 20, 4, 4) * 10)
    assert len(masks.round().unique(dim=0)) > 1


def test_what_is_pruned_is_nothing_once_it_has_learned():
    """A factor of 0.001 would hide nothing from a decoder that reads float32."""
    torch.manual_seed(0)
    pruner, features = ChannelPruner(20, 0.8).eval(), torch.rand(6, 20, 4, 4) + 0.1
    assert ((pruner(features) != 0).flatten(2).all(2).sum(1) == 4).all()
    for parameter in pruner.score.parameters():
        torch.nn.init.zeros_(parameter)
    assert (pruner(features) != 0).all(), "equal scores: all channels are kept, and not none"


def test_gradients_reach_the_scores_through_the_soft_threshold():
    torch.manual_seed(0)
    pruner = ChannelPruner(20, 0.5)
    assert (pruner(torch.rand(4, 20, 4, 4)) != 0).all()
    pruner(torch.rand(4, 20, 4, 4)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in pruner.parameters())


def test_the_game_moves_the_filter_against_the_decoder(game):
    settings = {"decoder": "paper", "width": 8, "adversary_lr": 0.0, "lambda_": 0.9, "lr": 1e-3}
    stage, logged = game(Disco, steps=10, ratio=0.5, **settings)
    start = game(Disco, steps=0, ratio=0.5, **settings)[0]
    assert logged[-1]["train/decoder_error"] > 1.03 * logged[0]["train/decoder_error"]
    for name in ("pruner", "net"):
        before, after = (list(getattr(s, name).parameters()) for s in (start, stage))
        assert not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    same = zip(start.adversary.parameters(), stage.adversary.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_the_decoder_is_the_filters_business_and_not_the_encoders(game, tiny):
    """Encoder and classifier learn the task alone."""
    stage = game(Disco, steps=0, decoder="paper", width=8, ratio=0.5)[0]
    batch = tiny.data().rows("private_test")
    images = batch["image"]
    loss, figures = stage.defend(stage.features(images), images, batch, torch.tensor(0.0))
    loss.backward()
    assert loss.item() == pytest.approx(-0.5 * figures["decoder_error"].item())
    assert all(p.grad is None for p in stage.net.parameters())
    assert all(p.grad.abs().sum() > 0 for p in stage.pruner.parameters())


@pytest.mark.parametrize("bad", [{"ratio": 1.0}, {"temperature": 0.0}, {"lambda_": 1.0}])
def test_settings_out_of_range(bad, tiny):
    with pytest.raises(UserError, match=f"{next(iter(bad))} {next(iter(bad.values()))} "):
        Disco(tiny.ckpt("task"), **bad)
