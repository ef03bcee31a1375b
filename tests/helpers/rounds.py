"""What the tests of the stages that adapt in rounds share."""

import torch

ROUNDS = ["--trainer.max_epochs", "4", "--model.init_args.epochs_per_round", "2"]  # two rounds of 16 pairs
WHOLE = ["--trainer.limit_train_batches", "1.0"]
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]


def weights(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
