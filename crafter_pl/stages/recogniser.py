"""What recognisers of faces share: a net with a cosine head that learns to name people."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import check_several
from crafter_pl.errors import UserError
from crafter_pl.nets import CosineHead, OracleNet
from crafter_pl.stages.augment import distort
from crafter_pl.stages.base import Stage
from crafter_pl.stages.scored import Scored


class Recogniser(Stage):
    """Learns unit embeddings of faces by naming people (CosFace), on distorted pictures.

    A subclass calls `build` once it knows the people. Among its init arguments are ``backbone``, ``grey``,
    ``width``, ``embedding``, ``dropout`` and ``image_size`` (see `OracleNet`), ``lr``, ``weight_decay``,
    ``scale`` and ``margin``. One with another net sets ``net`` and calls `know` instead, and has a `lesson`.
    """

    net: CosineHead
    rise = 0.15

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
        self.know(people)

    @classmethod
    def people_of(cls, data: FacesDataModule) -> list[int]:
        """Raw identity numbers of the people of ``train_split``, for one that learns these.

        Raises:
            UserError: there are too few.
        """
        known = data.dataset(cls.train_split)
        people = known.faces.identity[known.index].unique().tolist()
        check_several(len(people), "public people in training: --data.people, --data.public_val_fraction")
        return people

    def know(self, people: list[int]) -> None:
        """Takes note of the raw identity numbers, in class order."""
        # Sorted identity numbers and the class of each: raw labels -> classes without a Python loop.
        order = torch.tensor(people).argsort()
        self.sorted_people = nn.Buffer(torch.tensor(people)[order], persistent=False)
        self.class_of = nn.Buffer(order, persistent=False)

    def classes(self, identity: Tensor) -> Tensor:
        """Raw identity numbers ``(N,)`` -> classes ``(N,)``, in the order given to `build`.

        Raises:
            UserError: somebody among them is not known to it.
        """
        place = torch.searchsorted(self.sorted_people, identity).clamp(max=len(self.sorted_people) - 1)
        strangers = identity[self.sorted_people[place] != identity]
        if len(strangers):
            name = self.hparams.get("name")
            who = self.stage_name if name is None else f"{self.stage_name} {name!r}"
            raise UserError(
                f"{who} does not know person {int(strangers[0])}: it was trained "
                "on other people; give the data settings that it was trained with, or train it on these"
            )
        return self.class_of[place]

    def shown(self, images: Tensor) -> Tensor:
        """What training shows of pictures ``(N, 3, H, W)``, before they are distorted: here all as it is."""
        return images

    def embed(self, images: Tensor) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> unit embeddings ``(N, E)``."""
        return self.net.embed(images)

    def lesson(self, batch: dict[str, Tensor]) -> Tensor:
        """What the net learns from: by default distorted pictures ``(N, 3, H, W)``."""
        return distort(self.shown(batch["image"]), self.hparams.get("heavy", False))

    def cosface(self, cosines: Tensor, identity: Tensor) -> Tensor:
        """Cross entropy of scaled cosines ``(N, P)``, the right person's less a margin (CosFace, Eq. 4).

        Args:
            cosines: between embeddings and people's directions, in [-1, 1].
            identity: raw identity numbers ``(N,)``.
        """
        h, target = self.hparams, self.classes(identity)
        lowered = cosines - h["margin"] * F.one_hot(target, cosines.shape[1])
        return F.cross_entropy(h["scale"] * lowered, target)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """`cosface` of `lesson`."""
        loss = self.cosface(self.net.cosines(self.net.embed(self.lesson(batch))), batch["identity"])
        self.log("train/loss", loss, prog_bar=True)
        return loss


class PrivateRecogniser(Scored, Recogniser):
    """Names private people; trained on *other* pictures of them than the audited ones (``private_train``).

    Among its init arguments are ``identities`` and ``public_identities``. It may learn the public people too,
    in the same softmax; verdicts are over the private people alone, which are classes ``0 … P-1``.
    """

    val_split = "private_test"  # no figure on it picks the checkpoint: the accuracy in reports stays honest

    def meet(self, public: bool) -> None:
        """Sets ``people``, all that it learns, and from which part of the data: with the ``public`` ones?"""
        self.train_split = "oracle" if public else "private_train"  # type: ignore[misc]
        self.private = len(self.needs("identities"))
        self.people = [*self.hparams["identities"], *(self.hparams["public_identities"] or [])]

    def logits(self, x: Tensor) -> Tensor:
        """What the net takes, such as pictures in [0, 1] -> scores of the private people ``(N, P)``."""
        return self.scores(self.net.embed(x))

    def scores(self, embeddings: Tensor) -> Tensor:
        """Unit embeddings ``(N, E)`` -> scores of the private people ``(N, P)``."""
        return self.hparams["scale"] * self.net.cosines(embeddings)[:, : self.private]

    def exam(self, batch: dict[str, Tensor]) -> Tensor:
        """What it is tried on: by default the pictures as they are."""
        return batch["image"]

    def score(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Metric]:
        """Top-1 accuracy on the part that will be audited: how sharp the ruler is."""
        hits = self.logits(self.exam(batch)).argmax(1) == self.classes(batch["identity"])
        return {"accuracy": hits.float().mean()}
