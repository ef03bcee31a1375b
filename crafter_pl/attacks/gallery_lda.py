"""Names people, and says which features are one person's, in closed form: nothing is trained."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from crafter_pl.attacks.reader import Gallery, Reader
from crafter_pl.errors import UserError
from crafter_pl.metrics import person_means
from crafter_pl.stages.base import load_stage
from crafter_pl.stages.task import TaskModel


class Discriminant:
    """Linear discriminant analysis: a mean for each person and one covariance within all.

    Args:
        values: ``(G, D)``.
        identity: whose they are, int64 ``(G,)``.
        components: principal components that are kept, at most.
        shrinkage: share of the covariance that is replaced by a multiple of the identity, in (0, 1].
    """

    def __init__(self, values: Tensor, identity: Tensor, components: int, shrinkage: float) -> None:
        values = values.double()
        self.mean = values.mean(0)
        centred = values - self.mean
        _, sizes, axes = torch.linalg.svd(centred, full_matrices=False)
        varied = int((sizes > sizes[0] * max(centred.shape) * torch.finfo(torch.double).eps).sum())
        rank = max(min(components, varied), 1)  # where nothing varies, rounding would choose the direction
        self.axes = axes[:rank].T
        seen = centred @ self.axes
        self.people, place, self.means = person_means(seen, identity)
        within = (seen - self.means[place]).T @ (seen - self.means[place]) / len(seen)
        even = (float(within.trace()) / rank or 1.0) * torch.eye(rank).double()  # 1: of one picture each
        within = (1 - shrinkage) * within + shrinkage * even
        self.whitening = torch.linalg.inv(torch.linalg.cholesky(within)).T

    def place(self, values: Tensor) -> Tensor:
        """Where distances of ``(N, D)`` are Mahalanobis': ``(N, R)``, float64."""
        return (values.double() - self.mean) @ self.axes @ self.whitening

    def __call__(self, values: Tensor) -> Tensor:
        """Log-likelihoods of ``(N, D)``, up to what all people share: ``(N, P)``, float64."""
        return -torch.cdist(self.place(values), self.means @ self.whitening).square() / 2


class GalleryLDA(Reader):
    """Who has other pictures of the suspects sends them through encoder and defence, and compares.

    The floor that a trained attacker must beat (`WatchList`).

    Args:
        reads: the ``feature``, or the cloud's ``answers`` to it.
        components: principal components that are kept, at most.
        shrinkage: of the covariance within a person, in (0, 1].
        name: how the report calls it; null: ``gallery_lda``, of answers ``gallery_lda_answers``.
        task_ckpt: the task model, for its classifier; null finds the experiment's own.
        batch_size: features classified at a time.

    Raises:
        UserError: a number is out of range.
    """

    version = 2
    adaptive = True
    suspects = True

    def __init__(
        self,
        reads: Literal["feature", "answers"] = "feature",
        components: int = 200,
        shrinkage: float = 0.1,
        name: str | None = None,
        task_ckpt: str | None = None,
        batch_size: int = 256,
    ) -> None:
        _check(components, shrinkage)
        self.reads, self.components, self.shrinkage = reads, components, shrinkage
        self.name = name or ("gallery_lda" if reads == "feature" else "gallery_lda_answers")
        self.batch_size = batch_size
        self.checkpoints = {"task": task_ckpt} if reads == "answers" else {}

    def prepare(self, device: str) -> None:
        """Loads the classifier: the defence's own where that was retrained."""
        self.device = device
        if self.reads == "answers":
            retrained = self.retrained("cloud")
            task = None if retrained else load_stage(self.checkpoint("task"), TaskModel)
            self.cloud = (self.published("cloud") if task is None else task.net.cloud).to(device).eval()

    @torch.no_grad()
    def _seen(self, features: Tensor) -> Tensor:
        if self.reads == "feature":
            return features.flatten(1).float()
        parts = features.split(self.batch_size)
        return torch.cat([self.cloud(part.float().to(self.device)).cpu() for part in parts])

    def enrol(self, gallery: Gallery) -> None:
        """Fits the means and the covariance."""
        self.lda = Discriminant(
            self._seen(gallery.features), gallery.identity, self.components, self.shrinkage
        )

    @property
    def identities(self) -> Tensor:
        """Those of the gallery."""
        return self.lda.people

    def identify(self, features: Tensor) -> Tensor:
        """Log-likelihoods ``(N, P)``."""
        return self.lda(self._seen(features))

    def settings(self) -> dict[str, Any]:
        """All of them."""
        return {"reads": self.reads, "components": self.components, "shrinkage": self.shrinkage}


class LinkLDA(Reader):
    """Are two features of the same person? By the covariance within public people; nothing is trained.

    The floor that a trained attacker must beat (`Link`): cosines of features, whitened by what differs
    between pictures of one person.

    Args:
        components: principal components that are kept, at most.
        shrinkage: of the covariance within a person, in (0, 1].
        name: how the report calls it.
    """

    version = 2
    adaptive = True
    strangers = True

    def __init__(self, components: int = 200, shrinkage: float = 0.3, name: str = "link_lda") -> None:
        _check(components, shrinkage)
        self.components, self.shrinkage, self.name = components, shrinkage, name
        self.checkpoints: dict[str, str | None] = {}

    def prepare(self, device: str) -> None:
        """Nothing to load."""

    def enrol(self, gallery: Gallery) -> None:
        """Fits the covariance to pictures of people who are none of the suspects.

        Raises:
            UserError: nobody there has two pictures.
        """
        if len(gallery.people) < 2 or len(gallery.identity) <= len(gallery.people):
            raise UserError(
                f"{self.name} learns what differs between pictures of one person, and no two public people "
                "have two: give more, or do without it (--rulers)"
            )
        self.lda = Discriminant(
            gallery.features.flatten(1).float(), gallery.identity, self.components, self.shrinkage
        )

    def similarity(self, features: Tensor) -> Tensor:
        """Cosines ``(N, N)``."""
        seen = F.normalize(self.lda.place(features.flatten(1).float()))
        return (seen @ seen.T).float()

    def settings(self) -> dict[str, Any]:
        """All of them."""
        return {"components": self.components, "shrinkage": self.shrinkage}


def _check(components: int, shrinkage: float) -> None:
    if components < 1 or not 0 < shrinkage <= 1:
        raise UserError(
            f"components {components} must be at least 1, and shrinkage {shrinkage} in (0, 1] (init_args)"
        )
