"""Stages small enough to train in a moment, for test_cli.py; subprocesses import this file by PYTHONPATH."""

import os
import signal
from typing import ClassVar

import torch
from lightning.pytorch import Callback
from torch import nn

from crafter_pl.stages.base import Stage


class Tiny(Stage):
    """Learns the pictures' mean colour from disturbed pictures: every source of randomness matters to it."""

    stage_name: ClassVar[str] = "tiny"
    monitor: ClassVar[str | None] = "val/loss"
    mode: ClassVar[str] = "min"

    def __init__(self, lr: float = 0.01, kill_at: int | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4), nn.Dropout(0.2), nn.Linear(4, 3))

    def on_train_epoch_start(self) -> None:
        self.shift = torch.randn(1).item()

    def training_step(self, batch, batch_idx):
        if self.hparams["kill_at"] == self.current_epoch and os.environ.get("TINY_SIGNAL"):
            os.kill(os.getpid(), getattr(signal, os.environ["TINY_SIGNAL"]))
        images = batch["image"]
        loss = (
            (self.net(images + 0.1 * torch.randn_like(images) + 0.01 * self.shift) - images.mean((2, 3)))
            .pow(2)
            .mean()
        )
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", (self.net(batch["image"]) - batch["image"].mean((2, 3))).pow(2).mean())

    def test_step(self, batch, batch_idx):
        self.log("test/loss", (self.net(batch["image"]) - batch["image"].mean((2, 3))).pow(2).mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class Other(Tiny):
    """A stage of another class, above `Tiny`."""

    stage_name: ClassVar[str] = "other"
    monitor: ClassVar[str | None] = None

    def __init__(self, tiny_ckpt: str | None = None, lr: float = 0.01) -> None:
        super().__init__(lr)
        self.use("tiny", tiny_ckpt, Tiny)


class Top(Tiny):
    """A stage above both."""

    stage_name: ClassVar[str] = "top"

    def __init__(self, tiny_ckpt: str | None = None, other_ckpt: str | None = None, lr: float = 0.01) -> None:
        super().__init__(lr)
        self.use("tiny", tiny_ckpt, Tiny)
        self.use("other", other_ckpt, Other)


class Interrupt(Callback):
    """Ctrl+C in the second batch of an epoch."""

    def __init__(self, epoch: int = 1) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise KeyboardInterrupt


class Stop(Callback):
    """Ends the run in the second batch of the third epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or (trainer.current_epoch == 2 and batch_idx == 1)
