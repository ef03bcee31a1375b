"""What every run does and keeps: its seeds, its checkpoints, summary.json, its config."""

import hashlib
import io
import math
import os
import random
import re
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from crafter_pl.cli.loggers import rows_before, scalars, whole_epoch
from crafter_pl.cli.resume import plain_settings
from crafter_pl.errors import UserError
from crafter_pl.files import new_file, sha256, to_json, write_file
from crafter_pl.memory import peak_memory_mb
from crafter_pl.stages.checkpoints import kept_as

FOR_TRAINING_ALONE = ("optimizer_states", "lr_schedulers")  # two thirds of a checkpoint, with Adam
FOR_USE = "for use"  # `AtomicCheckpointIO`'s storage option: leave these out


def _finite(value: object) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())


class Finite(Callback):
    """Ends `fit` where the loss or a weight is no finite number, before anything of it is kept."""

    def __init__(self, every: int = 50) -> None:
        self.every = every
        self.losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Remembers the loss, and looks now and then: a look waits for the device."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.losses.append(loss.detach())
        if (batch_idx + 1) % self.every == 0:
            self._look(trainer, pl_module, batch_idx + 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks once more before the checkpoint."""
        self._look(trainer, pl_module, trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _look(self, trainer: Trainer, pl_module: LightningModule, batch: int) -> None:
        bad = [not _finite(loss) for loss in self.losses]
        first = batch - len(bad) + bad.index(True) + 1 if any(bad) else batch
        what = "the loss" if any(bad) else "a weight"
        wrong = any(bad) or not all(map(_finite, pl_module.state_dict().values()))
        self.losses = []
        if trainer.strategy.reduce_boolean_decision(wrong, all=False):
            raise UserError(
                f"{what} is no finite number in epoch {trainer.current_epoch + 1} at batch {first}: nothing "
                "of this epoch is kept; give a smaller learning rate (--model.init_args.lr), or "
                "--trainer.precision 32-true"
            )


class EpochStart(Callback):
    """Begins every epoch alike, so that resuming equals not stopping.

    All modules of the stage's own are in train mode, whatever a stage tried out while it was built, and every
    random draw is a function of (seed, epoch, process).

    Stored generator states would not do: a resumed run builds its data loader's iterator, which draws a
    number, before `on_train_epoch_start`, an uninterrupted one after it. The seed travels in the checkpoint.
    Processes draw different numbers (Lightning alone gives all the same).
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def state_dict(self) -> dict[str, Any]:
        """The seed that the run began with."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the seed that the run began with."""
        self.seed = state_dict["seed"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets train mode, and seeds what the stage draws at the start of the epoch."""
        pl_module.train()
        self._seed(trainer, 0)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Seeds the first batch of an epoch, after the data loader's draw."""
        if batch_idx == 0:
            self._seed(trainer, 1)

    def _seed(self, trainer: Trainer, place: int) -> None:
        key = f"{self.seed} {trainer.current_epoch} {trainer.global_rank} {place}"
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)


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


class Summary(Callback):
    """`summary.json` at the end of `fit`: the mark of a finished stage, with its final figures and cost.

    A run that a limit, a callback or a signal has ended early gets none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds_before = 0.0
        self.started = time.perf_counter()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the clock and, where the system allows it, forgets the memory peak of earlier stages."""
        self.started = time.perf_counter()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def state_dict(self) -> dict[str, Any]:
        """The time spent so far, in seconds, over all parts of an interrupted run."""
        return {"seconds": self.seconds_before + time.perf_counter() - self.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Adds the time of the interrupted run."""
        self.seconds_before = state_dict["seconds"]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the summary; a stage adds figures of its own by the attribute `final_metrics` (a dict)."""
        best = self.path.parent / "checkpoints" / "best.ckpt"
        longer = best.with_name("next.ckpt")
        ended = trainer.current_epoch >= (trainer.max_epochs or 0) and whole_epoch(trainer)
        if not trainer.is_global_zero or not ended or not (best.is_file() or longer.is_file()):
            return
        if longer.is_file():
            if best.is_file():  # what was trained on it finds it by its hash
                os.replace(best, kept_as(best, sha256(best)))
            os.replace(longer, best)
        logged: dict[str, Any] = trainer.callback_metrics
        if not logged:  # no epoch was left to run: the run was killed after its last checkpoint
            rows = rows_before(trainer.current_epoch, self.path.parent / "metrics.csv")
            last = rows[-1].items() if rows else ()
            logged = {name: value for name, value in last if value and name not in ("epoch", "seconds")}
        metrics = scalars({**logged, **getattr(pl_module, "final_metrics", {})})
        summary = {
            "stage": getattr(pl_module, "stage_name", type(pl_module).__name__),
            "epochs": trainer.current_epoch,
            "max_epochs": trainer.max_epochs,
            "seconds": round(self.state_dict()["seconds"], 1),
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "best_sha256": sha256(best),
            "monitor": getattr(pl_module, "monitor", None),
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
        }
        write_file(self.path, to_json(summary, indent=2))


class SaveConfig(Callback):
    """The exact config of a verb as `<verb>.yaml`; for fit also in its checkpoints, and split.csv beside it.

    A config that is there already and differs is kept: the new one becomes `<verb>-2.yaml`, and so on. Only
    those of a fit that has left no checkpoint are replaced.
    """

    def __init__(self, config: str, folder: Path, verb: str) -> None:
        self.config, self.folder, self.verb = config, folder, verb

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file."""
        if not trainer.is_global_zero:
            return
        split = self.folder / "split.csv"
        if self.verb == "fit" and not any((self.folder / "checkpoints").glob("*.ckpt")):
            for stale in (self.folder / "fit.yaml", split):
                stale.unlink(missing_ok=True)
        for number in count(1):
            path = self.folder / (f"{self.verb}-{number}.yaml" if number > 1 else f"{self.verb}.yaml")
            if not path.is_file():
                write_file(path, self.config)
            if _without_ckpt_path(path.read_text(encoding="utf-8")) == _without_ckpt_path(self.config):
                break
        if self.verb == "fit" and not split.is_file():
            trainer.datamodule.write_split_csv(split)  # type: ignore[attr-defined]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Puts the settings of model and data into the checkpoint, for `crafter_pl.cli.resume` to compare."""
        settings = plain_settings(self.config)
        checkpoint["config"] = {part: settings[part] for part in ("model", "data")}


def _without_ckpt_path(text: str) -> str:
    return re.sub(r"^ckpt_path:.*$", "", text, flags=re.MULTILINE)
