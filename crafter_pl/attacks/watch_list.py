"""Attackers without pictures, by a trained student: whose feature it is, and which two are one person's."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from crafter_pl.attacks.adapted import Adapted
from crafter_pl.attacks.gallery_lda import Discriminant
from crafter_pl.attacks.reader import Gallery, Reader
from crafter_pl.attacks.student import AdaptiveStudent, Student
from crafter_pl.metrics import person_means
from crafter_pl.stages.base import load_stage

SCALE = 20.0  # of cosines, as log-likelihoods
SHRINKAGE = 0.3  # of the covariance of the student's embeddings within a person


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

    By the ``pictures`` of the gallery a suspect is the teacher's mean embedding, and the nearest by cosine is
    named, the gallery's mean taken off on either side. By their ``features`` it is the student's, compared by
    linear discriminant analysis (`Discriminant`). ``both``: the sum, each standardised over the suspects.
    """

    version = 2
    suspects = True
    lists: list[Callable[[Tensor], Tensor]]

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
        self.gallery, self.lists = gallery, []
        made = self.embed(gallery.features)
        teacher = getattr(self.net, "student", self.net).teacher()
        if self.match != "features" and teacher is not None:
            for note in teacher.prepare(self.device, gallery.images[:200]):
                print(f"note: {note}", flush=True)
            parts = gallery.images.split(self.batch_size)
            theirs = torch.cat([teacher.embed(part.to(self.device)).cpu() for part in parts]).to(made)
            means = F.normalize(person_means(F.normalize(theirs - theirs.mean(0)), gallery.identity)[2])
            centre = made.mean(0)
            self.lists.append(lambda seen: SCALE * F.normalize(seen - centre) @ means.T)
        if self.match != "pictures" or teacher is None:
            self.lists.append(Discriminant(made, gallery.identity, made.shape[1], SHRINKAGE))

    @property
    def identities(self) -> Tensor:
        """Those of the gallery."""
        return self.gallery.people

    def identify(self, features: Tensor) -> Tensor:
        """Similarity to each suspect ``(N, P)``."""
        made = self.embed(features)
        found = [scores(made).double() for scores in self.lists]
        if len(found) == 1:
            return found[0]
        return torch.stack([(one - one.mean(1, True)) / one.std(1, keepdim=True) for one in found]).sum(0)

    def settings(self) -> dict[str, Any]:
        """What it matches with."""
        return {"match": self.match}


class AdaptedReader(Adapted):
    """A reader by the student that has adapted."""

    stage_class = AdaptiveStudent

    @property
    def runs(self) -> str:
        """How the folders of its stage begin."""
        return AdaptiveStudent.stage_name


class WatchList(AdaptedReader, Matched):
    """Looks a face up among suspects by its feature alone, as FaceLinkGen does (arXiv 2602.02914).

    On a defence's features it is the student that has adapted to it; see `Adapted`.

    Args:
        ckpt: checkpoint of an `AdaptiveStudent`; null finds it as said there.
        student_ckpt: the `Student` for unprotected features; null finds the experiment's own.
        match: see `Matched`.
        name: how the report calls it.
        batch_size: features at a time.
    """

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


class Linked(StudentReader):
    """Says which features are one person's, without a gallery: `Link` before it adapts."""

    def similarity(self, features: Tensor) -> Tensor:
        """Cosines ``(N, N)``."""
        made = self.embed(features)
        return made @ made.T

    def settings(self) -> dict[str, Any]:
        """None: those of the student are in its checkpoint."""
        return {}


class Link(AdaptedReader, Linked):
    """Are two features of the same person? By the student, adapted to the defence; see `Adapted`.

    Args:
        ckpt: checkpoint of an `AdaptiveStudent`; null finds it as said there.
        student_ckpt: the `Student` for unprotected features; null finds the experiment's own.
        name: how the report calls it.
        batch_size: features at a time.
    """

    def __init__(
        self,
        ckpt: str | None = None,
        student_ckpt: str | None = None,
        name: str = "link",
        batch_size: int = 256,
    ) -> None:
        super().__init__(student_ckpt, name, batch_size)
        self.ckpt, self.basic = ckpt, Linked(student_ckpt, name, batch_size)
