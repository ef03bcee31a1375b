"""The one interface of readers: features in, names out, or which two are one person's."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crafter_pl.attacks.base import Adversary, Target


@dataclass(frozen=True)
class Gallery:
    """Pictures of the private people with their names, others than the audited ones: the role ``gallery``.

    Attributes:
        images: ``(G, 3, S, S)`` in [0, 1].
        identity: the data set's, int64 ``(G,)``.
        features: what the encoder, and the defence behind the audited features, makes of them.
    """

    images: Tensor
    identity: Tensor
    features: Tensor

    @property
    def people(self) -> Tensor:
        """Int64 ``(P,)``, ascending."""
        return self.identity.unique()


class Reader(Adversary):
    """Reads features without drawing a picture: names people, or says which features are one person's.

    Reports show readers apart and not in the worst case over reconstructions.

    Class attributes:
        suspects: whether it gets a `Gallery`. Those that do have a worst case of their own.
        strangers: whether it gets one of public people instead, who are no suspects.
    """

    suspects: ClassVar[bool] = False
    strangers: ClassVar[bool] = False

    def observe(self, queries: Tensor) -> Tensor:
        """The mean of several protected features of each face, which takes their noise off."""
        return queries.mean(0)

    def train(self, target: Target) -> list[str]:
        """The commands that let it learn from this defence; by default none is known."""
        return []

    def enrol(self, gallery: Gallery) -> None:
        """Takes note of the people in the gallery; after `prepare`."""

    @property
    def identities(self) -> Tensor:
        """Int64 ``(P,)``: the data set's identity of each column of `identify`; after `enrol`."""
        return torch.empty(0, dtype=torch.long)

    def identify(self, features: Tensor) -> Tensor | None:
        """Features ``(N, C, h, w)`` -> how well each person fits, ``(N, P)``; None: it names nobody."""
        return None

    def similarity(self, features: Tensor) -> Tensor | None:
        """Features ``(N, C, h, w)`` -> how alike each two are, ``(N, N)``; None: it links nothing."""
        return None


class Ruler(Reader):
    """Names people straight from features, having been trained on other pictures with their names."""

    @property
    @abstractmethod
    def identities(self) -> Tensor:
        """Int64 ``(P,)``: the data set's identity of each column of `identify`; after `prepare`."""

    @abstractmethod
    def identify(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> logits ``(N, P)``, on the CPU."""
