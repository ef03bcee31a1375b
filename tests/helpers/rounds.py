"""What the tests of the stages that adapt in rounds share."""

import torch

from crafter_pl.cli import main

ROUNDS = ["--trainer.max_epochs", "4", "--model.init_args.epochs_per_round", "2"]  # two rounds of 16 pairs
WHOLE = ["--trainer.limit_train_batches", "1.0"]
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]


def weights(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def fit_in_parts(command, when):
    """Trains in two parts: interrupted "in the second round", or with "added rounds" after fewer at first."""
    if when == "added rounds":
        assert main([*command, "--trainer.max_epochs", "2"]) == 0
    else:
        stop = ["--trainer.callbacks+=tiny_stage.Interrupt", "--trainer.callbacks.epoch=2"]
        assert main([*command, *stop]) == 130
    assert main([*command, "--ckpt_path", "last"]) == 0
