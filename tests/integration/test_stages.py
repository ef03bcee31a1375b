"""Stages: trained by the command line, rebuilt from their own checkpoints, upstream nets untouched."""

import csv
import hashlib
import json
import shutil
from types import SimpleNamespace
from typing import ClassVar

import lightning as L
import pytest
import torch
from closeness import mean_auc, near
from experiment import DATA, STAGES, Told
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import nn

from crafter_pl.attacks import BlackBox
from crafter_pl.cli import main, run
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.framing import measure_frame
from crafter_pl.defenses import Crafter
from crafter_pl.errors import UserError
from crafter_pl.nets import bf16_is_slow
from crafter_pl.stages import Amortizer, Embedder, GanPrior, IdentityOracle, TaskModel, load_stage, sha256
from crafter_pl.stages import prior as prior_module
from crafter_pl.stages.augment import cutout, degrade, flip, recolour, warp
from crafter_pl.stages.quality import kernel_distance, kid

CLASSES = {
    "task": TaskModel,
    "prior": GanPrior,
    "amortizer": Amortizer,
    "crafter": Crafter,
    "oracle_resnet": IdentityOracle,
    "oracle_plain": IdentityOracle,
    "black_box": BlackBox,
    "embedder": Embedder,
    "embedder_plain": Embedder,
}


