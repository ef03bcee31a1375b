"""Vectorised picture augmentation, drawn from torch's global generator (kept in checkpoints)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def flip(images: Tensor) -> Tensor:
    """Mirrors each picture of ``(N, 3, H, W)`` with probability one half."""
    mask = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mask, images.flip(3), images)


def warp(images: Tensor, shift: float = 0.08, scale: float = 0.1, angle: float = 0.15) -> Tensor:
    """Moves, scales and turns each picture at random (fractions of the side; radians), borders repeated."""
    n, device = len(images), images.device
    u = torch.rand(n, 4, device=device) * 2 - 1
    zoom = 1 + u[:, 0] * scale
    turn = u[:, 1] * angle
    cos, sin = torch.cos(turn) * zoom, torch.sin(turn) * zoom
    theta = torch.stack(
        [torch.stack([cos, -sin, u[:, 2] * 2 * shift], 1), torch.stack([sin, cos, u[:, 3] * 2 * shift], 1)], 1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), padding_mode="border", align_corners=False)


def recolour(images: Tensor, strength: float = 0.25) -> Tensor:
    """Changes brightness, contrast and each channel's gain; clipped to [0, 1]."""
    n, device = len(images), images.device
    contrast = 1 + (torch.rand(n, 1, 1, 1, device=device) * 2 - 1) * strength
    shift = (torch.rand(n, 1, 1, 1, device=device) * 2 - 1) * strength / 2
    gain = 1 + (torch.rand(n, 3, 1, 1, device=device) * 2 - 1) * strength / 3
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images * gain - mean) * contrast + mean + shift).clamp(0, 1)


def degrade(images: Tensor, probability: float = 0.5, factor: int = 2, noise: float = 0.06) -> Tensor:
    """Blurs pictures (down and up by ``factor``) and adds noise, each with ``probability``.

    Both are of a random strength, the noise up to a deviation of ``noise``: pictures like reconstructions.
    """
    n, side, device = len(images), images.shape[-1], images.device
    size = max(side // factor, 1)
    small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    blurred = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
    share = torch.rand(n, 1, 1, 1, device=device) * (torch.rand(n, 1, 1, 1, device=device) < probability)
    out = images + share * (blurred - images)
    level = (
        noise * torch.rand(n, 1, 1, 1, device=device) * (torch.rand(n, 1, 1, 1, device=device) < probability)
    )
    return (out + level * torch.randn_like(out)).clamp(0, 1)


def cutout(images: Tensor, probability: float = 0.5, side: float = 0.35) -> Tensor:
    """Greys out a random square of up to ``side`` of the picture with ``probability``."""
    n, _, height, width = images.shape
    device = images.device
    centre = torch.rand(n, 2, 1, 1, device=device)
    half = torch.rand(n, 1, 1, device=device) * side / 2 * (torch.rand(n, 1, 1, device=device) < probability)
    ys = torch.linspace(0, 1, height, device=device).view(1, height, 1)
    xs = torch.linspace(0, 1, width, device=device).view(1, 1, width)
    hole = ((ys - centre[:, 0]).abs() < half) & ((xs - centre[:, 1]).abs() < half)
    return torch.where(hole[:, None], images.new_tensor(0.5), images)


def distort(images: Tensor, heavy: bool = False) -> Tensor:
    """All of the above as oracles are trained with; ``heavy`` blurs by four and adds three times the noise.

    An oracle that has met pictures so far from its originals goes on naming people in bad reconstructions.
    """
    moved = warp(flip(images))
    if heavy:
        return cutout(degrade(recolour(moved, 0.4), 0.8, factor=4, noise=0.2), 0.7, 0.45)
    return cutout(degrade(recolour(moved)))
