"""`predict`: a defence over a split of the data, and the writer of its feature store."""

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.store import MANIFEST, shard_done
from crafter_pl.data.writer import StoreWriter
from crafter_pl.defenses.base import Defense
from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.errors import UserError


class Protecting(LightningModule):
    """A defence with its options, as `Trainer.predict` takes it; a `FeatureWriter` writes what it gives."""

    def __init__(self, defense: Defense[Any], options: ProtectOptions) -> None:
        super().__init__()
        self.defense, self.options = defense, options

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> tuple[Tensor, float]:
        """The features of a batch, and the seconds that they took."""
        began = time.perf_counter()
        with torch.inference_mode(False), torch.enable_grad():
            features = self.defense.protect(batch["image"], batch["index"], self.options)
        return features, time.perf_counter() - began


class FeatureWriter(BasePredictionWriter):
    """Writes what `Protecting` gives: a shard a batch, the manifest when all are there.

    Shards that an interrupted run has left are not made again.

    Args:
        defense: what protects.
        options: with which options.
        data: the faces, set up.
        folder: of the store; None is ``features/<split>-<name>`` of ``run_dir``.
        name: how reports call the features; None is the defence's default.
        run_dir: the run's folder.

    Raises:
        UserError: there is no place for the store, or it holds features of other settings.
    """

    def __init__(
        self,
        defense: Defense[Any],
        options: ProtectOptions,
        data: FacesDataModule,
        folder: str | None = None,
        name: str | None = None,
        run_dir: Path | None = None,
    ) -> None:
        super().__init__("batch")
        if folder is None and run_dir is None:
            raise UserError("where should the feature store go? give --protect.out FOLDER")
        name = name or defense.store_name(options) + f"-{options.transport}".removesuffix("-float32")
        place = Path(folder) if folder else Path(run_dir or "", "features", f"{data.predict_split}-{name}")
        about = {**defense.manifest(data.split_hash, data.predict_split, options), "pictures": data.pictures}
        self.writer, self.batches, self.data = StoreWriter(place, about), data.predict_batches(), data
        # What the shards depend on besides the pictures: all of that, and the batch size.
        self.writer.claim(hashlib.sha256(json.dumps([about, data.predict_batch_size]).encode()).hexdigest())

    def missing(self) -> list[int]:
        """The numbers of the batches whose shards are not there."""
        folder = self.writer.folder
        return [n for n, rows in enumerate(self.batches.rows) if not shard_done(folder, n, rows)]

    def finished(self) -> bool:
        """Whether there is nothing left to protect; says so, and writes a manifest that is missing."""
        if self.missing():
            return False
        if (self.writer.folder / MANIFEST).is_file():
            print(f"{self.writer.folder} is complete already", flush=True)
        else:
            self._finish()
        return True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves what is there out of the loader; nobody writes before all processes have looked."""
        missing = self.missing()
        more = trainer.world_size - len(missing)  # a process without a batch would end
        self.data.predict_numbers = missing + missing[:1] * more
        trainer.strategy.barrier("looked")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: tuple[Tensor, float],
        batch_indices: Sequence[int] | None,
        batch: dict[str, Any],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the batch's shard."""
        features, seconds = prediction
        self.writer.write(int(batch["batch"]), features, batch["index"], seconds)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Waits for all processes; the first one writes the manifest, which makes the store complete."""
        trainer.strategy.barrier("protected")
        self.data.predict_numbers = None
        if trainer.is_global_zero:
            self._finish()

    def _finish(self) -> None:
        sizes = {number: len(rows) for number, rows in enumerate(self.batches.rows)}
        self.writer.finish(sizes, cost=self.writer.cost)
        print(f"wrote {sum(sizes.values())} features to {self.writer.folder}", flush=True)
