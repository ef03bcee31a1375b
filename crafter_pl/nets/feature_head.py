"""A recogniser that reads features instead of pictures."""

from __future__ import annotations

from torch import nn

from crafter_pl.nets.oracle import CosineHead, ResidualBlock


class FeatureHead(CosineHead):
    """Small ResNet with a cosine head (CosFace) on features: ``(N, C, h, w)`` -> unit embeddings ``(N, E)``.

    Args:
        feature_shape: (C, h, w).
        identities: P, the number of people.
        width: first width; it doubles with every halving of the map, which ends at 4x4 or below.
        embedding: E.
        dropout: before the embedding.
    """

    def __init__(
        self,
        feature_shape: tuple[int, int, int],
        identities: int,
        width: int = 64,
        embedding: int = 256,
        dropout: float = 0.2,
    ) -> None:
        channels, height, side = feature_shape
        layers: list[nn.Module] = [
            nn.BatchNorm2d(channels, affine=False),  # features come at any scale
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ResidualBlock(width, width, 1),
        ]
        while side > 4:
            layers += [ResidualBlock(width, 2 * width, 2), ResidualBlock(2 * width, 2 * width, 1)]
            width, height, side = 2 * width, (height + 1) // 2, (side + 1) // 2
        layers += [
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(width * height * side, embedding, bias=False),
            nn.BatchNorm1d(embedding),
        ]
        super().__init__(nn.Sequential(*layers), identities, embedding)
