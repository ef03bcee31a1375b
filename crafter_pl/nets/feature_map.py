"""A map from features to features of the same shape, close to doing nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crafter_pl.nets.decoder import Residual


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

    mean: Tensor
    std: Tensor

    def __init__(
        self, feature_shape: tuple[int, int, int], width: int = 64, blocks: int = 2, hidden: int = 128
    ) -> None:
        super().__init__()
        channels, *sides = feature_shape
        whole = width * sides[0] * sides[1]
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))
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
