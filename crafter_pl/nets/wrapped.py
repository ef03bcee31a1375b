"""Nets around a net: one that computes in bfloat16, one that adds noise."""

import torch
from torch import Tensor, nn


def bf16_is_slow(device: str) -> bool:
    """Whether bfloat16 would be computed by a processor without instructions for it.

    There training costs over 20 times the time of float32, and a forward pass 6 times (dev/LOG.md).

    Args:
        device: a kind of device (``cpu``, ``cuda``, …), or ``auto``: the accelerator if there is one.
    """
    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    return cpu and not torch.cpu._is_avx512_bf16_supported()


class Bfloat16(nn.Module):
    """``net``, whose weights become bfloat16, for inputs and outputs in float32.

    Gradients pass through it, of any order. On CPUs with bfloat16 instructions it is about twice as fast as
    float32; on others it is slower (`bf16_is_slow`).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """float32 in, float32 out."""
        return self.net(x.to(torch.bfloat16)).float()


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
