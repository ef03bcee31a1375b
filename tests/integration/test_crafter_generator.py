"""The crafting generator: what it sees, whose gradient it learns from, refinement; also test_defenses.py."""

from dataclasses import replace

import pytest
import torch
from closeness import near
from experiment import CONF, Told, in_subprocess
from torch import nn

from crafter_pl.cli import main
from crafter_pl.crafting.craft import craft_gradient, start_crafting
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.defenses import CrafterGenerator, load_defense
from crafter_pl.edge import export
from crafter_pl.errors import UserError
from crafter_pl.nets import CraftingNet


@pytest.fixture
def build(tiny):
    """`build(...)` makes an untrained one on the tiny experiment's Crafter."""

    def go(**settings):
        torch.manual_seed(0)
        settings = {"sees": "features", "beta": 0.1, "width": 8, "start_steps": 2, **settings}
        return CrafterGenerator(**tiny.upstream("task", "crafter"), **settings)

    return go


@pytest.fixture(scope="module")
def faces(tiny):
    return tiny.data().rows("private_test")


def moved(stage):
    """The same with a net that has learned something."""
    torch.manual_seed(1)
    for p in stage.net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return stage


def test_the_net_begins_as_the_identity_and_keeps_samples_apart():
    torch.manual_seed(0)
    net = CraftingNet((6, 8, 8), 5, width=8)
    x, c = torch.randn(3, 6, 8, 8), torch.randn(3, 5)
    assert torch.equal(net(x, c), x)
    for p in net.parameters():
        p.data += 0.05 * torch.randn_like(p)
    net, x, c = net.double(), x.double(), c.double()
    whole = net(x, c)
    assert near(net(x[1:2], c[1:2]), whole[1:2])
    assert (whole - net(x, c.flip(0))).abs()[0].max() > 1e-3  # the condition counts


@pytest.mark.parametrize("side", [4, 7, 16])
def test_the_net_takes_features_of_any_side(side):
    net = CraftingNet((6, side, side), 5, width=8)
    assert net(torch.randn(2, 6, side, side), torch.randn(2, 5)).shape == (2, 6, side, side)


class Constant(nn.Module):
    """A cloud that gives all features one answer."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, features):
        return self.logits.expand(len(features), -1)


def test_one_that_sees_answers_gets_nothing_else_of_the_picture(build, faces):
    stage = moved(build(sees="answers"))
    images, index = faces["image"][:4], faces["index"][:4]
    own, count = Told(stage).protect(images, index), len(stage.task.hparams["attribute_names"])
    assert not torch.equal(own, Told(stage).protect(images.flip(0), index))
    made = []
    for logits in (torch.zeros(1, count), torch.full((1, count), 3.0)):
        nets = replace(stage.nets, classifier=Constant(logits))
        stage.crafter.frozen = lambda *_, nets=nets: nets
        made.append(Told(stage).protect(images, index))
        assert torch.equal(made[-1], Told(stage).protect(torch.rand_like(images), index))
    assert not torch.allclose(*made, atol=1e-4)


@pytest.mark.parametrize("sees", ["features", "answers"])
def test_one_pass_is_a_graph(sees, build, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_TIMED", 1)
    stage = moved(build(sees=sees))
    graph, images, index = stage.edge_graph(stage.options()).eval(), faces["image"][:3], faces["index"][:3]
    noise = keyed_normal(0, index, stage.edge_noise)
    crafted = Told(stage).protect(images, index)
    assert near(graph(images, noise), crafted)
    inputs = {"images": [3, 32, 32], "noise": [stage.edge_noise]}
    export._write(tmp_path, "protect", graph, inputs, onnx=sees == "answers")  # compares what it has written
    program = torch.export.load(tmp_path / "protect.pt2").module()
    assert near(program(images, noise), crafted, steps=10)
    assert stage.edge_graph(stage.options(refine_steps=1)) is None


def test_one_that_sees_features_begins_at_them(build, faces):
    stage = build()
    images, index = faces["image"][:4], faces["index"][:4]
    assert near(Told(stage).protect(images, index), stage.task.edge(images), steps=10)
    stage = moved(stage)
    own = Told(stage).protect(images, index)
    assert not torch.allclose(own, Told(stage).protect(images, index + 100), atol=1e-4)  # other noise


@pytest.mark.parametrize("sees", ["features", "answers"])
def test_its_loss_has_crafters_gradient(sees, build, faces, monkeypatch):
    """With respect to each crafted feature, over the batch's size."""
    stage, seen = moved(build(sees=sees)), {}
    forward = stage.net.forward

    def kept(*args):
        seen["crafted"] = forward(*args)
        seen["x"] = args[0]
        seen["crafted"].retain_grad()
        return seen["crafted"]

    monkeypatch.setattr(stage.net, "forward", kept)
    stage.optimizers = stage.configure_optimizers
    stage.toggled_optimizer = lambda _: torch.enable_grad()
    stage.manual_backward = lambda loss: loss.backward()
    stage.log_dict = lambda *args, **kwargs: None
    batch = {key: value[:4] for key, value in faces.items()}
    monkeypatch.setattr("crafter_pl.defenses.crafter_generator.flip", lambda images: images)
    stage.training_step(batch, 0)
    crafted, x = seen["crafted"].detach(), seen["x"]
    features, answers = stage._pass().clean(batch["image"])
    if sees == "features":
        state = start_crafting(stage.nets, crafted, stage.craft_settings())
        state.clean, state.answers = features, answers
        expected = craft_gradient(stage.nets, stage.crafter.critic, state, stage.craft_settings())
    else:
        variable = crafted.clone().requires_grad_()
        cross = torch.nn.functional.binary_cross_entropy_with_logits(
            stage.nets.classifier(variable), answers, reduction="none"
        )
        loss = stage.hparams["task_weight"] * cross.mean(1).sum()
        loss = loss + stage.hparams["beta"] * (variable - x).square().mean((1, 2, 3)).sum()
        (expected,) = torch.autograd.grad(loss, variable)
    assert torch.allclose(seen["crafted"].grad, expected / 4, atol=1e-6 + 1e-3 * float(expected.abs().max()))
    assert expected.abs().max() > 0


