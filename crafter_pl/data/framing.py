"""How closely the faces of a data set are cut, so that photographs can be cut alike."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_SIDE, _BORDER = 128, 24  # pictures are looked at in this size, with so much continued beyond their borders


class Frame(NamedTuple):
    """Where eyes and corners of the mouth lie, in sides of the picture, from its centre.

    Half the distance of the eyes and how far down they are; the same of the mouth.
    """

    eye: float
    eye_height: float
    mouth: float
    mouth_height: float


# Of CelebA's official crop as `data.decoding` cuts it, over 200 pictures.
OFFICIAL = Frame(0.1544, -0.0530, 0.1364, 0.2677)


def measure_frame(images: Tensor) -> Frame | None:
    """The frame of face pictures, as facenet-pytorch's MTCNN finds eyes and mouths in them.

    Args:
        images: ``(N, 3, S, S)`` in [0, 1].

    Returns:
        Medians; None where it finds no face in half of the pictures.
    """
    from facenet_pytorch import MTCNN

    large = F.interpolate(images.detach().float().cpu(), (_SIDE, _SIDE), mode="bicubic", antialias=True)
    large = F.pad(large.clamp(0, 1), [_BORDER] * 4, mode="replicate").mul(255).round().byte()
    net = MTCNN(keep_all=False, min_face_size=_SIDE // 3, device=torch.device("cpu"))
    try:
        _, confidence, points = net.detect(large.permute(0, 2, 3, 1).numpy(), landmarks=True)
    except (RuntimeError, IndexError, ValueError):  # facenet-pytorch joins empty lists where it finds nothing
        return None
    at = np.array([p[0] for p, sure in zip(points, confidence, strict=True) if (sure[0] or 0) >= 0.9])
    if 2 * len(at) < len(large):
        return None
    at = (at - _BORDER) / _SIDE - 0.5  # left eye, right eye, nose, left and right corner of the mouth
    return Frame(
        *(
            round(float(np.median(figure)), 4)
            for pair in (at[:, :2], at[:, 3:])
            for figure in ((pair[:, 1, 0] - pair[:, 0, 0]) / 2, pair[:, :, 1].mean(1))
        )
    )
