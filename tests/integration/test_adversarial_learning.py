"""Adversarial learning: the game's two sides, what leaves its edge, and what it says of itself."""

import csv
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from experiment import Told, in_subprocess

from crafter_pl.cli import main
from crafter_pl.defenses import AdversarialLearning, load_defense
from crafter_pl.errors import UserError
from crafter_pl.stages import TaskModel, load_stage
from crafter_pl.stages.quality import relative_error


def fit_command(tiny, runs_dir, *more):
    config, task = tiny.command("fit", "adversarial_learning")[2], tiny.ckpt("task")
    given = ["--runs_dir", str(runs_dir), "--model.init_args.task_ckpt", task]
    return ["fit", "--config", config, *given, *more]


def checkpoint(runs_dir):
    return runs_dir / "synthetic" / "adversarial_learning" / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """The folder of a run: two batches of eight faces."""
    runs_dir = tmp_path_factory.mktemp("adversarial") / "runs"
    assert main(fit_command(tiny, runs_dir)) == 0
    return runs_dir


@pytest.fixture(scope="module")
def defense(trained):
    return load_defense(checkpoint(trained))


@pytest.fixture(scope="module")
def task(tiny):
    return load_stage(tiny.ckpt("task"), TaskModel)


@pytest.fixture(scope="module")
def faces(tiny):
    return tiny.data().rows("private_test")


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# The game


def test_it_starts_from_the_task_model(tiny, task, faces):
    stage = AdversarialLearning(tiny.ckpt("task"), decoder="paper", width=8)
    assert all(module.training for module in stage.net.modules())  # Lightning trains in the mode it finds
    assert torch.equal(weights(stage.net), weights(task.net)) and stage.net is not stage.task.net
    stage.eval()
    with torch.no_grad():
        assert torch.equal(Told(stage).protect(faces["image"], faces["index"]), task.edge(faces["image"]))
    own = [p for p in stage.parameters() if p.requires_grad]
    assert len(own) == len([*stage.net.parameters(), *stage.adversary.parameters()])


@pytest.fixture
def play(game):
    """`play(steps, ...)`: the game of `conftest.game` with a small decoder."""
    return partial(game, AdversarialLearning, decoder="paper", width=8)


def test_the_decoder_learns_to_invert(play, task):
    stage, logged = play(steps=30, lr=0.0, adversary_lr=3e-3)
    assert torch.equal(weights(stage.net), weights(task.net))
    assert logged[-1]["train/decoder_error"] < min(0.9, 0.8 * logged[0]["train/decoder_error"])


def test_encoder_and_classifier_evade_the_decoder(play, task):
    start = play(steps=0)[0]
    stage, logged = play(steps=10, lambda_=0.9, lr=1e-3, adversary_lr=0.0)
    assert torch.equal(weights(stage.adversary), weights(start.adversary))
    assert logged[-1]["train/decoder_error"] > 1.1 * logged[0]["train/decoder_error"]
    stage, logged = play(steps=10, lambda_=0.0, lr=1e-3, adversary_lr=0.0)
    assert logged[-1]["train/task"] < 0.8 * logged[0]["train/task"]
    for part in ("edge", "cloud"):
        assert not torch.equal(weights(getattr(stage.net, part)), weights(getattr(task.net, part)))
    assert all(p.grad is None for p in stage.task.parameters())


def test_the_loss_is_the_one_it_states(play):
    stage, (logged,) = play(steps=1, lambda_=0.3, adversary_steps=2)
    assert len(stage.backwards) == 3  # the decoder's two, then that of encoder and classifier
    assert stage.backwards[1] < stage.backwards[0]
    expected = 0.7 * logged["train/task"] - 0.3 * logged["train/decoder_error"]
    assert stage.backwards[2] == pytest.approx(expected, rel=1e-5)


def test_relative_error():
    images = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = images.mean(0, keepdim=True).expand_as(images)
    assert relative_error(images, images) == 0 and relative_error(mean, images).item() == pytest.approx(1)
    assert relative_error(0.5 * (images + mean), images).item() == pytest.approx(0.25)


def test_the_decoder_starts_again(tiny, monkeypatch):
    stages = []
    for epoch in (0, 1, 2, 2):
        stage = AdversarialLearning(tiny.ckpt("task"), decoder="paper", width=8, restart_epochs=2)
        optimizer = torch.optim.Adam(stage.adversary.parameters())
        optimizer.state[next(stage.adversary.parameters())] = {"step": 1}
        stage.optimizers = lambda optimizer=optimizer: (None, SimpleNamespace(optimizer=optimizer))
        monkeypatch.setattr(AdversarialLearning, "current_epoch", epoch)
        before, state = weights(stage.adversary), torch.random.get_rng_state()
        stage.on_train_epoch_start()
        assert torch.equal(state, torch.random.get_rng_state())
        assert torch.equal(weights(stage.adversary), before) == (epoch < 2)
        assert bool(optimizer.state) == (epoch < 2)
        stages.append(stage)
    assert torch.equal(weights(stages[2].adversary), weights(stages[3].adversary))  # as on every process


def test_two_processes_train_it(tiny, tmp_path):
    more = ["--trainer.strategy", "ddp_find_unused_parameters_true", "--trainer.devices", "2"]
    made = in_subprocess(fit_command(tiny, tmp_path / "runs", *more), twin=True)
    assert made.returncode == 0, made.stderr
    load_defense(checkpoint(tmp_path / "runs"))


# What it says of itself


def test_validation_figures(trained):
    rows = list(csv.DictReader((checkpoint(trained).parent.parent / "metrics.csv").open()))
    assert 0 <= float(rows[-1]["val/mean_auc"]) <= 1
    assert 0 < float(rows[-1]["val/decoder_l2"]) < 1 and float(rows[-1]["val/decoder_error"]) > 0


def test_a_last_batch_of_one_picture_has_no_share_of_guessing(game, tiny):
    stage = game(AdversarialLearning, steps=0, decoder="paper", width=8)[0]
    batch = tiny.data().rows("private_test")
    for count, said in ((1, {"decoder_l2"}), (2, {"decoder_l2", "decoder_error"})):
        part = {key: value[:count] for key, value in batch.items()}
        with torch.no_grad():
            assert set(stage.watch(stage.features(part["image"]), part)) == said


@pytest.mark.parametrize(
    "bad", [{"lambda_": 1.0}, {"lambda_": -0.1}, {"adversary_steps": 0}, {"restart_epochs": -1}]
)
def test_settings_out_of_range(bad, tiny):
    with pytest.raises(UserError, match=f"{next(iter(bad))} {next(iter(bad.values()))} "):
        AdversarialLearning(tiny.ckpt("task"), **bad)
