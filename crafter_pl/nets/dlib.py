"""dlib's face recogniser in torch: a ResNet of 29 convolutions whose weights are read from dlib's own file.

The net is that of dlib's example ``dnn_metric_learning_on_images_ex.cpp`` in its trained form
``anet_type``, where each convolution is followed by an affine layer, which is folded into it.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.errors import UserError

SIDE = 150  # of the pictures that it takes, in pixels
# Blocks by width, from the picture on; the first block of a level halves the side, but not the first level's.
_LEVELS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))


class _Block(nn.Module):
    """Two convolutions beside the identity; the smaller of the two is padded with zeros."""

    def __init__(self, inside: int, width: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.first = nn.Conv2d(inside, width, 3, 2 if down else 1, 0 if down else 1)
        self.second = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.second(F.relu(self.first(x)))
        kept = F.avg_pool2d(x, 2) if self.down else x
        size = [max(pair) for pair in zip(made.shape[1:], kept.shape[1:], strict=True)]
        return F.relu(_padded(made, size) + _padded(kept, size))


def _padded(x: Tensor, size: list[int]) -> Tensor:
    channels, height, width = (want - has for want, has in zip(size, x.shape[1:], strict=True))
    return F.pad(x, (0, width, 0, height, 0, channels))


class DlibNet(nn.Module):
    """``(N, 3, 150, 150)`` in [0, 1], aligned faces -> ``(N, 128)``; two of one person lie within 0.6.

    Frozen, in eval mode; equal to dlib's own to 1e-4.

    Args:
        weights: path of ``dlib_face_recognition_resnet_model_v1.dat``.

    Raises:
        UserError: the file is missing or is not that one.
    """

    mean: Tensor

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([122.782, 117.001, 104.298]).view(3, 1, 1))
        self.stem = nn.Conv2d(3, 32, 7, 2)
        blocks: list[nn.Module] = []
        inside = 32
        for width, count in _LEVELS:
            for number in range(count):
                blocks.append(_Block(inside, width, number == 0 and len(blocks) > 0))
                inside = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(256, 128, bias=False)
        self.eval().requires_grad_(False)
        try:
            self._read(Path(weights).read_bytes())
        except (OSError, ValueError, IndexError) as error:
            raise UserError(
                f"{weights} cannot be read as dlib's face recogniser ({error}): give the file "
                "dlib_face_recognition_resnet_model_v1.dat"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Embeds pictures."""
        x = (images * 255 - self.mean) / 256
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        return self.head(self.blocks(x).mean((2, 3)))

    def _read(self, data: bytes) -> None:
        """Fills in the weights; the file names layers from the picture on."""
        at = 0
        for conv in (one for one in self.modules() if isinstance(one, nn.Conv2d)):
            outs = conv.out_channels
            values, at = _tensor(data, at, b"con_4", conv.weight.numel() + outs)
            affine, at = _tensor(data, at, b"affine_", 2 * outs)
            gamma, beta = affine.split(outs)
            conv.weight.data = values[:-outs].view_as(conv.weight) * gamma.view(-1, 1, 1, 1)
            assert conv.bias is not None
            conv.bias.data = values[-outs:] * gamma + beta
        values, _ = _tensor(data, at, b"fc_2", 256 * 128, before=2)
        self.head.weight.data = values.view(256, 128).T.contiguous()


def _tensor(data: bytes, at: int, tag: bytes, count: int, before: int = 0) -> tuple[Tensor, int]:
    """The tensor of the next layer called ``tag``, and where the file goes on behind it.

    A layer is its name, ``before`` integers of its own, a version, the tensor's four sizes, and the floats.
    An integer is a byte with its length, and that many bytes.
    """
    at = data.index(bytes([len(tag)]) + tag, at) + 1 + len(tag)
    numbers = []
    for _ in range(before + 5):
        length = data[at] & 0x0F
        numbers.append(int.from_bytes(data[at + 1 : at + 1 + length], "little"))
        at += 1 + length
    if np.prod(numbers[-4:]) != count:
        raise ValueError(f"a layer {tag.decode()} of {numbers[-4:]}, where {count} numbers should be")
    return torch.from_numpy(np.frombuffer(data, "<f4", count, at).copy()), at + 4 * count