def pictures(count=4, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(stage):
    """What others ask a stage for."""
    images = pictures()
    if isinstance(stage, TaskModel):
        return [stage.edge(images), stage.cloud(stage.edge(images))]
    if isinstance(stage, GanPrior):
        z = torch.randn(4, stage.latent_dim, generator=torch.Generator().manual_seed(1))
        return [stage.generator(z), stage.critic(images)]
    if isinstance(stage, IdentityOracle):
        return [stage.logits(images), stage.embed(images)]
    if isinstance(stage, Embedder):
        return [stage.embed(images)]
    if isinstance(stage, BlackBox):
        return [stage.reconstruct(stage.encode(images))]
    if isinstance(stage, Amortizer):
        return [stage(stage.upstream["task"].edge(images))]
    with torch.enable_grad():
        return [Told(stage).protect(images, torch.arange(4)), stage.critic(images).detach()]


def figures(run):
    """The last row of a run's metrics.csv: what was logged."""
    with open(run / "metrics.csv", newline="") as file:
        return {k: float(v) for k, v in list(csv.DictReader(file))[-1].items()}


@pytest.fixture
def watched(monkeypatch):
    """What the trainer of the last command knew in the end."""
    seen = {}
    go = run.go

    def record(cli, loaded):
        stage = go(cli, loaded)
        seen.clear()
        seen.update({k: float(v) for k, v in stage.trainer.callback_metrics.items()})

    monkeypatch.setattr(run, "go", record)
    return seen


# Every stage


@pytest.mark.parametrize("name", STAGES)
def test_rebuilt_from_its_own_checkpoint(name, tiny):
    trained, loaded = tiny.trained[name], load_stage(tiny.ckpt(name), CLASSES[name])
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert trained.state_dict().keys() == loaded.state_dict().keys()
    for key, value in trained.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    made = outputs(loaded)
    assert all(x.std() > 0 and x.isfinite().all() for x in made)
    for mine, other in zip(made, outputs(trained.eval()), strict=True):
        assert torch.equal(mine, other)
    hparams = loaded.hparams
    assert hparams.get("image_size", 32) == 32
    if name == "task":
        assert hparams["attribute_names"] == tiny.data().attribute_names
        assert loaded.feature_shape == (64, 8, 8)


@pytest.mark.parametrize("name", STAGES)
def test_evaluation_after_reload_equals_evaluation_in_fit(name, tiny, watched):
    assert main(tiny.command("validate", name)) == 0
    logged = {k: v for k, v in figures(tiny.folder / name).items() if k.startswith("val/")}
    assert logged and watched.keys() == logged.keys()
    for key, value in logged.items():
        assert watched[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


@pytest.mark.parametrize("name", ["amortizer", "crafter", "black_box"])
def test_upstream_nets_are_frozen_and_elsewhere(name, tiny):
    stage = tiny.trained[name]
    assert {key for key in stage.hparams if key.endswith("_ckpt")} == {f"{k}_ckpt" for k in stage.upstream}
    stage.train()
    for key, upstream in stage.upstream.items():
        assert not any(module.training for module in upstream.modules()), key
        assert not any(p.requires_grad for p in upstream.parameters()), key
        fresh = load_stage(tiny.ckpt(key), CLASSES[key])
        for entry, value in fresh.state_dict().items():
            assert torch.equal(value, upstream.state_dict()[entry]), (key, entry)
        assert stage.upstream_files[key] == (tiny.ckpt(key), sha256(tiny.ckpt(key)))
    own = {"amortizer": {"net"}, "black_box": {"net"}, "crafter": {"critic", "memory", "remembered"}}[name]
    assert {entry.split(".")[0] for entry in stage.state_dict()} == own
    assert {entry.split(".")[0] for entry, _ in stage.named_parameters()} <= own
    stage.double()  # .to() and its like reach them
    assert next(stage.upstream["task"].parameters()).dtype == torch.float64
    stage.float()
    assert next(stage.upstream["task"].parameters()).dtype == torch.float32


def test_checkpoints_say_what_they_were_trained_on(tiny):
    content = torch.load(tiny.ckpt("amortizer"), weights_only=True)
    assert content["stage_class"] == "Amortizer" and content["split_hash"] == tiny.data().split_hash
    expected = {key: [tiny.ckpt(key), sha256(tiny.ckpt(key))] for key in ("task", "prior")}
    assert content["upstream"] == expected


@pytest.mark.parametrize("name", ["task", "amortizer", "oracle_plain", "black_box"])
def test_test_scores_the_audited_pictures(name, tiny, watched):
    assert main(tiny.command("test", name)) == 0
    stage, rows = load_stage(tiny.ckpt(name), CLASSES[name]), tiny.data().rows("private_test")
    images = rows["image"]
    with torch.no_grad():
        if name == "task":
            scores = stage.cloud(stage.edge(images))
            expected = mean_auc(scores, rows["attributes"])
            assert watched["test/mean_auc"] == pytest.approx(expected, abs=1e-6)
        elif name == "amortizer":
            clean = stage.upstream["task"].edge(images)
            error = (stage.render(stage(clean)) - clean).square().flatten(1).sum(1).mean()
            assert watched["test/feature_loss"] == pytest.approx(error.item(), rel=1e-4)
        elif name == "black_box":
            error = (stage.reconstruct(stage.encode(images)) - images).square().mean()
            assert watched["test/l2"] == pytest.approx(error.item(), rel=1e-4)
        else:
            people = rows["identity"].unique()
            named = people[stage.logits(images).argmax(1)]
            accuracy = (named == rows["identity"]).float().mean().item()
            assert watched["test/accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("verb", "name", "words"),
    [
        ("predict", "amortizer", "Amortizer does not predict: a defence does"),
        ("test", "prior", "GanPrior has nothing to test by itself"),
        ("test", "crafter", "Crafter has nothing to test by itself"),
    ],
)
def test_verbs_that_a_stage_has_not(verb, name, words, tiny, capsys):
    assert main(tiny.command(verb, name)) == 2
    assert words in capsys.readouterr().err


# Loading


def changed(source, target, **entries):
    """A checkpoint like `source` with other entries."""
    content = torch.load(source, weights_only=True)
    content.update(entries)
    torch.save(content, target)
    return str(target)


def test_wrong_class_and_missing_file(tiny, tmp_path):
    with pytest.raises(
        UserError, match=r"prior/checkpoints/best\.ckpt is a checkpoint of GanPrior, expected one of TaskM"
    ):
        load_stage(tiny.ckpt("prior"), TaskModel)
    with pytest.raises(UserError, match=r"absent\.ckpt: train the stage 'prior' first"):
        load_stage(tmp_path / "absent.ckpt", GanPrior)
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(UserError, match=r"list\.ckpt is a checkpoint of something else"):
        load_stage(tmp_path / "list.ckpt", GanPrior)


@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "text", "pickle", "noise"])
def test_corrupt_file(damage, tiny, tmp_path):
    whole = open(tiny.ckpt("prior"), "rb").read()
    noise = torch.randint(256, (5000,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    content = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "last byte": whole[:-1],
        "text": b"hello world\n",
        "pickle": b"\x80\x02}q\x00.",
        "noise": noise.numpy().tobytes(),
    }[damage]
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.ckpt is no readable checkpoint"):
        load_stage(path, GanPrior)


def test_layers_that_do_not_fit(tiny, tmp_path):
    content = torch.load(tiny.ckpt("prior"), weights_only=True)
    path = tmp_path / "x.ckpt"
    changed(tiny.ckpt("prior"), path, hyper_parameters={**content["hyper_parameters"], "width": 8})
    with pytest.raises(
        UserError, match=r"x\.ckpt does not fit this version's GanPrior .*train the stage 'prior' again"
    ):
        load_stage(path, GanPrior)
    state = {k: v for k, v in content["state_dict"].items() if not k.startswith("critic.")}
    changed(tiny.ckpt("prior"), path, state_dict=state)
    with pytest.raises(UserError, match=r"x\.ckpt does not fit .*critic\."):
        load_stage(path, GanPrior)


def test_settings_of_another_version(tiny, tmp_path):
    hparams = torch.load(tiny.ckpt("crafter"), weights_only=True)["hyper_parameters"]
    old = {**hparams, "craft": {**hparams["craft"], "double": True}}
    path = changed(tiny.ckpt("crafter"), tmp_path / "x.ckpt", hyper_parameters=old)
    with pytest.raises(UserError, match=r"does not fit this version's Crafter .*'double'"):
        load_stage(path, Crafter)


def test_upstream_that_has_changed(tiny, tmp_path):
    upstream = torch.load(tiny.ckpt("amortizer"), weights_only=True)["upstream"]
    other = changed(tiny.ckpt("prior"), tmp_path / "prior.ckpt", epoch=99)
    above = changed(
        tiny.ckpt("amortizer"),
        tmp_path / "a.ckpt",
        upstream={**upstream, "prior": [other, upstream["prior"][1]]},
    )
    with pytest.raises(UserError) as error:
        load_stage(above, Amortizer)
    message = str(error.value)
    assert "upstream mismatch" in message and above in message and other in message
    assert sha256(other)[:12] in message and upstream["prior"][1][:12] in message
    gone = changed(
        tiny.ckpt("amortizer"), tmp_path / "a.ckpt", upstream={**upstream, "task": ["absent.ckpt", "0" * 64]}
    )
    with pytest.raises(
        UserError, match=r"a\.ckpt was trained on absent\.ckpt \(stage task\), which is missing"
    ):
        load_stage(gone, Amortizer)


def test_resuming_on_another_upstream_checkpoint_is_refused(tiny, tmp_path, capsys):
    """Under another path, so that the command line's comparison of settings cannot see it."""
    fit = ["fit", "--config", tiny.command("fit", "amortizer")[2], "--runs_dir", str(tmp_path)]
    given = [f"--model.init_args.{key}={path}" for key, path in tiny.upstream("task", "prior").items()]
    assert main([*fit, *given]) == 0
    other = changed(tiny.ckpt("prior"), tmp_path / "other.ckpt", epoch=99)
    more = ["--trainer.max_epochs", "2", "--ckpt_path", "last"]
    assert main([*fit, given[0], f"--model.init_args.prior_ckpt={other}", *more]) == 2
    message = capsys.readouterr().err
    assert "upstream mismatch" in message and other in message and tiny.ckpt("prior") in message
    copy = shutil.copy(tiny.ckpt("prior"), tmp_path / "copy.ckpt")  # the same bytes are the same prior
    assert main([*fit, given[0], f"--model.init_args.prior_ckpt={copy}", *more]) == 0


def test_sha256_notices_a_change(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc" * (1 << 20))
    assert sha256(path) == hashlib.sha256(b"abc" * (1 << 20)).hexdigest()
    path.write_bytes(b"abd")
    assert sha256(path) == hashlib.sha256(b"abd").hexdigest()


def test_stages_name_what_they_need(tiny):
    with pytest.raises(
        UserError,
        match=r"Amortizer needs the checkpoint of stage 'prior': give --model\.init_args\.prior_ckpt",
    ):
        Amortizer(task_ckpt=tiny.ckpt("task"))
    with pytest.raises(UserError, match="is a checkpoint of TaskModel, expected one of GanPrior"):
        Amortizer(tiny.ckpt("task"), tiny.ckpt("task"))
    with pytest.raises(UserError, match="loss 'l3' must be l1 or l2"):
        BlackBox(tiny.ckpt("task"), loss="l3")


def test_a_prior_of_another_picture_size(tiny, tmp_path):
    stage = GanPrior(latent_dim=4, width=2, critic_width=2, image_size=64)
    content = torch.load(tiny.ckpt("prior"), weights_only=True)
    content.update(hyper_parameters=dict(stage.hparams), state_dict=stage.state_dict())
    torch.save(content, tmp_path / "large.ckpt")
    with pytest.raises(UserError, match=r"takes pictures of 32 pixels, .*large\.ckpt makes 64"):
        Amortizer(tiny.ckpt("task"), str(tmp_path / "large.ckpt"))


def test_upstream_stages_of_another_picture_size(tiny, capsys):
    """They are trained, so no config is compared; a net of convolutions would take any size."""
    for stage in ("amortizer", "black_box", "crafter"):
        more = ["--name", "large", "--data.image_size", "64"]
        assert main(tiny.command("fit", stage, *more)) == 2
        error = capsys.readouterr().err
        assert f"{tiny.ckpt('task')} (stage task) was trained on pictures of 32 pixels" in error
        assert "--data.image_size 32" in error
    assert load_stage(tiny.ckpt("amortizer"), Amortizer).image_size == 32


# Task


def test_task_refuses_faces_without_attributes(tmp_path, tiny, capsys):
    for person in range(8):
        (tmp_path / "faces" / f"p{person}").mkdir(parents=True)
        for number in range(3):
            face = Image.new("RGB", (32, 32), (30 * person, 80 * number, 60))
            face.save(tmp_path / "faces" / f"p{person}" / f"{number}.png")
    data = ["--data.source", "folder", "--data.root", str(tmp_path / "faces")]
    data += ["--data.min_private_images", "3", "--data.test_images", "1"]
    fit = ["fit", "--config", tiny.command("fit", "task")[2], "--runs_dir", str(tmp_path / "runs"), *data]
    assert main(fit) == 2
    assert "needs two attributes or more, and these faces have none" in capsys.readouterr().err


def test_task_refuses_a_single_attribute(tiny, monkeypatch):
    data = tiny.data()
    monkeypatch.setattr(data.faces, "attribute_names", data.attribute_names[:1])
    with pytest.raises(UserError, match="two attributes or more, and these faces have 1"):
        TaskModel.from_data(data, {})


def test_task_refuses_data_with_other_attributes(tiny):
    stage = load_stage(tiny.ckpt("task"), TaskModel)
    data = tiny.data()
    data.faces.attribute_names = ["tall", "wide"]
    stage._trainer = SimpleNamespace(datamodule=data)
    with pytest.raises(
        UserError, match=r"the data have \['tall', 'wide'\]; train a task model on these data"
    ):
        stage.setup("validate")


def test_task_from_a_checkpoint_reads_no_imagenet_weights(tiny, tmp_path):
    content = torch.load(tiny.ckpt("task"), weights_only=True)
    content["hyper_parameters"]["weights"] = "absent.pt"
    torch.save(content, tmp_path / "task.ckpt")
    stage = load_stage(tmp_path / "task.ckpt", TaskModel)
    assert stage.cloud(torch.zeros(1, *stage.feature_shape)).shape == (1, tiny.data().num_attributes)
    with pytest.raises(UserError, match=r"absent\.pt"):
        TaskModel(weights="absent.pt", attribute_names=["a", "b"], image_size=32)


@pytest.mark.parametrize("cls", [TaskModel, GanPrior, IdentityOracle, Embedder])
def test_sizes_and_people_come_from_the_data_or_are_asked_for(cls, tiny):
    with pytest.raises(UserError, match=f"{cls.__name__} needs "):
        cls()
    told = cls.from_data(tiny.data(), {"public_people": True})
    small = {"latent_dim": 4, "width": 2, "critic_width": 2} if cls is GanPrior else {}
    assert cls(**told, **small).hparams["image_size"] == 32


def test_attributes_of_one_class_do_not_count():
    stage = TaskModel(attribute_names=["a", "b", "c"], image_size=32)
    logged = {}
    stage.log = lambda name, value, **_: logged.update({name: float(value)})
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.2, 0.5, 0.4], [0.3, 0.4, 0.1], [0.4, 0.1, 0.9]])
    target = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 1, 1], [1, 0, 1]])
    stage.auc.update(scores, target)
    stage._log_auc("val/mean_auc")
    assert logged["val/mean_auc"] == pytest.approx((1.0 + 0.75) / 2)  # by counting pairs
    stage.auc.update(scores[:, [2, 2, 2]], target[:, [2, 2, 2]])
    stage._log_auc("val/mean_auc")
    assert logged["val/mean_auc"] == 0.5


