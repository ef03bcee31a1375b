"""Decoders of the black-box attack: feature -> picture."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from crafter_pl.errors import UserError


def _doublings(feature_side: int, image_size: int) -> int:
    ups = round(math.log2(image_size / feature_side))
    if feature_side * 2**ups != image_size:
        raise UserError(
            f"a decoder from {feature_side}x{feature_side} features cannot double to {image_size} pixels; "
            "choose a cut whose side is the picture's size over a power of two"
        )
    return ups


class PaperDecoder(nn.Module):
    """The paper's decoder: transposed convolutions that halve the channels, batch norm, ReLU, sigmoid.

    Maps features ``(N, C, h, w)`` to images ``(N, 3, S, S)`` in [0, 1].
    """

    def __init__(self, feature_shape: tuple[int, int, int], image_size: int, width: int = 128) -> None:
        super().__init__()
        channels, side, _ = feature_shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(_doublings(side, image_size)):
            layers += [
                nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1),
                nn.BatchNorm2d(width // 2),
                nn.ReLU(),
            ]
            width //= 2
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """Reconstructs images from features."""
        return self.layers(features)


class Residual(nn.Module):
    """Two convolutions with batch norm, added to their input: ``(N, width, h, w)``, same shape out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum, rectified."""
        return (x + self.layers(x)).relu()


class ResidualDecoder(nn.Module):
    """The stronger decoder: residual blocks at every resolution and sub-pixel upsampling.

    Maps features ``(N, C, h, w)`` to images ``(N, 3, S, S)`` in [0, 1].
    """

    def __init__(
        self, feature_shape: tuple[int, int, int], image_size: int, width: int = 128, blocks: int = 2
    ) -> None:
        super().__init__()
        channels, side, _ = feature_shape
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        layers += [Residual(width) for _ in range(blocks)]
        for _ in range(_doublings(side, image_size)):
            half = max(width // 2, 32)
            layers += [
                nn.Conv2d(width, 4 * half, 3, padding=1, bias=False),
                nn.PixelShuffle(2),
                nn.BatchNorm2d(half),
                nn.ReLU(),
            ]
            layers += [Residual(half)]
            width = half
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        """Reconstructs images from features."""
        return self.layers(features)


def build_decoder(kind: str, feature_shape: tuple[int, int, int], image_size: int, width: int) -> nn.Module:
    """Builds the decoder named ``kind``: ``residual`` (the stronger, default) or ``paper``."""
    kinds = {"residual": ResidualDecoder, "paper": PaperDecoder}
    if kind not in kinds:
        raise UserError(f"decoder {kind!r} is unknown; choose one of {', '.join(kinds)}")
    return kinds[kind](feature_shape, image_size, width)


class AnswersDecoder(nn.Module):
    """Draws a face from nothing but the cloud's answers to a feature: features ``(N, C, h, w)`` -> images.

    What a defence leaves in the answers, because the cloud needs them, this decoder sees, wherever the
    feature has been moved. Images are ``(N, 3, S, S)`` in [0, 1]. The classifier is a copy that stays in eval
    mode.

    Args:
        classifier: features -> logits ``(N, A)``.
        answers: A.
        image_size: S, a power of two times 4 to 7.
        kind: as `build_decoder`'s.
        width: the decoder's first width.
        noise: standard deviation of the noise on the standardised logits in training, so that it serves
            answers that a defence has changed a little.
    """

    def __init__(
        self,
        classifier: nn.Module,
        answers: int,
        image_size: int,
        kind: str,
        width: int,
        noise: float = 0.05,
    ) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(classifier).eval().requires_grad_(False)
        self.noise = noise
        self.standard = nn.BatchNorm2d(answers, affine=False)
        side = image_size >> max(int(math.log2(image_size / 4)), 0)
        self.lift = nn.Sequential(
            nn.Linear(answers, 512),
            nn.GELU(),
            nn.Linear(512, width * side * side),
            nn.GELU(),
            nn.Unflatten(1, (width, side, side)),
        )
        self.decoder = build_decoder(kind, (width, side, side), image_size, width)

    def train(self, mode: bool = True) -> AnswersDecoder:
        """All but the classifier."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Reconstructs images from the answers to features."""
        answers = self.standard(self.classifier(features)[:, :, None, None]).flatten(1)
        if self.training:
            answers = answers + self.noise * torch.randn_like(answers)
        return self.decoder(self.lift(answers))
