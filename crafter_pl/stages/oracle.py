"""The identity oracles: the rulers of privacy. No attacker holds them."""

from collections.abc import Mapping
from typing import Any

import torch

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import check_several
from crafter_pl.stages.recogniser import PrivateRecogniser


class IdentityOracle(PrivateRecogniser):
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
        identities: the raw identity numbers of the private people, in class order; the command line takes
            them from the data.
        public_identities: those of the public people; likewise.
        image_size: side of the pictures in pixels; likewise.
    """

    stage_name = "oracle"

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
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.meet(public_people)
        self.build(self.people, weights)

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """Who the people are, and the size of the pictures.

        Raises:
            UserError: there are too few people.
        """
        check_several(len(data.private_identities), "--data.private_people")
        public = data.public_identities.tolist() if given["public_people"] else None
        return {
            "identities": data.private_identities.tolist(),
            "public_identities": public,
            "image_size": data.image_size,
        }

    def on_validation_epoch_end(self) -> None:
        """Draws originals of several people above a training picture of whom the oracle takes each for."""
        images = self.spread_images(self.val_split, 8)
        known = self.data.dataset("private_train")
        people = known.faces.identity[known.index]
        named = torch.zeros_like(images)  # black: of somebody without a picture in these data
        for row, place in enumerate(self.logits(images).argmax(1).tolist()):
            theirs = (people == self.hparams["identities"][place]).nonzero().flatten()[:1]
            if len(theirs):
                named[row] = known[int(theirs)]["image"]
        self.log_grid("original_named", torch.cat([images, named]), columns=len(images))
