"""Vectorised picture augmentation, drawn from torch's global generator (kept in checkpoints)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def _drawn(images: Tensor, *shape: int) -> Tensor:
    """Uniform numbers in [0, 1) for each picture, on their device."""
    return torch.rand(len(images), *shape, device=images.device)


def flip(images: Tensor) -> Tensor:
    """Mirrors each picture of ``(N, 3, H, W)`` with probability one half."""
    return torch.where(_drawn(images, 1, 1, 1) < 0.5, images.flip(3), images)


def warp(images: Tensor, shift: float = 0.08, scale: float = 0.1, angle: float = 0.15) -> Tensor:
    """Moves, scales and turns each picture at random (fractions of the side; radians), borders repeated."""
    u = _drawn(images, 4) * 2 - 1
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
    contrast = 1 + (_drawn(images, 1, 1, 1) * 2 - 1) * strength
    shift = (_drawn(images, 1, 1, 1) * 2 - 1) * strength / 2
    gain = 1 + (_drawn(images, 3, 1, 1) * 2 - 1) * strength / 3
    mean = images.mean((1, 2, 3), keepdim=True)
    return ((images * gain - mean) * contrast + mean + shift).clamp(0, 1)


def degrade(images: Tensor, probability: float = 0.5, factor: int = 2, noise: float = 0.06) -> Tensor:
    """Blurs pictures (down and up by ``factor``) and adds noise, each with ``probability``.

    Both are of a random strength, the noise up to a deviation of ``noise``: pictures like reconstructions.
    """
    size = max(images.shape[-1] // factor, 1)
    small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    blurred = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
    share = _drawn(images, 1, 1, 1) * (_drawn(images, 1, 1, 1) < probability)
    out = images + share * (blurred - images)
    level = noise * _drawn(images, 1, 1, 1) * (_drawn(images, 1, 1, 1) < probability)
    return (out + level * torch.randn_like(out)).clamp(0, 1)


def cutout(images: Tensor, probability: float = 0.5, side: float = 0.35) -> Tensor:
    """Greys out a random square of up to ``side`` of the picture with ``probability``."""
    centre = _drawn(images, 2, 1, 1)
    half = _drawn(images, 1, 1) * side / 2 * (_drawn(images, 1, 1) < probability)
    ys, xs = (torch.linspace(0, 1, size, device=images.device) for size in images.shape[2:])
    hole = ((ys[:, None] - centre[:, 0]).abs() < half) & ((xs - centre[:, 1]).abs() < half)
    return torch.where(hole[:, None], images.new_tensor(0.5), images)


def distort(images: Tensor, heavy: bool = False) -> Tensor:
    """All of the above as oracles are trained with; ``heavy`` blurs by four and adds three times the noise.

    An oracle that has met pictures so far from its originals goes on naming people in bad reconstructions.
    """
    moved = warp(flip(images))
    if heavy:
        return cutout(degrade(recolour(moved, 0.4), 0.8, factor=4, noise=0.2), 0.7, 0.45)
    return cutout(degrade(recolour(moved)))
