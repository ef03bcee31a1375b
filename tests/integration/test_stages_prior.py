import json
from types import SimpleNamespace
from typing import ClassVar

import lightning as L
import pytest
import torch
from closeness import near
from experiment import DATA
from stages_lab import figures
from torch import nn

from crafter_pl.cli import main
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.stages import GanPrior, load_stage
from crafter_pl.stages import prior as prior_module
from crafter_pl.stages.quality import kernel_distance, kid

# Prior


class Snapshots(L.Callback):
    """The generator after every step of its own."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        state = {k: v.clone() for k, v in pl_module.live.state_dict().items()}
        if not self.states or any(not torch.equal(v, self.states[-1][k]) for k, v in state.items()):
            self.states.append(state)


def quick_fit(stage, **options):
    """Trains a stage without files; returns the generator's states."""
    snapshots = Snapshots()
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[snapshots],
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **plain,
        **options,
    )
    trainer.fit(stage, FacesDataModule(**DATA))
    return snapshots.states


@pytest.mark.parametrize("kind", ["G1", "style"])
def test_a_small_prior_serves_large_pictures(kind):
    torch.manual_seed(0)
    options = {"latent_dim": 4, "width": 2, "critic_width": 2, "autoencode": 1.0}
    stage = GanPrior(kind, draws=16, image_size=32, **options)
    quick_fit(stage, max_epochs=1, limit_train_batches=2)
    made, z = stage.generator.eval(), torch.randn(3, 4)
    assert made(z).shape == (3, 3, 32, 32)
    state = z
    for block in made.blocks():
        state = block(*state) if isinstance(state, tuple) else block(state)
    enter, draw = made.latent_space("z")
    assert torch.equal(state, made(z)) and torch.equal(draw(enter(z)), made(z))
    assert all(one.isfinite().all() for one in stage.state_dict().values())


def test_gan_ema_is_the_running_mean_of_the_generator():
    torch.manual_seed(0)
    stage = GanPrior(latent_dim=4, width=2, critic_width=2, n_critic=2, ema=0.8, lr=1e-2, image_size=32)
    states = quick_fit(stage, max_epochs=1, limit_train_batches=6)
    # Batches 0, 2 and 4 move the generator; in between only its batch norm sees pictures.
    parameters = {name for name, _ in stage.live.named_parameters()}
    moved = [states[0]]
    for state in states[1:]:
        if any(not torch.equal(state[k], moved[-1][k]) for k in parameters):
            moved.append(state)
    assert len(moved) == 3
    for name in parameters:
        expected = moved[0][name]
        for state in moved[1:]:
            expected = 0.8 * expected + 0.2 * state[name]
        assert near(stage.ema.module.state_dict()[name], expected, steps=3), name
        assert not near(expected, moved[-1][name], steps=3), name
    assert stage.generator is stage.ema.module
    assert not any(p.requires_grad for p in stage.ema.parameters())


def test_gan_warms_up_without_its_critic():
    torch.manual_seed(0)
    options = {"latent_dim": 4, "width": 2, "critic_width": 2, "autoencode": 1.0, "image_size": 32}
    stage = GanPrior(warmup_epochs=1, **options)
    before = {k: v.clone() for k, v in stage.critic.state_dict().items()}
    quick_fit(stage, max_epochs=1, limit_train_batches=2)
    assert all(torch.equal(v, before[k]) for k, v in stage.critic.state_dict().items())
    assert stage.trainer.callback_metrics.keys() == {"train/autoencode", "train/kl"}
    torch.manual_seed(0)
    stage = GanPrior(warmup_epochs=0, **options)
    quick_fit(stage, max_epochs=1, limit_train_batches=2)
    assert any(not torch.equal(v, before[k]) for k, v in stage.critic.state_dict().items())
    assert {"train/emd", "train/penalty", "train/generator"} < stage.trainer.callback_metrics.keys()
    assert GanPrior(**{**options, "autoencode": 0.0}).image_encoder is None


