"""Pretrained face recognisers: pictures in, embeddings out. Nobody here has trained them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.judges.align import Aligner, packaged
from crafter_pl.nets.dlib import SIDE, DlibNet
from crafter_pl.nets.oracle import FaceNetTrunk


class Recogniser(ABC):
    """A pretrained recogniser.

    Attributes:
        name: how reports call it.
        threshold: of `similarity`, its makers'; None where they give none.
        checkpoint: path of its weights, after `prepare`.
        sha256: of these.
    """

    name: str
    threshold: float | None = None
    checkpoint: str
    sha256: str

    @abstractmethod
    def prepare(self, device: str, examples: Tensor) -> list[str]:
        """Loads the net.

        Args:
            device: where to.
            examples: public pictures ``(N, 3, S, S)`` of the data, framed as those to come.

        Returns:
            What a report must note.

        Raises:
            UserError: the weights or a package are missing.
        """

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Pictures ``(N, 3, S, S)`` in [0, 1] -> embeddings ``(N, E)``, on the device."""

    def similarity(self, made: Tensor, others: Tensor) -> Tensor:
        """Of every embedding ``(N, E)`` to every one of ``(M, E)``: the cosine."""
        return F.normalize(made) @ F.normalize(others).T

    def settings(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"recogniser": type(self).__name__}


class Dlib(Recogniser):
    """dlib's face recogniser: a ResNet, 128 numbers, trained on 3 million faces; in torch.

    Two pictures whose embeddings lie closer than 0.6 show one person, say its makers. The similarity is the
    distance, negative.

    Args:
        weights: path of ``dlib_face_recognition_resnet_model_v1.dat``; null: the one in the package
            face_recognition_models (the extra ``recognisers``).
        landmarks: path of ``shape_predictor_5_face_landmarks.dat``; null: likewise.
        name: how reports call it.
    """

    threshold = -0.6

    def __init__(self, weights: str | None = None, landmarks: str | None = None, name: str = "dlib") -> None:
        self.weights, self.landmarks, self.name = weights, landmarks, name

    def prepare(self, device: str, examples: Tensor) -> list[str]:
        """Loads net and landmarks, and finds where faces are in the pictures."""
        self.checkpoint = self.weights or packaged("dlib_face_recognition_resnet_model_v1.dat")
        self.sha256 = sha256(self.checkpoint)
        self.net = DlibNet(self.checkpoint).to(device)
        self.align = Aligner(self.landmarks, SIDE)
        if self.align.look(examples):
            return []
        return [
            f"Recogniser {self.name}: dlib finds faces in fewer than half of the public pictures, so that it "
            "may not see these as faces at all."
        ]

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Aligned, then embedded."""
        return self.net(self.align(images))

    def settings(self) -> dict[str, Any]:
        """With the frame in which faces are looked for."""
        return {**super().settings(), **self.align.settings()}

    def similarity(self, made: Tensor, others: Tensor) -> Tensor:
        """The distance, negative."""
        return -torch.cdist(made, others, compute_mode="donot_use_mm_for_euclid_dist")


class FaceNet(Recogniser):
    """facenet-pytorch's InceptionResnetV1.

    Args:
        weights: path of its state dict, or ``vggface2`` or ``casia-webface``, which it downloads.
        name: how reports call it.
    """

    def __init__(self, weights: str, name: str = "facenet") -> None:
        self.weights, self.name = weights, name

    def prepare(self, device: str, examples: Tensor) -> list[str]:
        """Loads the net."""
        net, self.checkpoint = FaceNetTrunk(self.weights), self.weights
        self.sha256 = hashlib.sha256(save(net.state_dict())).hexdigest()
        self.net = net.eval().requires_grad_(False).to(device)
        return []

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Unit vectors ``(N, 512)``, of pictures enlarged to the 160 pixels that the net was trained on."""
        large = F.interpolate(images, size=160, mode="bilinear", antialias=True)
        return self.net(large * 2 - 1)


