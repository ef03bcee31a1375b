"""A defence of one's own: every entry of a feature is rounded to a multiple of a step."""

from typing import Any

import torch
from torch import Tensor

from crafter_pl.defenses.base import Defense
from crafter_pl.stages.task import TaskModel


class Rounding(Defense):
    """Rounds the encoder's features; nothing is learned and nothing of the backend changes.

    Args:
        task_ckpt: the task model; null finds the experiment's own.
        step: distance of two values that leave the edge.
    """

    stage_name = "rounding"

    def __init__(self, task_ckpt: str | None = None, step: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.use("task", task_ckpt, TaskModel)

    def configure_optimizers(self) -> None:
        """None: `fit` only writes the checkpoint that `predict` and attackers load."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Nothing to learn."""

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Nothing to watch: what the rounding leaves is for the audit to say."""

    @torch.no_grad()
    def protect(self, images: Tensor, index: Tensor) -> Tensor:
        """Pictures `(N, 3, H, W)` in [0, 1] -> features `(N, C, h, w)`."""
        step = self.hparams["step"]
        return (self.task.edge(images) / step).round() * step

    def protection(self) -> dict[str, Any]:
        """The settings in force, for the store's manifest."""
        self.refuse_crafters_options("step")
        return {"step": self.hparams["step"]}
