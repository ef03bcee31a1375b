"""Generators of the public prior, and nets that give latents: of pictures, of features."""

import torch
from torch import Tensor, nn

from crafter_pl.errors import UserError
from crafter_pl.nets.style import StyleGenerator


class Generator(nn.Module):
    """The paper's generators: latent ``(N, Z)`` -> image ``(N, 3, S, S)`` in [0, 1].

    G1: Linear -> 256 x S/8 x S/8 -> 128 -> 64 -> 3; G2: Linear -> 512 x S/16 x S/16 -> 256 -> 128 -> 64 -> 3;
        5x5 transposed convolutions of stride 2, batch norm, ReLU, sigmoid (appendix; the paper defends with
        G1 and attacks with both).

    Args:
        kind: ``G1`` or ``G2``.
        latent_dim: Z.
        image_size: S, a multiple of 8 (G1) or 16 (G2).
        width: channels before the last layer (64 in the paper); the others are multiples of it.
    """

    def __init__(
        self, kind: str = "G1", latent_dim: int = 500, image_size: int = 64, width: int = 64
    ) -> None:
        super().__init__()
        ups = {"G1": 3, "G2": 4}[kind]
        if image_size % 2**ups:
            raise UserError(f"image_size {image_size} does not fit {kind}: it must be a multiple of {2**ups}")
        self.latent_dim = latent_dim
        base, channels = image_size // 2**ups, width * 2 ** (ups - 1)
        layers: list[nn.Module] = [
            nn.Linear(latent_dim, channels * base * base, bias=False),
            nn.Unflatten(1, (channels, base, base)),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        for _ in range(ups - 1):
            half = channels // 2
            layers += [
                nn.ConvTranspose2d(channels, half, 5, stride=2, padding=2, output_padding=1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(),
            ]
            channels = half
        layers += [nn.ConvTranspose2d(channels, 3, 5, stride=2, padding=2, output_padding=1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Draws the images of latents ``(N, Z)``."""
        return self.layers(z)

    def blocks(self) -> list[nn.Module]:
        """The generator in stages, a picture size each: their composition is `forward`.

        Every block takes what the one before it returns, a tensor (or, elsewhere, a tuple of tensors).
        """
        ends = [4, *range(7, len(self.layers) - 1, 3), len(self.layers)]
        return [self.layers[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def latent_space(self, space: str) -> tuple[nn.Module, nn.Module]:
        """What takes z ``(N, Z)`` into a latent space, and what draws pictures from there: ``z`` alone.

        Raises:
            UserError: this generator has no such space.
        """
        if space != "z":
            raise UserError(f"space {space!r}: generators G1 and G2 have the latent space z alone")
        return nn.Identity(), self


class Enlarged(nn.Module):
    """A generator whose pictures are enlarged, so that a small prior serves an encoder of large pictures.

    The picture stays a smooth function of the latent; detail finer than the generator's own it has not.

    Args:
        generator: latent ``(N, Z)`` -> ``(N, 3, s, s)``.
        image_size: S, ``(N, 3, S, S)`` out.
    """

    def __init__(self, generator: Generator | StyleGenerator, image_size: int) -> None:
        super().__init__()
        self.generator, self.latent_dim = generator, generator.latent_dim
        self.enlarge = nn.Upsample(image_size, mode="bilinear", align_corners=False)

    def forward(self, z: Tensor) -> Tensor:
        """Draws the images of latents ``(N, Z)``."""
        return self.enlarge(self.generator(z))

    def blocks(self) -> list[nn.Module]:
        """The generator's own, and the enlarging."""
        return [*self.generator.blocks(), self.enlarge]

    def latent_space(self, space: str) -> tuple[nn.Module, nn.Module]:
        """The generator's own, see there."""
        enter, draw = self.generator.latent_space(space)
        return enter, nn.Sequential(draw, self.enlarge)


def build_generator(kind: str, latent_dim: int, image_size: int, width: int) -> Generator | StyleGenerator:
    """Builds the generator named ``kind``: ``G1``, ``G2`` or ``style``."""
    sizes = latent_dim, image_size, width
    return StyleGenerator(*sizes) if kind == "style" else Generator(kind, *sizes)


def _halved(cin: int, side: int, smallest: int, width: int, kernel: int) -> tuple[list[nn.Module], int, int]:
    """Convolutions of stride 2 until the side is small enough; what they end in: channels and side."""
    layers: list[nn.Module] = []
    cout = width
    while side > smallest:
        layers += [
            nn.Conv2d(cin, cout, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(cout),
            nn.LeakyReLU(0.2),
        ]
        cin, cout, side = cout, min(cout * 2, 8 * width), (side + 1) // 2
    return layers, cin, side


class ImageEncoder(nn.Module):
    """Image ``(N, 3, S, S)`` in [0, 1] -> mean and log-variance ``(N, Z)`` of its latent."""

    def __init__(self, latent_dim: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        layers, cin, side = _halved(3, image_size, 4, width, kernel=5)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(cin * side * side, 2 * latent_dim))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log-variance, each ``(N, Z)``."""
        mean, log_variance = self.layers(images * 2 - 1).chunk(2, dim=1)
        return mean, torch.clamp(log_variance, -8, 4)


class AmortizerNet(nn.Module):
    """Features ``(N, C, h, w)`` -> latents ``(N, Z)``: where the inversion starts.

    The paper's: stride-2 convolutions 128/512/1024 down to 2x2, a 2x2 convolution to 512, a 1x1 convolution
    to Z. Here the widths are multiples of ``width`` and the number of stride-2 steps follows the feature's
    side.
    """

    def __init__(self, feature_shape: tuple[int, int, int], latent_dim: int, width: int = 128) -> None:
        super().__init__()
        channels, side, _ = feature_shape
        layers, cin, side = _halved(channels, side, 2, width, kernel=3)
        self.layers = nn.Sequential(
            *layers,
            nn.Conv2d(cin, 4 * width, side),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, latent_dim, 1),
            nn.Flatten(),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Returns a latent per feature."""
        return self.layers(features)
