import pytest
import torch
from closeness import near
from torch import nn

from crafter_pl.attacks.surrogate import DefenseSurrogate
from crafter_pl.attacks.through_defence import OWN_KEYS, ThroughDefenceAttack
from crafter_pl.attacks.white_box import WhiteBoxAttack
from crafter_pl.defenses.untrained import Untrained
from crafter_pl.nets import Generator, fold_batchnorm

# A defence that is a known map of the feature


class Mixing(Untrained):
    """``protect(X) = 0.4 E + 0.9 E[other channels] + shift`` with ``E = Enc(X)``."""

    def __init__(self, task_ckpt=None):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.order = torch.randperm(64, generator=generator)
        self.shift = torch.randn(64, 1, 1, generator=generator)
        self.indices = []

    def protect(self, images, index, options):
        self.indices += index.tolist()
        features = self.edge_module()(images)
        return 0.4 * features + 0.9 * features[:, self.order] + self.shift


@pytest.fixture(scope="module")
def vivid():
    """A generator of more contrast than the tiny prior, which after two training steps draws one face."""
    torch.manual_seed(0)
    net = Generator("G1", 8, 32, 8)
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(32, 8))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)
    return fold_batchnorm(net)


@pytest.fixture(scope="module")
def mixing(tiny, vivid, tmp_path_factory):
    """That defence in a file, and a surrogate that has learnt it from pictures of the generator."""
    file = tmp_path_factory.mktemp("mixing") / "mixing.ckpt"
    content = torch.load(tiny.ckpt("black_box"), weights_only=True)
    own = {"stage_class": "Mixing", "state_dict": {}, "hyper_parameters": {"task_ckpt": tiny.ckpt("task")}}
    torch.save({**content, **own}, file)
    torch.manual_seed(0)
    stage = DefenseSurrogate(str(file), width=64, blocks=0, hidden=4)
    stage.log = lambda *_, **__: None
    optimizer = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    steps = 200
    for step in range(steps):
        with torch.no_grad():
            images = vivid(torch.randn(16, 8))
            crafted = stage.defense.protect(images, torch.zeros(0), stage.options)
            if step == 0:
                for net in (stage.doing, stage.undoing):
                    net.measure(torch.cat([crafted, stage.encode(images)]))
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        optimizer.zero_grad()
        stage.training_step({"features": crafted, "image": images}, step).backward()
        optimizer.step()
    return stage.eval().requires_grad_(False)


def inversion(tiny, vivid, stage=None, kind=WhiteBoxAttack, **settings):
    """An attack through that generator; on features of the defence that ``stage`` has learnt."""
    attack = kind(amortizer_ckpt="none", **settings)
    plain = getattr(attack, "basic", attack).against(None, tiny.commands)
    plain.prepare("cpu")
    vars(attack).update({name: net for name, net in vars(plain).items() if name not in vars(attack)})
    attack.generator, attack.latent_dim, attack.net = vivid, 8, stage
    return attack


def test_a_known_map_is_no_protection(tiny, vivid, mixing):
    """Through the defence the attack sees nearly what the white-box attack sees without it."""
    with torch.no_grad():
        images = vivid(torch.randn(4, 8, generator=torch.Generator().manual_seed(4)))
        clean = mixing.encode(images)
        crafted = mixing.defense.protect(images, torch.zeros(0), mixing.options)
        change = (crafted - clean).norm()
        assert (mixing.doing(clean) - crafted).norm() < 0.2 * change
        assert (mixing.undoing(crafted) - clean).norm() < 0.2 * change

    def error(found):
        return float((found - images).square().mean())

    search = {"steps": 70, "lr": 0.1, "restarts": 4}
    plain = inversion(tiny, vivid, **search)
    unprotected, protected = error(plain.reconstruct(clean)), error(plain.reconstruct(crafted))
    attack = inversion(tiny, vivid, mixing, ThroughDefenceAttack, **search)
    assert unprotected < 1e-3 and protected > 1e-2
    through = error(attack.reconstruct(crafted))
    assert through < unprotected + 0.1 * protected


def test_the_defence_may_judge_the_starts(tiny, vivid, mixing, monkeypatch):
    """By ``|protect(G(z)) - F|^2``, with keys that are not the data set's."""
    with torch.no_grad():
        crafted = mixing.defense.protect(vivid(torch.randn(3, 8)), torch.zeros(0), mixing.options)
    found, search = {}, {"steps": 1, "restarts": 3, "batch_size": 2, "verify": True}
    for seed in range(2):
        attack = inversion(tiny, vivid, mixing, ThroughDefenceAttack, seed=seed, **search)
        candidates = []
        draw = attack._draw
        monkeypatch.setattr(
            attack, "_draw", lambda *a, draw=draw, to=candidates: to.append(draw(*a)) or to[-1]
        )
        mixing.defense.indices.clear()
        found[seed] = attack.reconstruct(crafted)
        keys = [OWN_KEYS + index for index in (0, 1, 0, 1, 0, 1, 2, 2, 2)]
        assert mixing.defense.indices == keys
        starts = torch.stack([torch.cat([candidates[k], candidates[4 + k]]) for k in range(3)])
        with torch.no_grad():
            made = mixing.defense.protect(starts.flatten(0, 1), torch.zeros(0), mixing.options).view(3, 3, -1)
        wrong = (made - crafted.flatten(1)).square().sum(2)
        best = starts[wrong.argmin(0), torch.arange(3)]
        assert near(found[seed], best, steps=10)
    assert not torch.equal(found[0], found[1])
