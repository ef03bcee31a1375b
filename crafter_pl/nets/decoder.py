"""Decoders of the black-box attack: feature -> picture."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from crafter_pl.errors import UserError


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


def build_decoder(
    kind: str, feature_shape: tuple[int, int, int], image_size: int, width: int = 128
) -> nn.Module:
    """Maps features ``(N, C, h, w)`` to images ``(N, 3, S, S)`` in [0, 1].

    Args:
        kind: ``residual``, the stronger: residual blocks at every resolution and sub-pixel upsampling; or
            ``paper``, the paper's: transposed convolutions that halve the channels.
        feature_shape: ``(C, h, w)``.
        image_size: S, h times a power of two.
        width: channels of the first convolution.

    Raises:
        UserError: there is no such decoder, or none from such features to such pictures.
    """
    if kind not in ("residual", "paper"):
        raise UserError(f"decoder {kind!r} is unknown; choose one of residual, paper")
    channels, side, _ = feature_shape
    ups, residual = round(math.log2(image_size / side)), kind == "residual"
    if side * 2**ups != image_size:
        raise UserError(
            f"a decoder from {side}x{side} features cannot double to {image_size} pixels; "
            "choose a cut whose side is the picture's size over a power of two"
        )
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=not residual),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *(Residual(width) for _ in range(2 * residual)),
    ]
    for _ in range(ups):
        half = max(width // 2, 32) if residual else width // 2
        if residual:
            layers += [nn.Conv2d(width, 4 * half, 3, padding=1, bias=False), nn.PixelShuffle(2)]
        else:
            layers.append(nn.ConvTranspose2d(width, half, 4, stride=2, padding=1))
        layers += [nn.BatchNorm2d(half), nn.ReLU(), *(Residual(half) for _ in range(residual))]
        width = half
    whole = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1), nn.Sigmoid())
    return nn.Sequential(OrderedDict(layers=whole))  # checkpoints have its layers under this name


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
