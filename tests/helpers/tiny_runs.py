"""What runs of the stages in tiny_stage.py leave; their configs are in tiny_conf.py."""

import csv

import torch
from experiment import in_subprocess

from crafter_pl.cli import main


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
