"""Callbacks for runs of several processes: what the losses are, and a process that dies."""

import json
import os
from pathlib import Path

import torch
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


class SameWeights(Callback):
    """Stops a run whose processes have not learned the same: their gradients were not synchronised."""

    def on_train_end(self, trainer, pl_module):
        weights = torch.cat([p.detach().flatten() for p in pl_module.net.parameters()])
        first = weights.clone()
        dist.broadcast(first, 0)
        if dist.get_world_size() != 2 or not torch.equal(first, weights):
            raise UserError("the processes have other weights")
        if trainer.is_global_zero:
            (Path(pl_module.run_dir) / "same").touch()


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
