"""Hybrid inversion: pixels from the decoder's picture on."""

import json

import pytest
import torch
from closeness import near
from torch import nn

from crafter_pl.attacks import DecoderAttack, HybridAttack
from crafter_pl.attacks.hybrid import total_variation
from crafter_pl.errors import UserError
from crafter_pl.stages import sha256


class Grey(nn.Module):
    def reconstruct(self, features):
        return torch.full((len(features), 3, 4, 4), 0.5)


class Overcomplete(nn.Module):
    """A linear encoder of more features than pixels: one picture for each feature."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.register_buffer("matrix", torch.linalg.qr(torch.randn(64, 48, generator=generator)).Q)

    def forward(self, images):
        return (images.flatten(1) @ self.matrix.T).view(-1, 4, 4, 4)


def toy(**settings):
    attack = HybridAttack(**{"steps": 400, "lr": 0.01, "tv": 0.0, **settings})
    attack.device, attack.encoder, attack.decoder = "cpu", Overcomplete(), Grey()
    return attack


def pictures(count=5):
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_pixels_are_recovered_where_the_feature_tells_them():
    images = pictures()
    assert torch.allclose(toy().reconstruct(Overcomplete()(images)), images, atol=2e-3)
    start = toy(steps=0).reconstruct(Overcomplete()(images))
    assert torch.equal(start, torch.full_like(images, 0.5))


def test_pictures_stay_in_range():
    """The encoder is an isometry, so the best picture in range is the nearest one: the clamped one."""
    wild = 3 * pictures() - 1
    found = toy().reconstruct(Overcomplete()(wild))
    assert torch.allclose(found, wild.clamp(0, 1), atol=5e-3) and found.min() >= 0 and found.max() <= 1


def test_total_variation():
    images = torch.zeros(3, 1, 2, 3)
    images[1, 0, 0, 0], images[2, 0, :, 2] = 0.6, 1.0
    expected = torch.tensor([0.0, 0.6 / 3 + 0.6 / 4, 0 / 3 + 2 / 4])
    assert torch.allclose(total_variation(images), expected)
    features = Overcomplete()(pictures())
    rough, smooth, flat = (toy(tv=tv).reconstruct(features) for tv in (0.0, 0.01, 100.0))
    assert (total_variation(smooth) < 0.95 * total_variation(rough)).all()
    assert (total_variation(flat) < 0.05 * total_variation(rough)).all()


class Rough(nn.Module):
    """No two neighbouring pixels are equal: at a tie rounding chooses the total variation's subgradient."""

    def reconstruct(self, features):
        return features.flatten(1)[:, :48].sigmoid().view(-1, 3, 4, 4)


def test_neighbours_do_not_matter():
    features = Overcomplete().double()(pictures().double())

    def found(features, **settings):
        attack = toy(steps=15, tv=0.01, **settings)
        attack.encoder, attack.decoder = attack.encoder.double(), Rough()
        return attack.reconstruct(features)

    whole = found(features)
    assert near(torch.cat([found(row[None], batch_size=2) for row in features]), whole, steps=15)
    assert (whole - Rough().reconstruct(features)).abs().max() > 0.01


def test_real_nets(tiny):
    images = tiny.data().rows("public_val")["image"][:3]
    attack = HybridAttack(steps=20, tv=0.001)
    attack = attack.against(None, tiny.commands)
    attack.prepare("cpu")
    with torch.no_grad():
        features = attack.encoder(images)
    found = attack.reconstruct(features)
    assert found.shape == images.shape and found.min() >= 0 and found.max() <= 1 and not found.requires_grad
    assert torch.equal(attack.reconstruct(features), found)
    decoder = DecoderAttack()
    decoder = decoder.against(None, tiny.commands)
    decoder.prepare("cpu")

    @torch.no_grad()
    def objective(pictures):
        misfit = (attack.encoder(pictures) - features).square().flatten(1).mean(1)
        return misfit + 0.001 * total_variation(pictures)

    assert (objective(found) < objective(decoder.reconstruct(features))).all()
    told = json.loads(json.dumps(attack.describe()))
    assert told["settings"] == {"steps": 20, "lr": attack.lr, "tv": 0.001}
    assert told["checkpoints"] == {stage: sha256(tiny.ckpt(stage)) for stage in ("task", "black_box")}


def test_messages(tiny, tmp_path):
    for bad in ({"steps": -1}, {"lr": 0.0}, {"tv": -0.1}, {"batch_size": 0}):
        with pytest.raises(UserError, match=f"attack hybrid: .*{next(iter(bad))} "):
            HybridAttack(**bad)
    content = torch.load(tiny.ckpt("task"), weights_only=True)
    torch.save({**content, "epoch": 99}, tmp_path / "other.ckpt")
    attack = HybridAttack(task_ckpt=str(tmp_path / "other.ckpt"))
    attack = attack.against(None, tiny.commands)
    with pytest.raises(UserError, match=r"black_box.*other\.ckpt"):
        attack.prepare("cpu")
