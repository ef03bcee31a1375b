"""How a run shows itself: TensorBoard, and plain lines where there is no terminal."""

import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tqdm import tqdm


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """Logged figures as plain numbers, by name."""
    return {name: float(value) for name, value in sorted(metrics.items())}


class Board(TensorBoardLogger):
    """TensorBoard events straight in the run's folder."""

    def __init__(self, folder: Path, step: int | None = None) -> None:
        # What was logged from the step on at which a run goes on is logged anew: it is not shown twice.
        again: dict[str, Any] = {} if step is None else {"purge_step": step}
        super().__init__(str(folder), name="", version="", default_hp_metric=False, **again)

    def save(self) -> None:
        """Writes no hparams.yaml: `<verb>.yaml` beside it holds every setting."""


class LineProgress(Callback):
    """One plain line at most every `interval` seconds, for logs and pipes, where a moving bar is noise."""

    def __init__(self, name: str, interval: float = 10.0) -> None:
        self.name, self.interval = name, interval
        self.started = self.printed = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Reports within a long epoch."""
        self._say(trainer, f"{self._epoch(trainer)} batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports an epoch; the last one always."""
        values = " ".join(f"{name} {value:.4g}" for name, value in scalars(trainer.callback_metrics).items())
        last = trainer.current_epoch + 1 == trainer.max_epochs
        self._say(trainer, f"{self._epoch(trainer)} {values}", always=last)

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


class Steps:
    """Progress of a loop and the time left: a bar on a terminal, else a line at most every so often.

    Args:
        name: what is being done.
        total: how many steps there are.
        done: how many of them were done before.
        unit: what one step is.
        interval: in seconds.
        quiet: another process shows it.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        unit: str = "",
        interval: float = 10.0,
        quiet: bool = False,
    ) -> None:
        self.name, self.total, self.done, self.unit = name, total, done, unit
        self.interval, self.quiet = interval, quiet
        self.before = done
        self.started = self.printed = time.perf_counter()
        self.bar = (
            tqdm(total=total, initial=done, desc=name, unit=f" {unit}")
            if sys.stderr.isatty() and not quiet
            else None
        )

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self.bar is None:
            print(text, flush=True)
        else:
            tqdm.write(text)

    def step(self, count: int = 1, done_before: bool = False) -> None:
        """Goes on by `count`; work that was done before says nothing about the time left."""
        self.done += count
        self.before += count if done_before else 0
        if self.bar is not None:
            self.bar.update(count)
            return
        now, measured = time.perf_counter(), self.done - self.before
        if measured <= 0 or self.quiet:
            return
        left = (now - self.started) / measured * (self.total - self.done)
        if now - self.printed >= self.interval or (measured == count and left >= self.interval):
            self.printed = now
            print(f"{self.name} {self.done}/{self.total} {self.unit}, {left:.0f} s left", flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self.bar is not None:
            self.bar.close()
