"""Attackers without pictures, by a trained student: whose feature it is, and which two are one person's."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from crafter_pl.attacks.adapted import Adapted
from crafter_pl.attacks.reader import Gallery, Reader
from crafter_pl.attacks.student import AdaptiveStudent, Student
from crafter_pl.stages.base import load_stage


class StudentReader(Reader):
    """Reads features by a `Student`, or by one that has adapted.

    Args:
        student_ckpt: checkpoint of the `Student`; null finds the experiment's own.
        name: how the report calls it.
        batch_size: features at a time.
    """

    net: Any
    device: str

    def __init__(self, student_ckpt: str | None, name: str, batch_size: int) -> None:
        self.name, self.batch_size = name, batch_size
        self.checkpoints = {"student": student_ckpt}

    def prepare(self, device: str) -> None:
        """Loads the student."""
        self.device = device
        self.net = load_stage(self.checkpoint("student"), Student).to(device)

    @torch.no_grad()
    def embed(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> unit embeddings ``(N, E)``, on the CPU."""
        like, parts = next(self.net.parameters()), features.split(self.batch_size)
        return torch.cat([self.net.net.embed(part.to(like)).cpu() for part in parts])


class Matched(StudentReader):
    """Looks features up in a watch list of suspects: `WatchList` before it adapts.

    A suspect is a mean embedding of the gallery: by the teacher, of the ``pictures`` themselves, or by the
    student, of their ``features``; ``both``: the sum of the two cosines, each standardised over the suspects.
    """

    suspects = True

    def __init__(
        self,
        student_ckpt: str | None,
        name: str,
        batch_size: int,
        match: Literal["both", "pictures", "features"],
    ) -> None:
        super().__init__(student_ckpt, name, batch_size)
        self.match = match

    def enrol(self, gallery: Gallery) -> None:
        """Embeds the gallery."""
        self.gallery = gallery
        self.lists: list[Tensor] = []
        student = getattr(self.net, "student", self.net)
        teacher = student.teacher()
        if self.match != "features" and teacher is not None:
            teacher.prepare(self.device, gallery.images[:200])
            parts = gallery.images.split(self.batch_size)
            self._list(torch.cat([teacher.embed(part.to(self.device)).cpu() for part in parts]))
        if self.match != "pictures" or teacher is None:
            self._list(self.embed(gallery.features))

    def _list(self, embeddings: Tensor) -> None:
        """A mean for each suspect."""
        place = self.gallery.identity.unique(return_inverse=True)[1]
        means = embeddings.new_zeros(len(self.gallery.people), embeddings.shape[1])
        self.lists.append(F.normalize(means.index_add_(0, place, F.normalize(embeddings))))

    @property
    def identities(self) -> Tensor:
        """Those of the gallery."""
        return self.gallery.people

    def identify(self, features: Tensor) -> Tensor:
        """Similarity to each suspect ``(N, P)``."""
        made = self.embed(features)
        cosines = [made @ means.T for means in self.lists]
        if len(cosines) == 1:
            return cosines[0]
        return torch.stack([(one - one.mean(1, True)) / one.std(1, keepdim=True) for one in cosines]).sum(0)

    def settings(self) -> dict[str, Any]:
        """What it matches with."""
        return {"match": self.match}


class WatchList(Adapted, Matched):
    """Looks a face up among suspects by its feature alone, as FaceLinkGen does (arXiv 2602.02914).

    On a defence's features it is the student that has adapted to it; see `Adapted`.

    Args:
        ckpt: checkpoint of an `AdaptiveStudent`; null finds it as said there.
        student_ckpt: the `Student` for unprotected features; null finds the experiment's own.
        match: see `Matched`.
        name: how the report calls it.
        batch_size: features at a time.
    """

    stage_class = AdaptiveStudent

    def __init__(
        self,
        ckpt: str | None = None,
        student_ckpt: str | None = None,
        match: Literal["both", "pictures", "features"] = "both",
        name: str = "watch_list",
        batch_size: int = 256,
    ) -> None:
        super().__init__(student_ckpt, name, batch_size, match)
        self.ckpt, self.basic = ckpt, Matched(student_ckpt, name, batch_size, match)

    @property
    def runs(self) -> str:
        """How the folders of its stage begin."""
        return AdaptiveStudent.stage_name


class Linked(StudentReader):
    """Says which features are one person's, without a gallery: `Link` before it adapts."""

    def similarity(self, features: Tensor) -> Tensor:
        """Cosines ``(N, N)``."""
        made = self.embed(features)
        return made @ made.T

    def settings(self) -> dict[str, Any]:
        """None: those of the student are in its checkpoint."""
        return {}


class Link(Adapted, Linked):
    """Are two features of the same person? By the student, adapted to the defence; see `Adapted`.

    Args:
        ckpt: checkpoint of an `AdaptiveStudent`; null finds it as said there.
        student_ckpt: the `Student` for unprotected features; null finds the experiment's own.
        name: how the report calls it.
        batch_size: features at a time.
    """

    stage_class = AdaptiveStudent

    def __init__(
        self,
        ckpt: str | None = None,
        student_ckpt: str | None = None,
        name: str = "link",
        batch_size: int = 256,
    ) -> None:
        super().__init__(student_ckpt, name, batch_size)
        self.ckpt, self.basic = ckpt, Linked(student_ckpt, name, batch_size)

    @property
    def runs(self) -> str:
        """How the folders of its stage begin."""
        return AdaptiveStudent.stage_name