class Foreign(Recogniser):
    """A user's own embedder: its size, its normalisation, and whether it wants the face aligned.

    Args:
        path: of the net.
        size: side of the pictures that it takes.
        mean: subtracted from pictures in [0, 1], by channel; one number: from all.
        std: what they are then divided by.
        channels: their order.
        align: bring the face to its place by dlib's landmarks (the extra ``recognisers``); else the picture
            is only resized.
        padding: around the aligned face.
        threshold: of the cosine, above which two pictures show one person; null: none is known.
        name: how reports call it.
    """

    def __init__(
        self,
        path: str,
        size: int = 112,
        mean: list[float] | float = 0.5,
        std: list[float] | float = 0.5,
        channels: Literal["rgb", "bgr"] = "rgb",
        align: bool = True,
        padding: float = 0.25,
        threshold: float | None = None,
        name: str = "own",
    ) -> None:
        self.checkpoint, self.size, self.channels = path, size, channels
        self.mean, self.std = mean, std
        self.align, self.padding, self.threshold, self.name = align, padding, threshold, name

    def prepare(self, device: str, examples: Tensor) -> list[str]:
        """Loads the net, and tries it.

        Raises:
            UserError: the file is missing or cannot be read, or it takes or gives something else.
        """
        if not Path(self.checkpoint).is_file():
            raise UserError(f"recogniser {self.name}: there is no file {self.checkpoint}")
        self.sha256 = sha256(self.checkpoint)
        self.aligner = Aligner(None, self.size, self.padding) if self.align else None
        notes = []
        if self.aligner is not None and not self.aligner.look(examples):
            notes = [f"Recogniser {self.name}: dlib finds faces in fewer than half of the public pictures."]
        try:
            self.load(device)
            made = self.embed(examples[:2].to(device))
            sound = made.ndim == 2 and len(made) == len(examples[:2]) and bool(torch.isfinite(made).all())
        except Exception as error:  # whatever a foreign net raises
            raise UserError(
                f"recogniser {self.name}: {self.checkpoint} cannot be used as a net that takes pictures "
                f"(N, 3, {self.size}, {self.size}) ({type(error).__name__}: {error}); mind its size and kind"
            ) from error
        if not sound:
            raise UserError(
                f"recogniser {self.name}: {self.checkpoint} gives {tuple(made.shape)} for two pictures, "
                "where two finite embeddings (2, E) should be"
            )
        return notes

    @abstractmethod
    def load(self, device: str) -> None:
        """Loads the net."""

    @abstractmethod
    def run(self, images: Tensor) -> Tensor:
        """Normalised pictures -> embeddings, on the device."""

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Aligned or resized, normalised, embedded."""
        if self.aligner is not None:
            images = self.aligner(images)
        else:
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        images = images.flip(1) if self.channels == "bgr" else images
        mean, std = (images.new_tensor(one).view(-1, 1, 1) for one in (self.mean, self.std))
        return self.run((images - mean) / std)

    def settings(self) -> dict[str, Any]:
        """How it is fed."""
        names = ("size", "mean", "std", "channels", "align", "padding")
        aligned = {} if self.aligner is None else self.aligner.settings()
        return {**super().settings(), **{name: getattr(self, name) for name in names}, **aligned}


class Onnx(Foreign):
    """An ONNX graph, run by onnxruntime (the extra ``export``); see `Foreign`."""

    def load(self, device: str) -> None:
        """Opens it."""
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "ONNX graphs are run by onnxruntime, which is not installed: pip install onnxruntime"
            ) from error
        self.session = onnxruntime.InferenceSession(
            self.checkpoint, providers=onnxruntime.get_available_providers()
        )
        self.input = self.session.get_inputs()[0]

    def run(self, images: Tensor) -> Tensor:
        """One by one where the graph has a fixed batch of one."""
        single = self.input.shape[0] == 1
        parts = images.cpu().split(1 if single else len(images))
        made = [self.session.run(None, {self.input.name: part.numpy()})[0] for part in parts]
        return torch.from_numpy(np.concatenate(made)).to(images.device)


class TorchProgram(Foreign):
    """A net as torch saves it without its code: torch.export's ``.pt2``, or TorchScript; see `Foreign`."""

    net: nn.Module

    def load(self, device: str) -> None:
        """Opens it."""
        if self.checkpoint.endswith(".pt2"):
            self.net = torch.export.load(self.checkpoint).module().to(device)
        else:
            self.net = torch.jit.load(self.checkpoint, map_location=device).eval()

    def run(self, images: Tensor) -> Tensor:
        """Its first output."""
        made = self.net(images)
        return made[0] if isinstance(made, (tuple, list)) else made


def named(name: str, options: Mapping[str, Any]) -> Recogniser:
    """The recogniser of a class by its name, such as ``Dlib``.

    Raises:
        UserError: there is no such class, or it takes other options.
    """
    known = {cls.__name__: cls for cls in (Dlib, FaceNet, Onnx, TorchProgram)}
    if name not in known:
        raise UserError(f"there is no recogniser {name}; there are {', '.join(known)}")
    try:
        return known[name](**options)
    except TypeError as error:
        raise UserError(f"recogniser {name}: {error}") from error
