"""A folder of configs of the stages in tiny_stage.py, as users have it, and what their runs left."""

import csv

import pytest
import torch
import yaml
from experiment import in_subprocess

from crafter_pl.cli import main

TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 4,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}
DATA = {
    "people": 14,
    "images_per_person": 4,
    "image_size": 8,
    "private_people": 4,
    "min_private_images": 2,
    "test_images": 1,
    "batch_size": 8,
}


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A folder of configs as users have it, and the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "_trainer.yaml").write_text(yaml.safe_dump(TRAINER))
    (folder / "_data.yaml").write_text(yaml.safe_dump(DATA))
    for name in ("Tiny", "Other", "Top"):
        model = {"class_path": f"tiny_stage.{name}"} | (
            {"init_args": {"kill_at": 2}} if name == "Tiny" else {}
        )
        config = {"trainer": "_trainer.yaml", "data": "_data.yaml", "model": model}
        (folder / f"{name.lower()}.yaml").write_text(yaml.safe_dump(config))
    return folder


def fit(name, *more):
    return main(["fit", "--config", f"configs/{name}.yaml", *more])


def weights(run):
    return torch.load(f"runs/{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def metrics(run):
    with open(f"runs/{run}/metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same_run(a, b):
    for key, value in weights(a).items():
        assert torch.equal(value, weights(b)[key]), key
    assert metrics(a) == metrics(b)
    assert [row["epoch"] for row in metrics(a)] == ["0", "1", "2", "3"]


def subprocess_fit(*more, **environment):
    return in_subprocess(["fit", "--config", "configs/tiny.yaml", *more], **environment)
