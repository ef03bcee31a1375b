"""Hybrid inversion: from the decoder's picture on, in pixels."""

from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.attacks.black_box import BlackBox
from crafter_pl.attacks.descent import descend
from crafter_pl.attacks.white_box import edge_encoder
from crafter_pl.errors import UserError
from crafter_pl.stages import TaskModel, load_stage


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, down and across: ``(N, C, H, W)`` -> ``(N,)``."""
    down = (images[:, :, 1:] - images[:, :, :-1]).abs().flatten(1).mean(1)
    return down + (images[:, :, :, 1:] - images[:, :, :, :-1]).abs().flatten(1).mean(1)


class HybridAttack(Attack):
    """Starts at the decoder's picture and fits the pixels to the feature (the paper's hybrid white-box).

    Minimises ``|F - Enc(X)|^2 / d + tv * TV(X)`` over pictures in [0, 1] by Adam, each face on its own, and
    keeps the best iterate by that objective. It is not bound to what a generator can draw.

    Args:
        task_ckpt: the edge encoder; null finds the experiment's own.
        black_box_ckpt: the decoder; null finds the experiment's own.
        steps: Adam steps (paper: 150).
        lr: their size (paper: 5e-3).
        tv: weight of the total variation.
        batch_size: features inverted at a time.
        name: how the report calls it.
    """

    def __init__(
        self,
        task_ckpt: str | None = None,
        black_box_ckpt: str | None = None,
        steps: int = 150,
        lr: float = 5e-3,
        tv: float = 1.0,
        batch_size: int = 64,
        name: str = "hybrid",
    ) -> None:
        if steps < 0 or lr <= 0 or tv < 0 or batch_size < 1:
            raise UserError(
                f"attack {name}: steps {steps} and tv {tv} must be at least 0, lr {lr} above 0, "
                f"batch_size {batch_size} at least 1"
            )
        self.name = name
        self.steps, self.lr, self.tv, self.batch_size = steps, lr, tv, batch_size
        self.checkpoints = {"task": task_ckpt, "black_box": black_box_ckpt}

    def prepare(self, device: str) -> None:
        """Loads encoder and decoder."""
        task, decoder = self.checkpoint("task"), self.checkpoint("black_box")
        self.device = device
        self.decoder = load_stage(decoder, BlackBox).to(device)
        self.decoder.expect_upstream(decoder, task=task)
        self.encoder = edge_encoder(self, load_stage(task, TaskModel)).to(device)

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> pictures in [0, 1]."""
        return torch.cat([self._fit(part.to(self.device)).cpu() for part in features.split(self.batch_size)])

    @torch.no_grad()
    def _fit(self, features: Tensor) -> Tensor:
        start = self.decoder.reconstruct(features)

        def objective(images: Tensor) -> Tensor:
            misfit = (self.encoder(images) - features).square().flatten(1).mean(1)
            return misfit + self.tv * total_variation(images)

        return descend(
            objective, start, steps=self.steps, lr=self.lr, project=lambda images: images.clamp(0, 1)
        )[0]

    def settings(self) -> dict[str, Any]:
        """Everything that changes a reconstruction."""
        return {"steps": self.steps, "lr": self.lr, "tv": self.tv, **self.retrained("encoder")}
