"""What recognisers of faces share: a net with a cosine head that learns to name people."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crafter_pl.errors import UserError
from crafter_pl.nets import OracleNet
from crafter_pl.stages.augment import distort
from crafter_pl.stages.base import Stage


def cosface_loss(cosines: Tensor, target: Tensor, scale: float, margin: float) -> Tensor:
    """Cross entropy of scaled cosines ``(N, P)``, the right person's lowered by ``margin`` (CosFace, Eq. 4).

    Args:
        cosines: between embeddings and the people's directions, in [-1, 1].
        target: classes, int64 ``(N,)``.
        scale: inverse temperature.
        margin: subtracted from the right person's cosine.
    """
    return F.cross_entropy(scale * (cosines - margin * F.one_hot(target, cosines.shape[1])), target)


class Recogniser(Stage):
    """Learns unit embeddings of faces by naming people (CosFace), on distorted pictures.

    A subclass calls `build` once it knows the people. Among its init arguments are ``backbone``, ``grey``,
    ``width``, ``embedding``, ``dropout`` and ``image_size`` (see `OracleNet`), ``lr``, ``weight_decay``,
    ``scale`` and ``margin``.
    """

    sorted_people: Tensor
    class_of: Tensor

    @property
    def title(self) -> str:
        """How messages call it."""
        return self.stage_name

    def build(self, people: list[int], weights: str | None = None) -> None:
        """Makes the net for these raw identity numbers, given in class order."""
        h = self.hparams
        self.net = OracleNet(
            h["backbone"],
            len(people),
            h["image_size"],
            h["grey"],
            h["width"],
            h["embedding"],
            h["dropout"],
            weights,
        )
        # Sorted identity numbers and the class of each: raw labels -> classes without a Python loop.
        order = torch.tensor(people).argsort()
        self.register_buffer("sorted_people", torch.tensor(people)[order], persistent=False)
        self.register_buffer("class_of", order, persistent=False)

    def classes(self, identity: Tensor) -> Tensor:
        """Raw identity numbers ``(N,)`` -> classes ``(N,)``, in the order given to `build`.

        Raises:
            UserError: somebody among them is not known to it.
        """
        place = torch.searchsorted(self.sorted_people, identity).clamp(max=len(self.sorted_people) - 1)
        strangers = identity[self.sorted_people[place] != identity]
        if len(strangers):
            raise UserError(
                f"{self.title} does not know person {int(strangers[0])}: it was trained "
                "on other people; give the data settings that it was trained with, or train it on these"
            )
        return self.class_of[place]

    def shown(self, images: Tensor) -> Tensor:
        """What training shows of pictures ``(N, 3, H, W)``, before they are distorted: here all as it is."""
        return images

    def embed(self, images: Tensor) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> unit embeddings ``(N, E)``."""
        return self.net.embed(images)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """AdamW with a one-cycle schedule."""
        optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        return self.one_cycle(optimizer, rise=0.15)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """CosFace cross entropy on augmented pictures."""
        images = distort(self.shown(batch["image"]), self.hparams.get("heavy", False))
        target = self.classes(batch["identity"])
        cosines = self.net.cosines(self.net.embed(images))
        loss = cosface_loss(cosines, target, self.hparams["scale"], self.hparams["margin"])
        self.log("train/loss", loss, prog_bar=True)
        return loss
