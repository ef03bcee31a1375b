"""What training goes on from, and what is used: `last.ckpt` and `best.ckpt`."""

import io
import math
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from crafter_pl.cli.loggers import whole_epoch
from crafter_pl.errors import UserError
from crafter_pl.files import new_file

FOR_TRAINING_ALONE = ("optimizer_states", "lr_schedulers")  # two thirds of a checkpoint, with Adam
FOR_USE = "for use"  # `AtomicCheckpointIO`'s storage option: leave these out


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there: `kill -9` leaves the old one or the new one.

    Lightning's own writer goes through the system's temporary folder: a copy if that is on another disk.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Saves `checkpoint` at `path`; with the option `FOR_USE` without what only training goes on from."""
        if storage_options == FOR_USE:
            checkpoint = {key: part for key, part in checkpoint.items() if key not in FOR_TRAINING_ALONE}
        content = io.BytesIO()  # torch hides what a full disk says while it writes a file
        torch.save(checkpoint, content)
        with new_file(path) as stream:
            stream.write(content.getbuffer())


class BestAndLast(Checkpoint):
    """`best.ckpt` by the stage's own monitor (without one the newest) and `last.ckpt`, after every epoch.

    Training goes on from the last; the best is for use, and has no optimizer's state. Lightning's
    ModelCheckpoint renews last.ckpt only in epochs that improve on the best. A finished run that goes on for
    longer keeps its best until it is finished again: `next.ckpt` takes its place then (`Summary`).
    """

    def __init__(self, folder: Path, monitor: str | None, mode: str, extends: bool = False) -> None:
        self.folder, self.monitor, self.sign = folder, monitor, -1.0 if mode == "min" else 1.0
        self.file = folder / ("next.ckpt" if extends else "best.ckpt")
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, the greater the better."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the best score so far, unless the run goes on in a folder without its best.ckpt."""
        if (self.folder / "best.ckpt").is_file():
            self.best = state_dict["best"]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves both, unless the epoch was cut short; a score that is not a number counts as the worst."""
        if not whole_epoch(trainer):
            return
        better = self.monitor is None
        if self.monitor is not None and self.monitor in trainer.callback_metrics:
            score = self.sign * float(trainer.callback_metrics[self.monitor])
            score = -math.inf if math.isnan(score) else score
            better = trainer.strategy.broadcast(self.best is None or score > self.best)
            self.best = score if better else self.best
        if better:
            trainer.save_checkpoint(self.file, storage_options=FOR_USE)
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A stage that never logs its monitor has no best checkpoint.

        Raises:
            UserError: names the monitor and what is logged.
        """
        if self.monitor is not None and self.best is None and (self.folder / "last.ckpt").is_file():
            raise UserError(
                f"{type(pl_module).__name__} is watched by {self.monitor!r}, which it never logged "
                f"(it logs {', '.join(sorted(trainer.callback_metrics))}): is there a validation pass?"
            )
