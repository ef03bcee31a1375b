"""How alike two pictures are, one value a picture: the bootstrap over identities needs that.

Pictures are float tensors ``(N, 3, H, W)`` in [0, 1].
"""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import (
    learned_perceptual_image_patch_similarity,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from crafter_pl.errors import UserError

PSNR_CAP = 100.0  # dB; two equal pictures would have an infinite PSNR and an infinite mean
_PART = 16  # pictures at a time: torchmetrics' SSIM takes four times as long for 256 at once (dev/LOG.md)


def ssim(images: Tensor, originals: Tensor) -> Tensor:
    """Structural similarity of each picture to its original, ``(N,)``, 1 for equal pictures.

    The usual Gaussian window of 11 pixels (sigma 1.5). A picture smaller than that gets the largest odd
    window that fits, its sigma in proportion; torchmetrics sizes the window by sigma alone.

    Raises:
        ValueError: for pictures under 3 pixels.
    """
    side = min(images.shape[-2:])
    if side < 3:
        raise ValueError(f"SSIM needs pictures of 3 pixels or more, got {side}")
    window = min(11, side if side % 2 else side - 1)
    sigma = 1.5 if window == 11 else (window - 1) / 7
    measure = partial(structural_similarity_index_measure, sigma=sigma, data_range=1.0, reduction="none")
    parts = zip(images.split(_PART), originals.split(_PART), strict=True)
    return torch.cat([cast(Tensor, measure(a, b)).reshape(-1) for a, b in parts])


def psnr(images: Tensor, originals: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, ``(N,)``, range of the data 1, capped at 100 dB."""
    value = peak_signal_noise_ratio(images, originals, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return value.clamp(max=PSNR_CAP)


def lpips(images: Tensor, originals: Tensor, batch_size: int = 256) -> Tensor:
    """Learned perceptual distance (LPIPS, AlexNet) of each picture to its original, ``(N,)``, 0 if equal.

    Pictures under 64 pixels are enlarged to 64 first (bilinear): AlexNet has no output for smaller ones.

    Raises:
        UserError: if torchvision's AlexNet weights are neither cached nor downloadable.
    """
    enlarge = nn.Upsample((64, 64), mode="bilinear") if min(images.shape[-2:]) < 64 else nn.Identity()
    measure = partial(
        learned_perceptual_image_patch_similarity, net_type="alex", reduction="none", normalize=True
    )
    parts = zip(images.split(batch_size), originals.split(batch_size), strict=True)
    try:
        return torch.cat([measure(enlarge(a), enlarge(b)).reshape(-1) for a, b in parts])
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a broken download a RuntimeError
        raise UserError(
            f"LPIPS needs torchvision's ImageNet weights of AlexNet, which could not be loaded: {error}. "
            f"Put the file in {torch.hub.get_dir()}/checkpoints, or leave --lpips false."
        ) from error
