"""Attacks: what they recover, what they are told, what they say about themselves."""

import copy
import json
from pathlib import Path

import pytest
import torch
from closeness import near
from torch import nn
from torch.nn import functional as F

from crafter_pl.attacks import BlackBox, DecoderAttack, Target, WhiteBoxAttack
from crafter_pl.cli import main
from crafter_pl.commands import Commands
from crafter_pl.errors import UserError
from crafter_pl.nets import Generator, fold_batchnorm
from crafter_pl.stages import GanPrior, TaskModel, load_stage, sha256


@pytest.fixture(scope="module")
def white_box(tiny):
    """A prepared white-box attack on the tiny experiment's nets.

    Its prior is a random one of more contrast: after two training steps all faces look alike.
    """
    torch.manual_seed(0)
    vivid = Generator("G1", 8, 32, 8)
    with torch.no_grad():
        for _ in range(20):
            vivid(torch.randn(32, 8))
    for module in vivid.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 2.0)
    vivid = fold_batchnorm(vivid)

    def make(**settings):
        attack = WhiteBoxAttack(**settings)
        attack = attack.against(None, tiny.commands)
        attack.prepare("cpu")
        attack.generator = vivid
        return attack

    return make


@pytest.fixture(scope="module")
def faces_of_the_prior(white_box):
    """Latents, their pictures and their features."""
    attack = white_box(amortizer_ckpt="none")
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        images = attack.generator(z)
        return z, images, attack.encoder(images)


def feature_loss(attack, images, features):
    with torch.no_grad():
        return (attack.encoder(images) - features).square().flatten(1).sum(1)


def test_white_box_recovers_the_latents_picture(white_box, faces_of_the_prior):
    _, images, features = faces_of_the_prior
    attack = white_box(steps=120, lr=0.1, restarts=6, amortizer_ckpt="none")
    found = attack.reconstruct(features)
    assert found.shape == images.shape and 0 <= found.min() and found.max() <= 1
    assert images.std(0).mean() > 0.05
    error = (found - images).square().flatten(1).mean(1)
    others = (images - images.mean(0)).square().flatten(1).mean(1)  # what guessing the mean face would cost
    assert (error < 0.02 * others).all(), error / others
    start = white_box(steps=0, restarts=1, amortizer_ckpt="none").reconstruct(features)
    assert (feature_loss(attack, found, features) < 0.01 * feature_loss(attack, start, features)).all()


def test_more_restarts_are_never_worse(white_box, faces_of_the_prior):
    features = faces_of_the_prior[2]
    losses = []
    for restarts in (1, 2, 4):
        attack = white_box(steps=5, lr=0.05, restarts=restarts, amortizer_ckpt="none")
        losses.append(feature_loss(attack, attack.reconstruct(features), features))
    few, some, many = losses
    assert (some <= few * (1 + 1e-5)).all() and (many <= some * (1 + 1e-5)).all()
    assert (many < 0.9 * few).any()  # and they do help somebody


def test_the_first_start_is_the_amortizers(white_box, faces_of_the_prior):
    features = faces_of_the_prior[2]
    attack = white_box(steps=0, restarts=1)
    with torch.no_grad():
        expected = attack.generator(attack.amortizer(features))
    assert near(attack.reconstruct(features), expected)
    cold = white_box(steps=0, restarts=1, amortizer_ckpt="none")
    assert cold.amortizer is None
    assert not torch.allclose(cold.reconstruct(features), expected, atol=1e-2)
    both = white_box(steps=0, restarts=2)
    loss = feature_loss(attack, both.reconstruct(features), features)
    assert (loss <= feature_loss(attack, expected, features) * (1 + 1e-5)).all()


def test_white_box_is_deterministic_and_batched(white_box, faces_of_the_prior):
    features = faces_of_the_prior[2]
    attack = white_box(steps=3, restarts=2)
    assert torch.equal(attack.reconstruct(features), attack.reconstruct(features))
    found = []
    for batch_size in (64, 4):
        attack = white_box(steps=3, restarts=2, batch_size=batch_size)
        attack.generator, attack.encoder = copy.deepcopy(attack.generator).double(), attack.encoder.double()
        attack.amortizer.double()
        found.append(attack.reconstruct(features.double()))
    assert near(*found, steps=3)
    cold = white_box(steps=3, restarts=1, amortizer_ckpt="none").reconstruct(features)
    assert not torch.allclose(
        white_box(steps=3, restarts=1, amortizer_ckpt="none", seed=1).reconstruct(features), cold
    )


