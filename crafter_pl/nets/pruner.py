"""Prunes channels of a feature, which ones depends on the feature."""

import torch
from torch import Tensor, nn


class ChannelPruner(nn.Module):
    """Keeps a share of the channels, chosen by a small net: features ``(N, C, h, w)`` -> the same shape.

    In training the choice is soft: a channel is multiplied by ``sigmoid((score - threshold) / temperature)``,
    the threshold half way between the lowest score that is kept and the highest that is not. So gradients
    reach the scores. In eval mode what is pruned is 0: a small factor hides nothing from who reads float32.

    Args:
        channels: C.
        ratio: share of the channels that is pruned, in [0, 1); at least one is kept.
        temperature: of the sigmoid; scores are in [0, 1].
        width: hidden units.
    """

    def __init__(self, channels: int, ratio: float, temperature: float = 1 / 30, width: int = 128) -> None:
        super().__init__()
        self.channels, self.kept = channels, max(round((1 - ratio) * channels), 1)
        self.temperature = temperature
        self.score = nn.Sequential(
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * channels, width),
            nn.ReLU(),
            nn.Linear(width, channels),
            nn.Sigmoid(),
        )

    def mask(self, features: Tensor) -> Tensor:
        """Factors in [0, 1], ``(N, C)``."""
        scores: Tensor = self.score(features)
        if self.kept == self.channels:
            return torch.ones_like(scores)
        ordered = scores.sort(dim=1, descending=True).values
        threshold = ordered[:, self.kept - 1 : self.kept + 1].mean(1, keepdim=True)
        soft = ((scores - threshold) / self.temperature).sigmoid()
        return soft if self.training else torch.where(scores >= threshold, soft, 0.0)

    def forward(self, features: Tensor) -> Tensor:
        """Prunes features."""
        return features * self.mask(features)[:, :, None, None]