@pytest.mark.parametrize("weight", [0, 0.5])
def test_two_processes_train_one_net(weight, tiny, tmp_path):
    more = ["--trainer.devices", "2", "--trainer.callbacks+=ranks.SameWeights"]
    more += ["--model.init_args.adversary_weight", str(weight), "--trainer.max_epochs", "2"]
    more += ["--trainer.strategy", "ddp_find_unused_parameters_true"] if weight else []
    command = ["fit", "--config", str(CONF / "crafter_generator.yaml"), "--runs_dir", str(tmp_path)]
    for stage in ("task", "crafter"):
        command += [f"--model.init_args.{stage}_ckpt", tiny.ckpt(stage)]
    made = in_subprocess([*command, *more], twin=True)
    assert made.returncode == 0, made.stderr
    run = tmp_path / "synthetic" / "crafter_generator"
    assert (run / "same").is_file()
    learned = load_defense(run / "checkpoints" / "best.ckpt").net.leave[-1].weight
    assert learned.abs().max() > 0, "which are 0 before the first step"


def test_learning_brings_the_clouds_answers_back(game, build, faces, tiny):
    settings = {**tiny.upstream("task", "crafter"), "sees": "answers", "width": 8, "lr": 3e-3, "beta": 0.0}
    _, logged = game(CrafterGenerator, steps=30, **settings)
    assert logged[-1]["train/task_loss"] < 0.7 * logged[0]["train/task_loss"]


@pytest.mark.parametrize("sees", ["features", "answers"])
def test_refinement_is_crafters(sees, build, faces):
    stage = moved(build(sees=sees))
    images, index = faces["image"][:4], faces["index"][:4]
    plain = Told(stage).protect(images, index)
    assert Told(stage).store_name() == f"{sees}-beta0.1"
    three = Told(stage, refine_steps=3)
    refined = three.protect(images, index)
    assert three.store_name() == f"{sees}-beta0.1-refine3" and three.settings()["refine_steps"] == 3
    assert not torch.allclose(plain, refined, atol=1e-4)
    with torch.no_grad():
        _, answers = stage._pass().clean(images)
        cross = [
            torch.nn.functional.binary_cross_entropy(stage.nets.classifier(f).sigmoid(), answers)
            for f in (plain, refined)
        ]
    assert sees == "features" or cross[1] < cross[0]
    assert torch.equal(plain, Told(stage, refine_steps=0).protect(images, index))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sees": "answers", "adversary_weight": 1.0}, "has nothing to hide"),
        ({"width": 12}, "width 12"),
        ({"beta": -1.0}, "beta -1.0"),
    ],
)
def test_settings_that_cannot_be_meant(settings, message, build):
    with pytest.raises(UserError, match=message):
        build(**settings)


def test_refine_steps_below_zero(build):
    with pytest.raises(UserError, match="refine_steps -1"):
        build().options(refine_steps=-1)


def test_crafter_itself_refuses_refine_steps(tiny, tmp_path, capsys):
    more = ["--protect.refine_steps", "3", "--protect.out", str(tmp_path / "store")]
    assert main(tiny.command("predict", "crafter", *more)) == 2
    assert "refine_steps" in capsys.readouterr().err
    assert load_defense(tiny.ckpt("crafter")).stage_name == "crafter"