def test_a_prior_weight_keeps_latents_small(white_box, faces_of_the_prior):
    """Its result minimises another objective: with an enormous weight the picture of the latent 0."""
    features = faces_of_the_prior[2]
    attack = white_box(steps=60, lr=0.1, restarts=1, amortizer_ckpt="none", prior_weight=1e7)
    with torch.no_grad():
        zero = attack.generator(torch.zeros(1, 8))
    found = attack.reconstruct(features)
    free = white_box(steps=60, lr=0.1, restarts=1, amortizer_ckpt="none").reconstruct(features)
    assert ((found - zero).square().mean((1, 2, 3)) < 0.1 * (free - zero).square().mean((1, 2, 3))).all()


def test_decoder_attack_equals_its_stage(tiny, faces_of_the_prior):
    features = faces_of_the_prior[2]
    attack = DecoderAttack(batch_size=4)
    attack = attack.against(None, tiny.commands)
    attack.prepare("cpu")
    stage = load_stage(tiny.ckpt("black_box"), BlackBox)
    with torch.no_grad():
        expected = torch.cat([stage.reconstruct(features[:4]), stage.reconstruct(features[4:])])
    found = attack.reconstruct(features)
    assert torch.equal(found, expected) and not found.requires_grad
    assert 0 <= found.min() < found.max() <= 1


def test_decoders_that_are_trained_otherwise(tiny):
    """The losses of the paper and ours, against their formulas."""
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for loss, weight in (("l2", 0.0), ("l1", 0.0), ("l1", 0.5)):
        torch.manual_seed(0)
        stage = BlackBox(tiny.ckpt("task"), "paper", 16, loss=loss, feature_weight=weight).eval()
        stage.log = lambda *_, **__: None
        torch.manual_seed(1)
        made = stage.training_step({"image": images}, 0)
        torch.manual_seed(1)
        flipped = torch.where(torch.rand(4, 1, 1, 1) < 0.5, images.flip(3), images)
        with torch.no_grad():
            features = stage.encode(flipped)
            decoded = stage.reconstruct(features)
            expected = F.mse_loss(decoded, flipped) if loss == "l2" else F.l1_loss(decoded, flipped)
            expected = expected + weight * F.mse_loss(stage.encode(decoded), features)
        assert made.item() == pytest.approx(expected.item(), rel=1e-5)
        made.backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0 for p in stage.net.parameters() if p.ndim > 1
        )
        assert all(p.grad is None for p in stage.upstream["task"].parameters())


def test_a_decoder_that_reads_the_answers(tiny, faces_of_the_prior):
    """It is trained, and attacks, like any decoder; its copy of the classifier stays what it is."""
    name = "reads_answers"
    told = ["--model.init_args.reads", "answers", "--name", name]
    assert main(tiny.command("fit", "black_box", *told)) == 0
    attack = DecoderAttack(name=name)
    attack = attack.against(None, tiny.commands)
    attack.prepare("cpu")
    assert attack.reconstruct(faces_of_the_prior[2]).shape == (len(faces_of_the_prior[2]), 3, 32, 32)
    task = load_stage(tiny.ckpt("task"), TaskModel)
    for key, value in task.net.cloud.state_dict().items():
        assert torch.equal(attack.net.net.classifier.state_dict()[key], value), key
    # Where the defence has retrained the cloud, that one answers; a decoder of features does not ask.
    features, turned = faces_of_the_prior[2], Turned(task.net.cloud)
    manifest = {"defense": "other", "retrains": ["encoder", "cloud"], "defense_sha256": "ab" * 32}
    before, described = attack.reconstruct(features), attack.describe()
    attack = attack.against(Target(manifest, None, {"cloud": turned}), tiny.commands)
    assert attack.describe() == {**described, "settings": {"cloud_of": "ab" * 32}}
    attack.prepare("cpu")
    net = attack.net.net
    with torch.no_grad():
        answers = net.standard(turned(features)[:, :, None, None]).flatten(1)
        expected = net.decoder(net.lift(answers))
    assert near(attack.reconstruct(features), expected)
    assert (expected - before).abs().max() > 1e-4
    plain = DecoderAttack()
    plain = plain.against(Target(manifest, None), tiny.commands)
    assert plain.settings() == {}
    plain.prepare("cpu")
    attack = attack.against(Target(manifest, None), tiny.commands)
    with pytest.raises(UserError, match=r"other .*cloud"):
        attack.prepare("cpu")


class Turned(nn.Module):
    """A cloud that says the contrary."""

    def __init__(self, cloud):
        super().__init__()
        self.cloud = cloud

    def forward(self, features):
        return -3 * self.cloud(features)


