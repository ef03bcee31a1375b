"""An attack of one's own: of many faces of the public prior, show the one whose feature is the nearest."""

from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.attacks.white_box import edge_encoder
from crafter_pl.stages import GanPrior, TaskModel, load_stage


class NearestFace(Attack):
    """Knows the encoder and a public prior.

    Args:
        task_ckpt: the task model; null finds the experiment's own.
        prior_ckpt: the prior; null finds the experiment's own.
        draws: how many faces are drawn.
        name: how reports call it.
    """

    def __init__(
        self,
        task_ckpt: str | None = None,
        prior_ckpt: str | None = None,
        draws: int = 4096,
        name: str = "nearest",
    ) -> None:
        self.name, self.draws = name, draws
        self.checkpoints = {"task": task_ckpt, "prior": prior_ckpt}

    @torch.no_grad()
    def prepare(self, device: str) -> None:
        """Draws the faces and encodes them, by the defence's own encoder where it has retrained that."""
        prior = load_stage(self.checkpoint("prior"), GanPrior)
        encoder = edge_encoder(self, load_stage(self.checkpoint("task"), TaskModel)).to(device)
        z = torch.randn(self.draws, prior.latent_dim, generator=torch.Generator().manual_seed(0))
        self.faces = torch.cat([prior.generator(part) for part in z.split(64)])
        self.keys = torch.cat([encoder(part.to(device)).flatten(1) for part in self.faces.split(64)])

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features `(N, C, h, w)` -> pictures `(N, 3, S, S)` in [0, 1], on the CPU."""
        distance = torch.cdist(features.flatten(1).to(self.keys), self.keys)
        return self.faces[distance.argmin(1).cpu()]

    def settings(self) -> dict[str, Any]:
        """Everything that changes a reconstruction."""
        return {"draws": self.draws, **self.retrained("encoder")}
