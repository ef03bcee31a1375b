"""Every real stage, tiny: interrupted in an epoch and resumed it ends as if it had never stopped."""

import csv

import pytest
import torch
import yaml
from experiment import CONF, in_subprocess

from crafter_pl.cli import main
from crafter_pl.cli.resume import data_differences, differences
from crafter_pl.commands import passed_on

TRAINER = {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "num_sanity_val_steps": 0}
DATA = {
    "people": 14,
    "images_per_person": 6,
    "image_size": 32,
    "private_people": 4,
    "min_private_images": 4,
    "test_images": 1,
    "batch_size": 8,
}
CRAFT = {"steps": 2, "start_steps": 2, "inner_steps": 1, "iterations": 1, "critic_steps": 1}
STAGES = {
    "task": {"class_path": "TaskModel", "init_args": {"arch": "shufflenet_v2_x0_5", "cut": "maxpool"}},
    "prior": {
        "class_path": "GanPrior",
        "init_args": {"latent_dim": 8, "width": 4, "critic_width": 4, "n_critic": 2},
    },
    "amortizer": {"class_path": "Amortizer", "init_args": {"width": 8}},
    "oracle": {"class_path": "IdentityOracle", "init_args": {"width": 4, "embedding": 8}},
    "black_box": {"class_path": "BlackBox", "init_args": {"width": 8}},
    "crafter": {"class_path": "Crafter", "init_args": {"critic_width": 4, "craft": CRAFT, "replay": 16}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Configs of all stages, and task, prior and amortizer trained upstream."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("resume")
        patch.chdir(folder)
        (folder / "configs").mkdir()
        for name, model in STAGES.items():
            config = {"model": model, "data": DATA, "trainer": TRAINER}
            (folder / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(config))
        assert main(["fit", "--config", "configs/crafter.yaml"]) == 0
        yield folder


def last(run, runs="runs"):
    return torch.load(f"{runs}/synthetic/{run}/checkpoints/last.ckpt", weights_only=True)


def rows(run, runs="runs"):
    with open(f"{runs}/synthetic/{run}/metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("stage", list(STAGES))
def test_resumed_equals_straight(stage, place, monkeypatch):
    monkeypatch.chdir(place)
    fit = ["fit", "--config", f"configs/{stage}.yaml"]
    if stage in ("oracle", "black_box"):  # the others were trained upstream
        assert main(fit) == 0
    stopped = [*fit, "--name", "stopped_" + stage]
    assert main([*stopped, "--trainer.callbacks+=tiny_stage.Interrupt"]) == 130
    assert main([*stopped, "--ckpt_path", "last"]) == 0
    resumed = last("stopped_" + stage)["state_dict"]
    for key, value in last(stage)["state_dict"].items():
        assert torch.equal(value, resumed[key]), key
    assert rows(stage) == rows("stopped_" + stage) and len(rows(stage)) == 3


def test_the_training_order_is_a_stages_own():
    """Upstream stages are trained with the data given, each in its own order, which makes no other split."""
    given = ["fit", "--data", "faces.yaml", "--data.order_seed", "3", "--data.order_seed=3", "--data.seed=1"]
    assert passed_on(given) == ["--data", "faces.yaml", "--data.seed=1"]
    old, new = ({"model": {}, "data": {"seed": 0, "order_seed": seed}} for seed in (None, 3))
    assert data_differences(old, new, "training") == [] and len(differences(old, new)) == 1


def test_killed_gan_fit_resumed_equals_straight(tmp_path):
    fit = ["fit", "--config", str(CONF / "prior.yaml"), "--trainer.max_epochs", "2"]
    killed = in_subprocess([*fit, "--runs_dir", str(tmp_path / "killed"), "--trainer.callbacks+=kill.Kill"])
    assert killed.returncode == -9, killed.stderr
    assert len(rows("prior", tmp_path / "killed")) == 1
    assert not (tmp_path / "killed" / "synthetic" / "prior" / "summary.json").exists()
    assert main([*fit, "--runs_dir", str(tmp_path / "killed"), "--ckpt_path", "last"]) == 0
    assert main([*fit, "--runs_dir", str(tmp_path / "straight")]) == 0
    resumed, straight = (last("prior", tmp_path / runs) for runs in ("killed", "straight"))
    assert resumed["epoch"] == straight["epoch"] == 1
    for key, value in straight["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][key]), key
    for mine, other in zip(straight["optimizer_states"], resumed["optimizer_states"], strict=True):
        for number, state in mine["state"].items():
            assert torch.equal(state["exp_avg_sq"], other["state"][number]["exp_avg_sq"])
    assert rows("prior", tmp_path / "killed") == rows("prior", tmp_path / "straight")
    # The second epoch did something.
    first = torch.load(tmp_path / "straight/synthetic/prior/checkpoints/best.ckpt", weights_only=True)
    assert first["epoch"] == 1 and len(rows("prior", tmp_path / "straight")) == 2


@pytest.mark.parametrize(
    ("lr", "keep", "differ"), [(2e-3, False, []), (1e-3, True, ["model.lr", "data.keep_unlabelled"])]
)
def test_an_option_that_is_younger_than_the_checkpoint_was_at_its_default(lr, keep, differ):
    saved = {"model": {"class_path": "crafter_pl.stages.TaskModel"}, "data": {"source": "lfw"}}
    model = {"class_path": "crafter_pl.stages.TaskModel", "init_args": {"lr": lr}}
    found = differences(saved, {"model": model, "data": {"source": "lfw", "keep_unlabelled": keep}})
    assert [line.partition(":")[0] for line in found] == differ
