"""Attacks around another attack: averaging over queries; attacks in configs; encoders of a defence's own."""

import json
from dataclasses import replace
from pathlib import Path

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
from crafter_pl.commands import Commands
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.defenses import Defense
from crafter_pl.errors import UserError


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


def error(found, images):
    return (found - images).square().flatten(1).mean(1)


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
    for attack in (AveragedAttack(), AveragedAttack(DecoderAttack())):
        target = Target({"defense": "x", "retrains": []}, Known())
        bound = attack.against(target, tiny.commands)
        assert bound.target == bound.base.target == replace(target, defense=None)
        assert attack.target is None and attack.base.target is None
        attack = attack.against(None, tiny.commands)
        told = json.loads(json.dumps(attack.describe()))
        assert told["checkpoints"] == attack.base.describe()["checkpoints"]
        held = {"class": type(attack.base).__name__, "version": attack.base.version}
        assert told["settings"]["base"] == {**held, **attack.base.settings()}
    assert not AveragedAttack().adaptive
    assert AveragedAttack(AdaptiveDecoderAttack()).adaptive


def test_attacks_in_a_config():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attacks", type=list[Attack])
    base = {"class_path": "crafter_pl.attacks.DecoderAttack"}
    entries = [
        {"class_path": f"crafter_pl.attacks.{name}", "init_args": settings}
        for name, settings in {
            "AveragedAttack": {"base": base},
            "ThroughDefenceAttack": {"steps": 5, "weight": 2.0, "verify": True},
            "HybridAttack": {"tv": 0.2},
            "LayerwiseAttack": {"prior_ckpt": "prior_g2", "radii": [0.1], "layer_steps": [5]},
            "WhiteBoxAttack": {"prior_ckpt": "prior_style", "space": "w+", "name": "white_box_style"},
        }.items()
    ]
    made = parser.instantiate(parser.parse_object({"attacks": entries})).attacks
    kinds = (AveragedAttack, ThroughDefenceAttack, HybridAttack, LayerwiseAttack, WhiteBoxAttack)
    assert [type(attack) for attack in made] == list(kinds)
    assert isinstance(made[0].base, DecoderAttack)
    assert (made[1].steps, made[1].weight, made[1].verify) == (5, 2.0, True)
    made = [attack.against(None, Commands(Path("runs/e"))) for attack in made]
    assert made[3].checkpoints["prior"] == "runs/e/prior_g2/checkpoints/best.ckpt"
    assert made[0].checkpoints == {"black_box": "runs/e/black_box/checkpoints/best.ckpt"}
    assert made[1].checkpoints.keys() == {"task", "prior", "amortizer"}


# A defence with an encoder of its own


def test_a_retrained_encoder_is_the_one_inverted(tiny):
    class Other(nn.Module):
        def forward(self, images):
            return images.mean(1, keepdim=True).repeat(1, 64, 1, 1)[:, :, ::4, ::4]

    defense = Known()
    manifest = {"defense": "other", "retrains": ["encoder"], "defense_sha256": "ab" * 32}
    images = tiny.data().rows("public_val")["image"][:2]
    for made in (WhiteBoxAttack(steps=1, restarts=1), HybridAttack(steps=1), LayerwiseAttack(steps=1)):
        plain = made.settings()
        attack = made.against(Target(manifest, defense, {"encoder": Other()}), tiny.commands)
        assert attack.target.defense is None
        attack.prepare("cpu")
        with torch.no_grad():
            assert torch.equal(attack.encoder(images), Other()(images))
        assert attack.settings() == {**plain, "encoder_of": "ab" * 32}
        assert getattr(attack, "amortizer", None) is None
        with pytest.raises(UserError, match=r"other .*encoder"):
            made.against(Target(manifest, None), tiny.commands).prepare("cpu")
        attack = made.against(None, tiny.commands)
        attack.prepare("cpu")
        with torch.no_grad():
            assert attack.encoder(images).shape == (2, 64, 8, 8)
        assert attack.settings() == plain
