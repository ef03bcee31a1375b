"""Attacks around another attack: averaging over queries, and inversion through the published defence."""

import itertools
import json

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from crafter_pl.attacks import (
    Attack,
    AveragedAttack,
    DecoderAttack,
    HybridAttack,
    LayerwiseAttack,
    Target,
    ThroughDefenceAttack,
    WhiteBoxAttack,
)
from crafter_pl.attacks.adaptive_black_box import AdaptiveDecoderAttack
from crafter_pl.attacks.through_defence import OWN_KEYS
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.defenses import Crafter, Defense
from crafter_pl.errors import UserError
from crafter_pl.stages import load_stage


class Flat(nn.Module):
    """An encoder that loses nothing: pictures ``(N, 3, 4, 4)`` times an orthogonal matrix."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("matrix", torch.linalg.qr(torch.randn(48, 48, generator=generator)).Q)

    def forward(self, images):
        return (images.flatten(1) @ self.matrix).view(-1, 3, 4, 4)


class Exact(Attack):
    """Inverts `Flat` exactly, within the range of pictures."""

    def __init__(self):
        self.name, self.checkpoints, self.handed = "exact", {}, []

    def prepare(self, device):
        self.encoder = Flat()

    def reconstruct(self, features):
        self.handed.append(features)
        return (features.flatten(1) @ self.encoder.matrix.T).view(-1, 3, 4, 4).clamp(0, 1)

    def settings(self):
        return {"exactly": True}


class Known(Defense):
    """A defence of a known displacement: ``protect(X) = keep * Enc(X) + shift + noise``."""

    def __init__(self, keep=1.0, shift=0.0, noise=0.0):
        super().__init__()
        self.encoder, self.keep, self.shift, self.noise, self.indices = Flat(), keep, shift, noise, []

    def edge_module(self):
        return self.encoder

    def protect(self, images, index):
        self.indices += index.tolist()
        draw = keyed_normal(0, index, 48).view(-1, 3, 4, 4)
        return self.keep * self.encoder(images) + self.shift + self.noise * draw

    def protection(self):
        return {"keep": self.keep, "shift": self.shift, "noise": self.noise}


def pictures(count=5):
    return 0.2 + 0.6 * torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def through(defense, **settings):
    attack = ThroughDefenceAttack(Exact(), **settings)
    attack.aim(None if defense is None else Target({"defense": "known", "retrains": []}, defense))
    attack.prepare("cpu")
    return attack


def error(found, images):
    return (found - images).square().flatten(1).mean(1)


def test_a_constant_displacement_is_undone_in_one_round():
    images, defense = pictures(), Known(shift=0.1)
    features = defense.protect(images, torch.arange(5))
    plain = error(Exact.reconstruct(through(defense).base, features), images)
    found = through(defense, rounds=1).reconstruct(features)
    assert (plain > 3e-3).all() and torch.allclose(found, images, atol=1e-4)


def test_a_contraction_is_undone_round_by_round():
    """``protect`` keeps 0.4 of the feature: the error of a guess shrinks to 0.6 of it a round."""
    images, defense = pictures(), Known(keep=0.4, shift=0.05)
    features = defense.protect(images, torch.arange(5))
    errors = [error(through(defense, rounds=rounds).reconstruct(features), images) for rounds in range(9)]
    for before, later in itertools.pairwise(errors):
        assert torch.allclose(later, 0.36 * before, rtol=0.3)
    assert (errors[8] < 1e-3 * errors[0]).all()
    longer = error(through(defense, rounds=3, step=1.6).reconstruct(features), images)
    assert (longer < 0.2 * errors[3]).all()  # 1 - 1.6 * 0.4 of the error is left by a longer step
    damped = error(through(defense, rounds=3, step=0.5).reconstruct(features), images)
    assert torch.allclose(damped, 0.8**6 * errors[0], rtol=0.3)


def test_the_best_guess_is_kept():
    """With a displacement that grows faster than the feature the iteration diverges: no worse than plain."""
    images, defense = pictures(), Known(keep=-1.5)
    features = defense.protect(images, torch.arange(5))
    attack = through(defense, rounds=4)
    found = attack.reconstruct(features)
    error_of = {}
    for target in attack.base.handed:
        guess = Exact.reconstruct(attack.base, target)
        wrong = (defense.protect(guess, torch.arange(5)) - features).square().flatten(1).sum(1)
        for row in range(5):
            error_of.setdefault(row, []).append((wrong[row].item(), guess[row]))
        if len(error_of[0]) == 5:
            break
    for row, guesses in error_of.items():
        assert torch.allclose(found[row], min(guesses, key=lambda pair: pair[0])[1], atol=1e-6)


def test_noise_averages_over_queries_of_its_own():
    images, defense = pictures(), Known(shift=0.1, noise=0.3)
    features = Known(shift=0.1).protect(images, torch.arange(5))
    defense.indices.clear()
    one = error(through(defense, rounds=1).reconstruct(features), images)
    assert sorted(defense.indices) == sorted(2 * list(range(OWN_KEYS, OWN_KEYS + 5)))
    defense.indices.clear()
    many = error(through(defense, rounds=1, queries=32, batch_size=2).reconstruct(features), images)
    assert len(set(defense.indices)) == 5 * 32 and min(defense.indices) >= OWN_KEYS
    assert many.mean() < 0.3 * one.mean()


def test_neighbours_do_not_matter():
    defense = Known(keep=0.4, shift=0.05)
    features = defense.protect(pictures(), torch.arange(5))
    whole = through(defense, rounds=3).reconstruct(features)
    alone = [through(defense, rounds=3).reconstruct(row[None]) for row in features]
    assert torch.allclose(torch.cat(alone), whole, atol=1e-5)


def test_without_a_defence_it_is_the_plain_inversion():
    features = Flat()(pictures())
    attack = ThroughDefenceAttack(Exact())
    with pytest.raises(UserError, match="not at hand"):
        attack.aim(Target({"defense": "known", "retrains": []}, None))
    attack.aim(None)
    attack.prepare("cpu")
    assert torch.equal(attack.reconstruct(features), Exact.reconstruct(attack.base, features))
    assert len(attack.base.handed) == 2 and "defense" not in attack.settings()


def test_through_crafter(tiny):
    """The real thing on tiny nets: it gets nearer to the features than the inversion that it starts from."""
    defense = load_stage(tiny.ckpt("crafter"), Crafter)
    images = tiny.data().images("public_val")[:4]
    features = defense.protect(images, torch.arange(4)).detach()
    found = {}
    for rounds in (0, 2):
        attack = ThroughDefenceAttack(WhiteBoxAttack(steps=5, restarts=1), rounds=rounds)
        attack.resolve(tiny.folder)
        attack.aim(Target({"defense": "crafter", "retrains": []}, defense))
        attack.prepare("cpu")
        found[rounds] = attack.reconstruct(features)
    assert found[2].shape == images.shape and found[2].min() >= 0 and found[2].max() <= 1
    assert not found[2].requires_grad
    errors = [
        (defense.protect(guess, torch.arange(4)).detach() - features).square().flatten(1).sum(1)
        for guess in found.values()
    ]
    assert (errors[1] <= errors[0] * (1 + 1e-4)).all()
    told = json.loads(json.dumps(attack.describe()))
    assert told["checkpoints"].keys() == {"task", "prior", "amortizer"}
    assert told["settings"]["defense"] == defense.weights_hash()
    assert told["settings"]["defense_settings"] == defense.protection()
    assert told["settings"]["rounds"] == 2 and told["settings"]["base"]["steps"] == 5


# Averaging


def test_the_mean_of_the_queries_is_inverted():
    images, defense = pictures(), Known(noise=0.5)
    queries = torch.stack([defense.protect(images, torch.arange(5) + 100 * k) for k in range(50)])
    attack = AveragedAttack(Exact())
    attack.prepare("cpu")
    seen = attack.observe(queries)
    assert torch.allclose(seen, queries.mean(0)) and seen.shape == queries.shape[1:]
    averaged = error(attack.reconstruct(seen), images)
    first = error(attack.reconstruct(Exact().observe(queries)), images)
    assert averaged.mean() < 0.1 * first.mean()
    assert torch.equal(attack.observe(queries[:1]), queries[0])


def test_wrappers_say_what_they_hold(tiny):
    for attack in (AveragedAttack(), ThroughDefenceAttack(DecoderAttack())):
        attack.resolve(tiny.folder)
        told = json.loads(json.dumps(attack.describe()))
        assert told["checkpoints"] == attack.base.describe()["checkpoints"]
        assert told["settings"]["base"] == {"class": type(attack.base).__name__, **attack.base.settings()}
        target = Target({"defense": "x", "retrains": []}, Known())
        attack.aim(target)
        assert attack.target is target and attack.base.target is target
    assert not AveragedAttack().adaptive and ThroughDefenceAttack().adaptive
    assert AveragedAttack(AdaptiveDecoderAttack()).adaptive


def test_attacks_in_a_config():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attacks", type=list[Attack])
    base = {"class_path": "crafter_pl.attacks.DecoderAttack"}
    entries = [
        {"class_path": f"crafter_pl.attacks.{name}", "init_args": settings}
        for name, settings in {
            "AveragedAttack": {"base": base},
            "ThroughDefenceAttack": {"base": base, "rounds": 2},
            "HybridAttack": {"tv": 0.2},
            "LayerwiseAttack": {"prior_ckpt": "prior_g2", "radii": [0.1], "layer_steps": [5]},
            "WhiteBoxAttack": {"prior_ckpt": "prior_style", "space": "w+", "name": "white_box_style"},
        }.items()
    ]
    made = parser.instantiate(parser.parse_object({"attacks": entries})).attacks
    kinds = (AveragedAttack, ThroughDefenceAttack, HybridAttack, LayerwiseAttack, WhiteBoxAttack)
    assert [type(attack) for attack in made] == list(kinds)
    assert isinstance(made[0].base, DecoderAttack) and isinstance(made[1].base, DecoderAttack)
    for attack in made:
        attack.resolve("runs/e")
    assert made[3].checkpoints["prior"] == "runs/e/prior_g2/checkpoints/best.ckpt"
    assert made[1].checkpoints == {"black_box": "runs/e/black_box/checkpoints/best.ckpt"}


@pytest.mark.parametrize(
    "bad", [{"rounds": -1}, {"step": 0.0}, {"step": 2.5}, {"queries": 0}, {"batch_size": 0}]
)
def test_settings_out_of_range(bad):
    with pytest.raises(UserError, match=f"attack through_defence: .*{next(iter(bad))} "):
        ThroughDefenceAttack(Exact(), **bad)


# A defence with an encoder of its own


def test_a_retrained_encoder_is_the_one_inverted(tiny):
    class Other(nn.Module):
        def forward(self, images):
            return images.mean(1, keepdim=True).repeat(1, 64, 1, 1)[:, :, ::4, ::4]

    defense = Known()
    manifest = {"defense": "other", "retrains": ["encoder"], "defense_sha256": "ab" * 32}
    images = tiny.data().images("public_val")[:2]
    for attack in (WhiteBoxAttack(steps=1, restarts=1), HybridAttack(steps=1), LayerwiseAttack(steps=1)):
        attack.resolve(tiny.folder)
        plain = attack.settings()
        attack.aim_at(Target(manifest, defense, {"encoder": Other()}))
        assert attack.target.defense is None
        attack.prepare("cpu")
        with torch.no_grad():
            assert torch.equal(attack.encoder(images), Other()(images))
        assert attack.settings() == {**plain, "encoder_of": "ab" * 32}
        assert getattr(attack, "amortizer", None) is None
        attack.aim(Target(manifest, None))
        with pytest.raises(UserError, match="the defence other has retrained the encoder"):
            attack.prepare("cpu")
        attack.aim(None)
        attack.prepare("cpu")
        with torch.no_grad():
            assert attack.encoder(images).shape == (2, 64, 8, 8)
        assert attack.settings() == plain