def test_kernel_distance():
    faces = FacesDataModule(**DATA)
    faces.setup()
    images = faces.rows("public_train")["image"]
    half, other = images[: len(images) // 2], images[len(images) // 2 :]
    torch.manual_seed(3)
    first = kernel_distance(half, other)
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), after)  # the caller's random numbers are untouched
    assert torch.equal(first, kernel_distance(half, other))
    assert kernel_distance((half + 0.1).clamp(0, 1), other) > 2 * first.abs()
    assert kernel_distance(torch.rand_like(half), other) > kernel_distance((half + 0.1).clamp(0, 1), other)


class FewFeatures(nn.Module):
    """Instead of Inception: built as it is, and quick."""

    built: ClassVar[list[str]] = []

    def __init__(self, weights):
        super().__init__()
        self.built.append(weights)

    def forward(self, images):
        return torch.cat([images.mean((2, 3)), images.std((2, 3))], 1)


def test_prior_logs_the_kid_at_the_end_of_fit(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(prior_module, "InceptionFeatures", FewFeatures)
    FewFeatures.built.clear()
    command = ["fit", "--config", tiny.command("fit", "prior")[2], "--runs_dir", str(tmp_path)]
    assert main([*command, "--model.init_args.inception", "some.pt"]) == 0
    assert FewFeatures.built == ["some.pt"]
    run, plain = tmp_path / "synthetic" / "prior", tiny.folder / "prior"
    metrics = json.loads((run / "summary.json").read_text())["metrics"]
    assert metrics.pop("val/kid") > 0
    assert metrics == json.loads((plain / "summary.json").read_text())["metrics"]
    assert "val/kernel_distance" in metrics and "val/kid" not in figures(run)
    # Training is the same as without, and a reload reads no weights.
    stage, before = (
        load_stage(file, GanPrior) for file in (run / "checkpoints" / "best.ckpt", tiny.ckpt("prior"))
    )
    assert FewFeatures.built == ["some.pt"] and stage.hparams["inception"] == "some.pt"
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in stage.state_dict().items())
    assert stage.state_dict().keys() == before.state_dict().keys()
    stage._trainer = SimpleNamespace(datamodule=tiny.data(), is_global_zero=True, current_epoch=1, loggers=[])
    stage._inception = (FewFeatures("again"),)
    stage.train()
    stage.on_train_end()
    assert all(module.training for module in stage.ema.modules())
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in stage.state_dict().items())
    z = torch.randn(8, stage.latent_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fake = before.generator.eval()(z)
    expected = kid(FewFeatures(""), fake, tiny.data().rows("public_val")["image"])
    assert stage.final_metrics["val/kid"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("content", [None, b"no weights", {"conv1.weight": torch.zeros(2)}])
def test_prior_refuses_other_weights_than_inceptions(content, tiny, tmp_path, capsys):
    path = tmp_path / "inception.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    command = ["fit", "--config", tiny.command("fit", "prior")[2], "--runs_dir", str(tmp_path / "runs")]
    assert main([*command, "--model.init_args.inception", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and "inception" in message and str(path) in message
    assert not list(tmp_path.rglob("*.ckpt"))


def test_kid_is_the_kernel_distance_of_other_features():
    torch.manual_seed(0)
    one, other = torch.rand(40, 3, 16, 16), torch.rand(30, 3, 16, 16)
    features = FewFeatures("")
    assert abs(kid(features, one, other)) < 1e-4 < kid(features, 0.5 * one, other)
    assert kid(features, one, other) == pytest.approx(
        float(kid(features, one, other, batch_size=7)), abs=1e-6
    )
    x, y = features(0.5 * one), features(other)  # over all pictures, by the formula

    def k(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    same = [(k(a, a).sum() - k(a, a).trace()) / (len(a) * (len(a) - 1)) for a in (x, y)]
    assert kid(features, 0.5 * one, other).item() == pytest.approx(
        float(same[0] + same[1] - 2 * k(x, y).mean()), rel=0.02
    )
