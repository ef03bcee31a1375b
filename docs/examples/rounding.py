"""A defence of one's own: every entry of a feature is rounded to a multiple of a step."""

import torch
from torch import Tensor

from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.defenses.untrained import Untrained


class Rounding(Untrained[ProtectOptions]):
    """Rounds the encoder's features; nothing is learned and nothing of the backend changes.

    Args:
        task_ckpt: the task model; null finds the experiment's own.
        step: distance of two values that leave the edge.
    """

    stage_name = "rounding"
    recorded = ("step",)
    tradeoff = "step"

    def __init__(self, task_ckpt: str | None = None, step: float = 1.0) -> None:
        super().__init__()

    @torch.no_grad()
    def protect(self, images: Tensor, index: Tensor, options: ProtectOptions) -> Tensor:
        """Pictures `(N, 3, H, W)` in [0, 1] -> features `(N, C, h, w)`."""
        step = self.hparams["step"]
        return (self.task.edge(images) / step).round() * step
