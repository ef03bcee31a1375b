"""A net with noise on what it gives."""

from __future__ import annotations

from torch import Tensor, nn


class Noisy(nn.Module):
    """Adds Gaussian noise that is drawn elsewhere: ``x``, normal numbers ``(N, D)`` -> ``net(x)`` and noise.

    Args:
        net: gives ``(N, ...)`` of D entries each.
        deviation: of the noise.
    """

    def __init__(self, net: nn.Module, deviation: float) -> None:
        super().__init__()
        self.net, self.deviation = net, deviation

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """What the net gives, with noise."""
        made: Tensor = self.net(x)
        return made + self.deviation * noise.view_as(made)