# What they say


def test_settings_and_description(tiny):
    attack = WhiteBoxAttack(steps=7, lr=0.2, restarts=3, prior_weight=0.1, seed=5, name="strong")
    attack = attack.against(None, tiny.commands)
    expected = {"space": "z", "steps": 7, "lr": 0.2, "restarts": 3}
    expected |= {"prior_weight": 0.1, "seed": 5, "amortized": True}
    assert attack.settings() == expected
    told = json.loads(json.dumps(attack.describe()))
    hashes = {stage: sha256(tiny.ckpt(stage)) for stage in ("task", "prior", "amortizer")}
    held = {"class": "WhiteBoxAttack", "version": attack.version, "settings": expected}
    assert told == {"name": "strong", **held, "checkpoints": hashes}
    cold = WhiteBoxAttack(amortizer_ckpt="none")
    cold = cold.against(None, tiny.commands)
    assert cold.settings()["amortized"] is False and cold.describe()["checkpoints"].keys() == {
        "task",
        "prior",
    }
    decoder = DecoderAttack()
    decoder = decoder.against(None, tiny.commands)
    told = decoder.describe()
    assert told["name"] == "black_box" and told["class"] == "DecoderAttack" and told["settings"] == {}
    assert told["checkpoints"] == {"black_box": sha256(tiny.ckpt("black_box"))}


def test_binding_leaves_given_checkpoints_alone():
    attack = WhiteBoxAttack(prior_ckpt="mine.ckpt")
    attack = attack.against(None, Commands(Path("runs/e")))
    assert attack.checkpoints == {
        "task": "runs/e/task/checkpoints/best.ckpt",
        "prior": "mine.ckpt",
        "amortizer": "runs/e/amortizer/checkpoints/best.ckpt",
    }


@pytest.mark.parametrize("attack", [WhiteBoxAttack, DecoderAttack])
def test_checkpoints_without_an_experiment(attack):
    with pytest.raises(UserError, match=r"'(task|black_box)'"):
        attack().prepare("cpu")


def test_missing_and_wrong_checkpoints(tiny, tmp_path):
    attack = DecoderAttack(str(tmp_path / "absent.ckpt"))
    with pytest.raises(UserError, match=r"absent\.ckpt.*'black_box'"):
        attack.prepare("cpu")
    with pytest.raises(UserError, match=r"TaskModel.*BlackBox"):
        DecoderAttack(tiny.ckpt("task")).prepare("cpu")
    attack = WhiteBoxAttack(prior_ckpt=tiny.ckpt("task"))
    attack = attack.against(None, tiny.commands)
    with pytest.raises(UserError, match=r"TaskModel.*GanPrior"):
        attack.prepare("cpu")
    attack = WhiteBoxAttack()
    attack = attack.against(None, Commands(tmp_path))
    with pytest.raises(UserError, match=r"best\.ckpt.*'task'"):
        attack.prepare("cpu")


def test_checkpoints_that_do_not_belong_together(tiny, tmp_path):
    content = torch.load(tiny.ckpt("prior"), weights_only=True)
    torch.save({**content, "epoch": 99}, tmp_path / "other.ckpt")
    attack = WhiteBoxAttack(prior_ckpt=str(tmp_path / "other.ckpt"))
    attack = attack.against(None, tiny.commands)
    with pytest.raises(UserError, match=r"best\.ckpt.*other\.ckpt"):
        attack.prepare("cpu")
    cold = WhiteBoxAttack(prior_ckpt=str(tmp_path / "other.ckpt"), amortizer_ckpt="none")
    cold = cold.against(None, tiny.commands)
    cold.prepare("cpu")
    large = GanPrior(latent_dim=4, width=2, critic_width=2, image_size=64)
    content.update(hyper_parameters=dict(large.hparams), state_dict=large.state_dict())
    torch.save(content, tmp_path / "large.ckpt")
    attack = WhiteBoxAttack(prior_ckpt=str(tmp_path / "large.ckpt"), amortizer_ckpt="none")
    attack = attack.against(None, tiny.commands)
    with pytest.raises(UserError, match=r"32.*large\.ckpt.*64"):
        attack.prepare("cpu")


@pytest.mark.parametrize("bad", [{"restarts": 0}, {"steps": -1}, {"lr": 0.0}, {"batch_size": 0}])
def test_settings_out_of_range(bad):
    with pytest.raises(UserError, match=f"{next(iter(bad))} "):
        WhiteBoxAttack(**bad)
