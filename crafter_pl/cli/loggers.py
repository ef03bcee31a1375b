"""How a run shows itself: TensorBoard, metrics.csv, and plain lines where there is no terminal."""

import csv
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import TensorBoardLogger

from crafter_pl.files import write_file


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """Logged figures as plain numbers, by name."""
    return {name: float(value) for name, value in sorted(metrics.items())}


def shown(figures: dict[str, float], monitor: str | None, every: bool) -> str:
    """What a person is shown: what picks the best checkpoint, or a loss; ``every``: all, by name."""
    if every:
        return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    names = [monitor, "val/loss", "train/loss", "val/kernel_distance", "emd", *figures]
    main = next((name for name in names if name in figures), None)
    return "" if main is None else f"{main.rpartition('/')[2].replace('_', ' ')} {figures[main]:.4g}"


def whole_epoch(trainer: Trainer) -> bool:
    """Whether the epoch that ends saw all its batches: no limit, callback or signal has cut it short."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


class Board(TensorBoardLogger):
    """TensorBoard events straight in the run's folder."""

    def __init__(self, folder: Path, step: int | None = None) -> None:
        # What was logged from the step on at which a run goes on is logged anew: it is not shown twice.
        super().__init__(str(folder), name="", version="", default_hp_metric=False, purge_step=step)

    def save(self) -> None:
        """Writes no hparams.yaml: `<verb>.yaml` beside it holds every setting."""


class LineProgress(Callback):
    """One plain line at most every `interval` seconds, for logs and pipes, where a moving bar is noise."""

    def __init__(self, name: str, interval: float = 10.0, every: bool = False) -> None:
        self.name, self.interval, self.every = name, interval, every
        self.started = self.printed = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Reports within a long epoch."""
        self._say(trainer, f"{self._epoch(trainer)} batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports an epoch; the last one always."""
        values = shown(scalars(trainer.callback_metrics), getattr(pl_module, "monitor", None), self.every)
        always = trainer.current_epoch + 1 == trainer.max_epochs
        self._say(trainer, f"{self._epoch(trainer)} {values}", always)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Reports the batches done and the time left."""
        done, total = batch_idx + 1, int(sum(trainer.num_predict_batches))
        left = (time.perf_counter() - self.started) / done * (total - done)
        self._say(trainer, f"batch {done}/{total}, {left:.0f} s left", always=done == total)

    def _epoch(self, trainer: Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    def _say(self, trainer: Trainer, text: str, always: bool = False) -> None:
        now = time.perf_counter()
        if trainer.is_global_zero and (always or now - self.printed >= self.interval):
            self.printed = now
            print(f"{self.name} {now - self.started:.0f} s: {text}", flush=True)


def rows_before(epoch: int, path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.csv, at `path`, of the epochs before `epoch`; what is not in the file is none."""
    if epoch == 0 or not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if int(row["epoch"]) < epoch]


class MetricsCSV(Checkpoint):
    """`metrics.csv`: one row an epoch; a resumed run drops the rows of the epochs that it repeats.

    A `Checkpoint` only in order to run after the stage's own `on_train_epoch_end` and before the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started = 0.0
        self.rows: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reads the rows of the epochs before the one that starts now."""
        self.rows = rows_before(trainer.current_epoch, self.path)
        if len(self.rows) < trainer.current_epoch and trainer.is_global_zero:
            print(f"note: {self.path} has lost rows of the epochs before {trainer.current_epoch}", flush=True)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the epoch's clock."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch's row, unless the epoch was cut short."""
        if not whole_epoch(trainer):
            return
        seconds = round(time.perf_counter() - self.started, 3)
        row = {"epoch": trainer.current_epoch, "seconds": seconds, **scalars(trainer.callback_metrics)}
        if not trainer.is_global_zero:
            return
        self.rows.append(row)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [
            ",".join(columns),
            *(",".join(str(row.get(name, "")) for name in columns) for row in self.rows),
        ]
        write_file(self.path, "\n".join(lines) + "\n")
