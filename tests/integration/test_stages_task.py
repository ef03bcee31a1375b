from types import SimpleNamespace

import lightning as L
import pytest
import torch
from closeness import near
from experiment import DATA
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from stages_lab import pictures

from crafter_pl.cli import main
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError
from crafter_pl.stages import Embedder, GanPrior, IdentityOracle, TaskModel, load_stage

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
    assert "these faces have none" in capsys.readouterr().err


def test_task_refuses_a_single_attribute(tiny, monkeypatch):
    data = tiny.data()
    monkeypatch.setattr(data.faces, "attribute_names", data.attribute_names[:1])
    with pytest.raises(UserError, match="these faces have 1"):
        TaskModel.from_data(data, {})


def test_task_refuses_data_with_other_attributes(tiny):
    stage = load_stage(tiny.ckpt("task"), TaskModel)
    data = tiny.data()
    data.faces.attribute_names = ["tall", "wide"]
    stage._trainer = SimpleNamespace(datamodule=data)
    with pytest.raises(UserError, match="tall, wide"):
        stage.setup("validate")


def test_task_from_a_checkpoint_reads_no_imagenet_weights(tiny, tmp_path):
    content = torch.load(tiny.ckpt("task"), weights_only=True)
    content["hyper_parameters"]["weights"] = "absent.pt"
    torch.save(content, tmp_path / "task.ckpt")
    stage = load_stage(tmp_path / "task.ckpt", TaskModel)
    assert stage.cloud(torch.zeros(1, *stage.feature_shape)).shape == (1, len(tiny.data().attribute_names))
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
    scores = torch.tensor([[0.1, 0.9, 0.3], [0.2, 0.5, 0.4], [0.3, 0.4, 0.1], [0.4, 0.1, 0.9]])
    target = torch.tensor([[0, 1, 1], [0, 0, 1], [1, 1, 1], [1, 0, 1]])
    stage.utility.update(scores, target)
    assert float(stage.utility.compute()) == pytest.approx((1.0 + 0.75) / 2)  # by counting pairs
    stage.utility.reset()
    stage.utility.update(scores[:, [2, 2, 2]], target[:, [2, 2, 2]])
    assert float(stage.utility.compute()) == 0.5


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
    images = data.rows("public_val")["image"]
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

    weights, random = fit("with")
    monkeypatch.setattr(cls, "on_validation_epoch_end", lambda self: None)
    plain, plain_random = fit("without")
    assert torch.equal(random, plain_random)
    assert all(torch.equal(value, plain[key]) for key, value in weights.items())


# Oracle


def test_oracle_classes(tiny):
    stage, data = load_stage(tiny.ckpt("oracle_resnet"), IdentityOracle), tiny.data()
    private, public = data.private_identities, data.public_identities
    assert stage.hparams["identities"] == private.tolist() and stage.private == len(private) == 4
    assert torch.equal(stage.classes(private), torch.arange(4))
    assert torch.equal(stage.classes(public), torch.arange(4, 4 + len(public)))
    assert torch.equal(stage.classes(private.flip(0)), torch.arange(4).flip(0))
    assert stage.logits(pictures()).shape == (4, 4)  # verdicts are over the private people alone
    with pytest.raises(UserError, match=r"'resnet' .*1000000"):
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
