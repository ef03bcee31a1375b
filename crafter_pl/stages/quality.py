"""Sample quality of the prior: a kernel distance that needs no downloaded weights."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance


class RandomFeatures(nn.Module):
    """Fixed random convolutional features: means and deviations at three scales.

    Pictures ``(N, 3, S, S)`` in [0, 1] -> ``(N, 192)``.

    Inception's weights are a download; a kernel distance on random convolutional features ranks generators of
    one data set well enough to watch training, needs no network, and is the same on every machine. It is
    *not* comparable to a published KID.
    """

    num_features = 192

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(20240226)
        for scale in range(3):
            weight = torch.randn(32, 3, 5, 5, generator=generator)
            self.register_buffer(f"weight{scale}", weight / weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features of each picture."""
        x = images.float() * 2 - 1
        parts = []
        for scale in range(3):
            y = torch.relu(nn.functional.conv2d(x, getattr(self, f"weight{scale}"), padding=2))
            parts += [y.mean((2, 3)), y.std((2, 3))]
            x = nn.functional.avg_pool2d(x, 2)
        return torch.cat(parts, 1)


def kernel_distance(fake: Tensor, real: Tensor) -> Tensor:
    """Kernel distance (torchmetrics' KID) of two sets of pictures on random features; lower is closer.

    Args:
        fake: ``(N, 3, S, S)`` in [0, 1].
        real: ``(M, 3, S, S)`` in [0, 1].

    Raises:
        ValueError: a set has fewer than two pictures.
    """
    size = min(len(fake), len(real))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its buffer: a few hundred rows of 192 numbers
        metric = KernelInceptionDistance(
            feature=RandomFeatures(), subsets=10, subset_size=max(size // 2, 2), normalize=True
        )
    metric = metric.to(fake.device)
    metric.update(real.float(), real=True)
    metric.update(fake.float(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mean, _ = metric.compute()
    return mean