# What task and oracle draw


@pytest.mark.parametrize("name", ["task", "oracle_plain", "oracle_resnet"])
def test_grids_are_logged(name, tiny):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tiny.folder / name), size_guidance={"images": 0})
    events.Reload()
    data = tiny.data()
    tags = [f"lowest_highest/{attribute}" for attribute in data.attribute_names[:3]]
    assert sorted(events.Tags()["images"]) == sorted(tags if name == "task" else ["original_named"])
    for tag in events.Tags()["images"]:
        assert (events.Images(tag)[0].width, events.Images(tag)[0].height) == (8 * 33 + 1, 2 * 33 + 1)


def drawn(stage, data):
    """The grids of a stage beside a trainer that has only data: pictures and columns by tag."""
    made = {}
    stage._trainer = SimpleNamespace(datamodule=data)
    stage.log = lambda *_, **__: None
    stage.log_grid = lambda tag, images, columns: made.update({tag: (images, columns)})
    random = torch.random.get_rng_state()
    with torch.no_grad():
        stage.on_validation_epoch_end()
    assert torch.equal(torch.random.get_rng_state(), random) and not stage.training
    return made


@pytest.mark.parametrize("count", [1, 5, 100])
def test_task_draws_the_lowest_and_highest_scores(count, tiny):
    stage, data = load_stage(tiny.ckpt("task"), TaskModel), tiny.data()
    data.splits["public_val"] = data.dataset("public").index[:count]
    stage._log_auc = lambda name: None
    images = data.images("public_val")
    if len(images) > 64:  # evenly spread
        images = images[[place * len(images) // 64 for place in range(64)]]
    with torch.no_grad():
        scores = stage.net(images)
    made = drawn(stage, data)
    assert list(made) == [f"lowest_highest/{name}" for name in data.attribute_names[:3]]
    for number, (grid, columns) in enumerate(made.values()):
        assert columns == min(8, len(images)) and len(grid) == 2 * columns
        with torch.no_grad():
            shown = stage.net(grid)[:, number].view(2, columns)
        ranked = scores[:, number].sort().values
        for row, extremes in zip(shown, (ranked, ranked.flip(0)), strict=True):
            assert near(row, extremes[:columns], at_least=1), "small sums of the net's features"


def test_oracle_draws_whom_it_takes_each_for(tiny):
    stage, data = load_stage(tiny.ckpt("oracle_resnet"), IdentityOracle), tiny.data()
    ((grid, columns),) = drawn(stage, data).values()
    originals, rows = grid[:columns], data.rows("private_test")
    assert columns == 8 and len(grid) == 16
    places = [int((rows["image"] == image).flatten(1).all(1).nonzero()[0]) for image in originals]
    assert set(rows["identity"][places].tolist()) == set(data.private_identities.tolist())  # of everybody
    train = data.rows("private_train")
    with torch.no_grad():
        named = data.private_identities[stage.logits(originals).argmax(1)]
    for person, image in zip(named, grid[columns:], strict=True):
        assert (train["image"][train["identity"] == person] == image).flatten(1).all(1).any()
    data.splits["private_test"] = data.splits["private_test"][:2]  # fewer pictures than places
    data.splits["private_train"] = data.splits["private_train"][:0]  # nobody to show
    ((grid, columns),) = drawn(stage, data).values()
    assert columns == 2 and len(grid) == 4 and not grid[2:].any()


@pytest.mark.parametrize("cls", [TaskModel, IdentityOracle])
def test_drawing_changes_no_training(cls, tiny, tmp_path, monkeypatch):
    """Weights are bit-equal with and without grids."""

    def fit(folder):
        torch.manual_seed(0)
        told = cls.from_data(tiny.data(), {"public_people": True})
        small = {} if cls is TaskModel else {"backbone": "plain", "width": 4, "embedding": 8}
        stage = cls(**told, **small)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=2,
            limit_train_batches=2,
            num_sanity_val_steps=1,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=TensorBoardLogger(tmp_path / folder),
        )
        trainer.fit(stage, FacesDataModule(**DATA))
        return stage.state_dict(), torch.random.get_rng_state()

    (weights, random), without = fit("with"), TaskModel._log_auc
    hook = (lambda self: without(self, "val/mean_auc")) if cls is TaskModel else (lambda self: None)
    monkeypatch.setattr(cls, "on_validation_epoch_end", hook)
    plain, plain_random = fit("without")
    assert torch.equal(random, plain_random)
    assert all(torch.equal(value, plain[key]) for key, value in weights.items())


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
    images = faces.images("public_train")
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
    stage, before = load_stage(run / "checkpoints" / "best.ckpt", GanPrior), tiny.trained["prior"]
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
    expected = kid(FewFeatures(""), fake, tiny.data().images("public_val"))
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


# Oracle


def test_oracle_classes(tiny):
    stage, data = load_stage(tiny.ckpt("oracle_resnet"), IdentityOracle), tiny.data()
    private, public = data.private_identities, data.public_identities
    assert stage.hparams["identities"] == private.tolist() and stage.private == len(private) == 4
    assert torch.equal(stage.classes(private), torch.arange(4))
    assert torch.equal(stage.classes(public), torch.arange(4, 4 + len(public)))
    assert torch.equal(stage.classes(private.flip(0)), torch.arange(4).flip(0))
    assert stage.logits(pictures()).shape == (4, 4)  # verdicts are over the private people alone
    with pytest.raises(UserError, match="oracle 'resnet' does not know person 1000000"):
        stage.classes(torch.tensor([int(private[0]), 1_000_000]))
    with pytest.raises(UserError, match="does not know person -1"):
        stage.classes(torch.tensor([-1]))


def test_oracle_without_public_people(tiny):
    stage = IdentityOracle(public_people=False, identities=[30, 10, 20], image_size=32, width=2, embedding=4)
    other = IdentityOracle(identities=[30, 10], public_identities=[1], image_size=32, width=2)
    assert stage.train_split == "private_train" and other.train_split == "oracle"
    assert torch.equal(stage.classes(torch.tensor([10, 20, 30, 10])), torch.tensor([1, 2, 0, 1]))
    assert len(stage.net.centres) == 3
    assert stage.val_split == "private_test" and stage.monitor is None


def test_oracle_margin_makes_the_right_person_harder(tiny):
    rows = tiny.data().rows("private_test")
    losses = []
    for margin in (0.0, 0.3):
        stage = load_stage(tiny.ckpt("oracle_plain"), IdentityOracle)
        stage.hparams["margin"] = margin
        stage.log = lambda *_, **__: None
        torch.manual_seed(0)
        losses.append(stage.training_step(rows, 0).item())
    assert losses[1] > losses[0] + 1  # 0.3 of a cosine is 6 of a logit at scale 20


# Augmentation


def test_flip_mirrors_some_pictures():
    torch.manual_seed(0)
    images = pictures(40, 8)
    made = flip(images)
    kept, mirrored = (made == images).flatten(1).all(1), (made == images.flip(3)).flatten(1).all(1)
    assert (kept ^ mirrored).all() and 8 < kept.sum() < 32


def test_augmentations_of_no_strength_change_nothing():
    images = pictures(3, 16)
    assert near(warp(images, 0, 0, 0), images) and near(recolour(images, 0), images)
    assert torch.equal(degrade(images, 0), images) and torch.equal(cutout(images, 0), images)


def test_augmentations_stay_in_range_and_differ_from_picture_to_picture():
    torch.manual_seed(0)
    images = pictures(1, 16).expand(12, -1, -1, -1)
    for change in (warp, recolour, degrade, cutout):
        made = change(images)
        assert made.shape == images.shape and made.min() >= 0 and made.max() <= 1
        assert (made != images).any(), change
        assert len({tuple(picture.flatten().tolist()) for picture in made}) > 4, change


def test_warp_shifts_by_its_fraction():
    torch.manual_seed(0)
    image = torch.zeros(200, 3, 33, 33)
    image[:, :, 16, 16] = 1
    made = warp(image, shift=0.25, scale=0, angle=0)
    mass = made[:, 0]
    columns = (mass.sum(1) * torch.arange(33)).sum(1) / mass.sum((1, 2))
    assert (columns - 16).abs().max() < 33 * 0.25 + 1
    assert columns.min() < 16 - 5 and columns.max() > 16 + 5


def test_cutout_leaves_most_of_the_picture():
    torch.manual_seed(0)
    images = pictures(50, 32)
    share = (cutout(images, 1.0, side=0.5) != images).any(1).float().mean((1, 2))
    assert share.max() <= 0.5**2 + 0.05 and share.mean() > 0.01


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_where_the_processor_has_it(fast, tiny, runs_dir, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(run, "go", lambda cli, loaded: seen.append(run.precision(cli)))
    args = ["--experiment", "other", "--trainer.accelerator", "cpu", "--trainer.precision", "bf16-mixed"]
    assert main(tiny.command("fit", "task", *args)) == 0
    assert seen == (["bf16-mixed"] if fast else ["32-true"])
    note = "note: task runs in float32: this processor has no instructions for bf16-mixed\n"
    assert (note in capsys.readouterr().out) is not fast


@pytest.mark.parametrize(("accelerator", "device", "slow"), [("auto", True, False), ("gpu", True, False)])
def test_bfloat16_on_an_accelerator_is_left_alone(accelerator, device, slow, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: device)
    assert bf16_is_slow(accelerator) is slow and bf16_is_slow("cpu")


def test_how_a_face_is_framed_is_in_the_task_models_checkpoint(tiny, tmp_path):
    content = torch.load(tiny.ckpt("task"), weights_only=True)
    measured = measure_frame(tiny.data().images("public_train"))
    assert measured is not None and 0.05 < measured.eye < 0.25 and measured.mouth_height > measured.eye_height
    stage = load_stage(tiny.ckpt("task"), TaskModel)
    assert content["frame"] == pytest.approx(measured, abs=0.03) and list(stage.frame) == content["frame"]
    # One from before frames were measured does without.
    del content["frame"]
    torch.save(content, tmp_path / "old.ckpt")
    assert load_stage(tmp_path / "old.ckpt", TaskModel).frame is None


def test_no_face_has_no_frame():
    assert (
        measure_frame(torch.rand(4, 3, 32, 32)) is None and measure_frame(torch.zeros(4, 3, 32, 32)) is None
    )


def test_a_stage_below_two_others_is_loaded_once(tiny):
    """Within one stage; another one has nets of its own."""
    one, other = (load_stage(tiny.ckpt("crafter"), Crafter) for _ in range(2))
    assert one.upstream["amortizer"].upstream["task"] is one.upstream["task"]
    assert one.upstream["amortizer"].upstream["prior"] is one.upstream["prior"]
    assert other.upstream["task"] is not one.upstream["task"]
