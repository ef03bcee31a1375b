"""What a panel asks of a judge, whether it was trained on the private people's pictures or by others."""

import hashlib
import json
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from crafter_pl.files import sha256, write_file
from crafter_pl.judges.recognisers import Recogniser
from crafter_pl.metrics import person_means
from crafter_pl.progress import Steps
from crafter_pl.stages.oracle import IdentityOracle


class Judge(ABC):
    """Says whose face a picture shows.

    Attributes:
        name: how reports call it.
        identities: the data set's identity of each column of `scores`, int64 ``(P,)``.
        threshold: of `similarity`, above which its makers say that two pictures show one person; None where
            they give none.
        sha256: of its weights.
        checkpoint: where they are.
        seen: whether it has learnt from pictures of the private people (others than the audited ones).
        kept: the file of its gallery's embeddings.
    """

    name: str
    identities: Tensor
    threshold: float | None = None
    sha256: str
    checkpoint: str
    seen: bool
    kept: Path | None = None

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1], on the judge's device -> embeddings ``(N, E)``."""

    @abstractmethod
    def scores(self, embeddings: Tensor) -> Tensor:
        """Embeddings ``(N, E)`` -> how well each person fits, ``(N, P)``."""

    @abstractmethod
    def similarity(self, made: Tensor, others: Tensor) -> Tensor:
        """Of every embedding ``(N, E)`` to every one of ``(M, E)``, ``(N, M)``; higher is more alike."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What a report says of it."""


class OracleJudge(Judge):
    """An oracle that was trained here, on other pictures of the private people.

    Args:
        oracle: frozen, on its device.
        checkpoint: path of its checkpoint.
        name: how reports call it.
    """

    seen = True

    def __init__(self, oracle: IdentityOracle, checkpoint: str, name: str) -> None:
        self.oracle, self.checkpoint, self.name = oracle, checkpoint, name
        self.identities = torch.as_tensor(oracle.hparams["identities"]).long()
        self.sha256 = sha256(checkpoint)

    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors."""
        return self.oracle.embed(images)

    def scores(self, embeddings: Tensor) -> Tensor:
        """The classifier's logits."""
        return self.oracle.scores(embeddings.to(self.oracle.device)).cpu()

    def similarity(self, made: Tensor, others: Tensor) -> Tensor:
        """Cosines."""
        return made @ others.T

    def settings(self) -> dict[str, Any]:
        """Its net and what it learnt from."""
        shown = ("backbone", "grey", "width", "heavy", "reconstructed")
        return {key: self.oracle.hparams[key] for key in shown if key in self.oracle.hparams}


@torch.no_grad()
def embedded(
    net: Judge | Recogniser, images: Tensor, device: str, batch_size: int, cache: Path | None = None
) -> tuple[Tensor, Path | None]:
    """Embeddings of pictures ``(N, 3, H, W)`` on the CPU; and their file, if they are kept.

    Args:
        net: embeds them, on ``device``.
        images: in [0, 1].
        device: where to.
        batch_size: pictures at a time.
        cache: folder where they are kept by the hash of pictures, weights and settings; None: nowhere.
    """
    file = None
    if cache is not None:
        about = net.sha256 + json.dumps(net.settings(), sort_keys=True)
        digest = hashlib.sha256(about.encode() + images.contiguous().numpy().tobytes()).hexdigest()
        file = cache / f"{digest[:32]}.embedded"
        try:
            return load_file(file)["embeddings"], file
        except (OSError, SafetensorError, KeyError):
            pass
    with closing(Steps(f"{net.name} looks", len(images), unit="faces")) as steps:
        parts = []
        for part in images.split(batch_size):
            parts.append(net.embed(part.to(device)).float().cpu())
            steps.step(len(part))
    made = torch.cat(parts)
    if file is not None:
        write_file(file, save({"embeddings": made.contiguous()}))
    return made, file


class GalleryJudge(Judge):
    """A pretrained recogniser that knows people by a gallery: the mean embedding of their other pictures.

    So a service enrols somebody whom its net was never trained on.

    Args:
        recogniser: prepared.
        embeddings: of the gallery's pictures, ``(G, E)``.
        identity: whose they are, int64 ``(G,)``.
        kept: the file of the embeddings, if they are kept.
    """

    seen = False

    def __init__(
        self, recogniser: Recogniser, embeddings: Tensor, identity: Tensor, kept: Path | None = None
    ) -> None:
        self.recogniser, self.name, self.threshold = recogniser, recogniser.name, recogniser.threshold
        self.checkpoint, self.sha256 = recogniser.checkpoint, recogniser.sha256
        self.gallery, self.kept = len(identity), kept
        self.identities, _, self.means = person_means(embeddings, identity)

    def embed(self, images: Tensor) -> Tensor:
        """The recogniser's embeddings."""
        return self.recogniser.embed(images)

    def scores(self, embeddings: Tensor) -> Tensor:
        """Similarity to each person's mean embedding."""
        return self.similarity(embeddings, self.means)

    def similarity(self, made: Tensor, others: Tensor) -> Tensor:
        """The recogniser's own: of dlib the distance, negative; else the cosine."""
        return self.recogniser.similarity(made, others)

    def settings(self) -> dict[str, Any]:
        """Those of the recogniser, and how many pictures the gallery has."""
        return {**self.recogniser.settings(), "gallery": self.gallery, "threshold": self.threshold}
