"""The identity oracles: the rulers of privacy. No attacker holds them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from crafter_pl.errors import UserError
from crafter_pl.nets import OracleNet
from crafter_pl.stages.augment import distort
from crafter_pl.stages.base import Stage


class IdentityOracle(Stage):
    """Names private people; trained on *other* pictures of them than the audited ones (``private_train``).

    Args:
        name: how reports call it.
        backbone: ``resnet`` (in-house), ``plain`` (VGG-like) or ``facenet`` (InceptionResnetV1).
        grey: sees the luma alone.
        width: first width of ``resnet`` and ``plain``.
        embedding: size of the embedding of ``resnet`` and ``plain``.
        dropout: before the embedding.
        weights: for ``facenet``: None, a state-dict file, or ``download``.
        public_people: learn the public people too, in one softmax with the private ones (pre-training in one
            go: private pictures are few). Verdicts are over the private people alone.
        lr: peak learning rate of AdamW with a one-cycle schedule.
        weight_decay: of AdamW.
        scale: inverse temperature of the cosine logits.
        margin: CosFace's margin, subtracted from the right person's cosine in training.
        heavy: learn from heavily distorted pictures (`distort`), for a ruler that bad pictures fool less.
        identities: left empty by users; the raw identity numbers of the private people, in class order.
        public_identities: left empty by users; those of the public people.
        image_size: left 0 by users; filled from the data.
    """

    stage_name = "oracle"
    # No figure on private_test picks the checkpoint: the accuracy on originals in reports stays honest.
    monitor = None
    val_split = "private_test"
    sorted_people: Tensor
    class_of: Tensor

    def __init__(
        self,
        name: str = "resnet",
        backbone: str = "resnet",
        grey: bool = False,
        width: int = 32,
        embedding: int = 256,
        dropout: float = 0.2,
        weights: str | None = None,
        public_people: bool = True,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        scale: float = 20.0,
        margin: float = 0.2,
        heavy: bool = False,
        identities: list[int] | None = None,
        public_identities: list[int] | None = None,
        image_size: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.train_split = "oracle" if public_people else "private_train"  # type: ignore[misc]
        if identities:
            self._build(None)

    def _build(self, weights: str | None) -> None:
        h = self.hparams
        people = list(h["identities"]) + list(h["public_identities"] or [])
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
        self.private = len(h["identities"])
        # Sorted identity numbers and the class of each: raw labels -> classes without a Python loop.
        order = torch.tensor(people).argsort()
        self.register_buffer("sorted_people", torch.tensor(people)[order], persistent=False)
        self.register_buffer("class_of", order, persistent=False)

    def setup(self, stage: str) -> None:
        """Builds the net once the data tell who the people are."""
        super().setup(stage)
        if self.hparams["identities"] is None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self.hparams["identities"] = data.private_identities.tolist()
            if self.hparams["public_people"]:
                self.hparams["public_identities"] = data.public_identities.tolist()
            self.hparams["image_size"] = data.image_size
            self._build(self.hparams["weights"])

    def classes(self, identity: Tensor) -> Tensor:
        """Raw identity numbers ``(N,)`` -> classes ``(N,)``; the private people are classes ``0 … P-1``.

        Raises:
            UserError: somebody among them is not known to this oracle.
        """
        place = torch.searchsorted(self.sorted_people, identity).clamp(max=len(self.sorted_people) - 1)
        strangers = identity[self.sorted_people[place] != identity]
        if len(strangers):
            raise UserError(
                f"oracle {self.hparams['name']!r} does not know person {int(strangers[0])}: it was trained "
                "on other people; give the data settings that it was trained with, or train it on these"
            )
        return self.class_of[place]

    def shown(self, images: Tensor) -> Tensor:
        """What training shows of pictures ``(N, 3, H, W)``, before they are distorted: here all as it is."""
        return images

    def embed(self, images: Tensor) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> unit embeddings ``(N, E)``."""
        return self.net.embed(images)

    def logits(self, images: Tensor) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> scores of the private people ``(N, P)``."""
        return self.hparams["scale"] * self.net.cosines(self.embed(images))[:, : self.private]

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """AdamW with a one-cycle schedule."""
        optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
        steps = max(int(self.trainer.estimated_stepping_batches), 1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams["lr"], total_steps=steps, pct_start=0.15
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """CosFace cross entropy on augmented pictures."""
        images = distort(self.shown(batch["image"]), self.hparams["heavy"])
        target = self.classes(batch["identity"])
        cosines = self.net.cosines(self.net.embed(images))
        margin = self.hparams["margin"] * F.one_hot(target, cosines.shape[1])
        loss = F.cross_entropy(self.hparams["scale"] * (cosines - margin), target)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Top-1 accuracy on the originals that will be audited (how sharp the ruler is)."""
        self._score(batch, "val/accuracy")

    def on_validation_epoch_end(self) -> None:
        """Draws originals of several people above a training picture of whom the oracle takes each for."""
        images = self.spread_images(self.val_split, 8)
        known = self.trainer.datamodule.dataset("private_train")  # type: ignore[attr-defined]
        people = known.faces.identity[known.index]
        named = torch.zeros_like(images)  # black: of somebody without a picture in these data
        for row, place in enumerate(self.logits(images).argmax(1).tolist()):
            theirs = (people == self.hparams["identities"][place]).nonzero().flatten()[:1]
            if len(theirs):
                named[row] = known[int(theirs)]["image"]
        self.log_grid("original_named", torch.cat([images, named]), columns=len(images))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The same figure: the validation part is the audited one."""
        self._score(batch, "test/accuracy")

    def _score(self, batch: dict[str, Tensor], name: str) -> None:
        target = self.classes(batch["identity"])
        hits = (self.logits(batch["image"]).argmax(1) == target).float()
        self.log(name, hits.mean(), batch_size=len(target), prog_bar=True)
