"""Layer-wise inversion, and white-box inversion in other latent spaces and through other generators."""

import itertools
import json

import pytest
import torch
from closeness import near
from torch import nn

from crafter_pl.attacks import LayerwiseAttack, WhiteBoxAttack
from crafter_pl.errors import UserError
from crafter_pl.stages import GanPrior


class Encoder(nn.Module):
    """A linear encoder that loses nothing: pictures ``(N, 3, 4, 4)`` times an orthogonal matrix."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.matrix = torch.linalg.qr(torch.randn(48, 48, generator=generator)).Q

    def forward(self, images):
        return (images.flatten(1) @ self.matrix).view(-1, 3, 4, 4)


def flat_generator():
    """Two linear blocks: 4 latents -> 20 features -> pictures, which fill 20 of 48 dimensions."""
    torch.manual_seed(3)
    last = nn.Sequential(nn.Linear(20, 48), nn.Unflatten(1, (3, 4, 4)))
    nn.init.normal_(last[0].weight, std=0.1)
    nn.init.constant_(last[0].bias, 0.5)
    return [nn.Linear(4, 20).requires_grad_(False), last.requires_grad_(False)]


def toy(blocks=None, **settings):
    """The attack on nets for which the answer is known."""
    attack = LayerwiseAttack(
        amortizer_ckpt="none", **{"steps": 150, "radii": [1.0], "layer_steps": [200], **settings}
    )
    attack.device, attack.amortizer, attack.enter = "cpu", None, nn.Identity()
    attack.encoder, attack.blocks, attack.latent_dim = Encoder(), blocks or flat_generator(), 4
    attack.generator, attack.step = nn.Sequential(*attack.blocks), 0.05
    return attack


@pytest.fixture(scope="module")
def beyond():
    """Pictures that the last block can draw and the whole generator cannot."""
    first, last = flat_generator()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        inside = first(torch.randn(5, 4, generator=generator))
        off = torch.randn(5, 20, generator=generator)
        off -= (off @ first.weight) @ torch.linalg.pinv(first.weight)  # at right angles to its range
        return last(inside + 0.3 * off)


def error(found, images):
    return (found - images).square().flatten(1).sum(1)


def test_it_leaves_the_range_of_the_generator(beyond):
    features = Encoder()(beyond)
    plain = error(toy(radii=[], layer_steps=[]).reconstruct(features), beyond)
    free = error(toy().reconstruct(features), beyond)
    assert (plain > 1e-2).all() and (free < 0.02 * plain).all()
    # the encoder is an isometry and the blocks are linear: the latent's optimum is a least-squares solution
    first, last = flat_generator()
    whole, bias = last[0].weight @ first.weight, last(first(torch.zeros(1, 4)))
    rest = (beyond - bias).flatten(1).T
    best = (rest - whole @ torch.linalg.lstsq(whole, rest).solution).square().sum(0)
    assert torch.allclose(plain, best, rtol=0.05) and (plain >= best - 1e-4).all()


def test_the_radius_bounds_the_deviation(beyond):
    features = Encoder()(beyond)
    first, last = flat_generator()
    inverse = torch.linalg.pinv(last[0].weight)
    errors = []
    for radius in (0.0, 0.05, 0.2, 1.0):
        attack = toy(radii=[radius])
        found = attack.reconstruct(features)
        latent = attack._search(features, torch.arange(5))
        layer = first(latent)
        deviation = ((found.flatten(1) - last[0].bias) @ inverse.T - layer).abs().sum(1)
        assert (deviation <= radius * layer.abs().sum(1) + 1e-3).all()
        errors.append(error(found, beyond))
    assert all((later <= before + 1e-6).all() for before, later in itertools.pairwise(errors))
    plain = toy(radii=[], layer_steps=[]).reconstruct(features)
    assert torch.allclose(errors[0], error(plain, beyond), atol=1e-5)
    assert (errors[2] < 0.9 * errors[0]).all()


def test_neighbours_do_not_matter(beyond):
    features = Encoder()(beyond)
    settings = {"steps": 20, "layer_steps": [20], "batch_size": 2}
    whole = toy(**settings).reconstruct(features)
    features[2] *= 3
    other = toy(**settings).reconstruct(features)
    assert near(other[[0, 1, 3, 4]], whole[[0, 1, 3, 4]])  # the same shapes, so the same sums
    assert not torch.allclose(other[2], whole[2], atol=1e-3)


# Real generators


@pytest.fixture(scope="module")
def with_prior(tiny, tmp_path_factory):
    """Attacks on the tiny encoder through random generators of any kind."""
    folder = tmp_path_factory.mktemp("priors")

    def make(kind, attack=LayerwiseAttack, **settings):
        path = folder / f"{kind}.ckpt"
        if not path.is_file():
            torch.manual_seed(0)
            stage = GanPrior(generator=kind, latent_dim=6, width=4, critic_width=4, image_size=32)
            with torch.no_grad():
                for _ in range(10):
                    stage.ema.module.train()(2 * torch.randn(16, 6))
            content = torch.load(tiny.ckpt("prior"), weights_only=True)
            content.update(hyper_parameters=dict(stage.hparams), state_dict=stage.state_dict())
            torch.save(content, path)
        built = attack(
            prior_ckpt=str(path),
            **{"amortizer_ckpt": "none", "steps": 10, "restarts": 1, "lr": 0.1, **settings},
        )
        built = built.against(None, tiny.commands)
        built.prepare("cpu")
        return built

    return make


def feature_loss(attack, images, features):
    with torch.no_grad():
        return (attack.encoder(images) - features).square().flatten(1).sum(1)


@pytest.mark.parametrize(
    ("kind", "space"), [("G1", "z"), ("G2", "z"), ("style", "z"), ("style", "w"), ("style", "w+")]
)
def test_all_generators_and_spaces(with_prior, kind, space):
    attack = with_prior(kind, space=space, layer_steps=[5, 5, 5])
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    features = attack.encoder(images)
    found = attack.reconstruct(features)
    assert found.shape == (3, 3, 32, 32) and found.min() >= 0 and found.max() <= 1
    assert not found.requires_grad and torch.equal(attack.reconstruct(features), found)
    white_box = with_prior(kind, WhiteBoxAttack, space=space)
    plain = white_box.reconstruct(features)
    start = with_prior(kind, WhiteBoxAttack, space=space, steps=0).reconstruct(features)
    losses = [feature_loss(attack, pictures, features) for pictures in (start, plain, found)]
    assert (losses[1] < losses[0]).all() and (losses[2] < losses[1]).all()


def test_settings_name_what_changes_a_result(with_prior):
    attack = with_prior("style", space="w+", radii=[0.1], layer_steps=[7], layer_lr=0.3, seed=4)
    told = json.loads(json.dumps(attack.describe()))
    assert told["class"] == "LayerwiseAttack" and told["checkpoints"].keys() == {"task", "prior"}
    assert told["settings"] == {
        "space": "w+",
        "steps": 10,
        "lr": 0.1,
        "restarts": 1,
        "prior_weight": 0.0,
        "seed": 4,
        "amortized": False,
        "radii": [0.1],
        "layer_steps": [7],
        "layer_lr": 0.3,
    }


def test_messages(with_prior):
    for bad in ({"radii": [0.1]}, {"radii": [-1.0, 0, 0]}, {"layer_steps": [1, 1, -1]}, {"layer_lr": 0.0}):
        with pytest.raises(UserError, match=r"layerwise.*radii"):
            LayerwiseAttack(**bad)
    with pytest.raises(UserError, match=r"4 radii.*3 layers"):
        with_prior("G1", radii=[0.1] * 4, layer_steps=[1] * 4)
    with pytest.raises(UserError, match="space 'y'"):
        WhiteBoxAttack(space="y")
    with pytest.raises(UserError, match=r"prior_weight 0.1"):
        WhiteBoxAttack(space="w", prior_weight=0.1)
    with pytest.raises(UserError, match=r"G1.*G2"):
        with_prior("G2", WhiteBoxAttack, space="w+")
