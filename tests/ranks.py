"""Callbacks for runs of several processes: what the losses are, and a process that dies."""

import json
import os
from pathlib import Path

from lightning.pytorch import Callback
from torch import distributed as dist

from crafter_pl.attacks.queries import Queries
from crafter_pl.errors import UserError


class Losses(Callback):
    """Writes the loss of every step, averaged over the processes, beside the run."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        loss = outputs["loss"].detach().clone()
        if dist.is_initialized():
            dist.all_reduce(loss)
        self.losses.append(float(loss / trainer.world_size))
        if trainer.is_global_zero:
            (Path(pl_module.run_dir) / "losses.json").write_text(json.dumps(self.losses))


class Die(Callback):
    """Ends one process: by an error, or at once, in training (second epoch) or while it crafts."""

    def __init__(self, how: str, rank: int = 1) -> None:
        self.how, self.rank = how, rank

    def setup(self, trainer, pl_module, stage):
        if self.how == "crafting" and trainer.global_rank == self.rank:
            Queries._craft = lambda *_: os._exit(3)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.current_epoch == 1:
            if self.how == "error":
                raise UserError(f"process {self.rank} has a reason to stop")
            if self.how == "exit":
                os._exit(3)
