"""The amortizer: a feature's latent in one forward pass."""

from __future__ import annotations

from torch import Tensor, nn


class AmortizerNet(nn.Module):
    """Features ``(N, C, h, w)`` -> latents ``(N, Z)``: where the inversion starts.

    The paper's: stride-2 convolutions 128/512/1024 down to 2x2, a 2x2 convolution to 512, a 1x1 convolution
    to Z. Here the widths are multiples of ``width`` and the number of stride-2 steps follows the feature's
    side.
    """

    def __init__(self, feature_shape: tuple[int, int, int], latent_dim: int, width: int = 128) -> None:
        super().__init__()
        cin, side, _ = feature_shape
        cout = width
        layers: list[nn.Module] = []
        while side > 2:
            layers += [
                nn.Conv2d(cin, cout, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(cout),
                nn.LeakyReLU(0.2),
            ]
            cin, cout, side = cout, min(cout * 2, 8 * width), (side + 1) // 2
        hidden = 4 * width
        layers += [
            nn.Conv2d(cin, hidden, side),
            nn.LeakyReLU(0.2),
            nn.Conv2d(hidden, latent_dim, 1),
            nn.Flatten(),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Returns a latent per feature."""
        return self.layers(features)
