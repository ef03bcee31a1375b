"""What attacks learn of features: decoders to pictures, and maps to other features."""

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
        image_size: S. Features whose side is not S over a power of two are first resized to the next larger
            side that is; those larger than the picture, whose places become channels, lose nothing either.
        width: channels of the first convolution.

    Raises:
        UserError: there is no such decoder.
    """
    if kind not in ("residual", "paper"):
        raise UserError(f"decoder {kind!r} is unknown; choose one of residual, paper")
    channels, side, _ = feature_shape
    residual, start = kind == "residual", _start(side, image_size)
    ups, fold = round(math.log2(image_size / start)), -(-start // image_size)
    before: list[tuple[str, nn.Module]] = []
    if start != side:
        before.append(("resize", nn.Upsample((start, start), mode="bilinear")))
    if fold > 1:
        before.append(("fold", nn.PixelUnshuffle(fold)))
        channels, ups = channels * fold**2, 0
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
    return nn.Sequential(OrderedDict([*before, ("layers", whole)]))  # as checkpoints name its layers


def _start(side: int, image_size: int) -> int:
    """The smallest side from ``side`` on that doubles to the picture's; else its next multiple."""
    if side > image_size:
        return -(-side // image_size) * image_size
    start = image_size
    while start % 2 == 0 and start // 2 >= side:
        start //= 2
    return start


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


class FeatureMap(nn.Module):
    """Adds to features ``(N, C, h, w)`` what a small net makes of them; at first nothing.

    ``F + std * net((F - mean) / std)``, by channel. The net is a convolution with a bias for each place
    (faces are aligned), a dense layer over the whole feature and back, residual blocks, and a convolution.

    Args:
        feature_shape: ``(C, h, w)``.
        width: channels of the blocks.
        blocks: their number, each of two 3x3 convolutions.
        hidden: units of the dense layer.
    """

    def __init__(
        self, feature_shape: tuple[int, int, int], width: int = 64, blocks: int = 2, hidden: int = 128
    ) -> None:
        super().__init__()
        channels, *sides = feature_shape
        whole = width * sides[0] * sides[1]
        self.mean = nn.Buffer(torch.zeros(channels, 1, 1))
        self.std = nn.Buffer(torch.ones(channels, 1, 1))
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(width, *sides))
        back = nn.Linear(hidden, whole)
        self.dense = nn.Sequential(nn.Flatten(), nn.Linear(whole, hidden), nn.ReLU(), back)
        self.blocks = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.head = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in (*back.parameters(), *self.head.parameters()):
            nn.init.zeros_(parameter)

    def measure(self, features: Tensor) -> None:
        """Sets mean and standard deviation of the channels to those of these features."""
        std, mean = torch.std_mean(features, (0, 2, 3))
        std = std.clamp(min=1e-3 * float(std.mean()))  # a channel may be dead
        self.mean.copy_(mean.view(-1, 1, 1))
        self.std.copy_(std.view(-1, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Returns the changed features."""
        x = self.stem((features - self.mean) / self.std) + self.place
        return features + self.std * self.head(self.blocks(x + self.dense(x).view_as(x)))
