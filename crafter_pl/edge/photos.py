"""What `protect` takes for a photograph: a file, or pixels that a program holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crafter_pl.data.pictures import (
    MAX_PIXELS,
    PILLOWS_LIMIT,
    Refused,
    open_picture,
    quiet,
    shown,
    to_rgb,
)
from crafter_pl.errors import UserError

__all__ = ["MAX_PIXELS", "PILLOWS_LIMIT", "Refused", "open_photo", "shown", "to_picture"]


def open_photo(file: Path, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, list[str]]:
    """Open a photograph as the data module opens its pictures, see `open_picture`.

    Args:
        file: of any format that is read, whatever its ending.
        max_pixels: more are refused from the header, before anything is decoded.

    Returns:
        The picture, mode RGB, and remarks on what was not as expected.

    Raises:
        Refused: it cannot be read, is no photograph, is damaged or exceeds a limit.
    """
    with quiet():
        opened = open_picture(file, max_pixels)
    return opened.pixels, opened.notes


def to_picture(image: Any) -> Image.Image:  # noqa: ANN401 (what `Protector.protect` takes)
    """A PIL image, or pixels as an array or tensor, as upright RGB.

    Args:
        image: a PIL image; or uint8, or float in [0, 1], of shape ``(H, W, 3)`` or ``(3, H, W)``.

    Raises:
        UserError: it is something else, or its values are out of range.
    """
    if isinstance(image, Image.Image):
        try:
            with quiet():
                return to_rgb(image)
        except Refused as refused:
            raise UserError(f"the image given: {refused}") from refused
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy() if image.dtype != torch.bfloat16 else image.float().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"cannot protect a {type(image).__name__}: give a path, a PIL image, or uint8 or float pixels "
            "(H, W, 3) or (3, H, W) as an array or tensor"
        )
    if image.ndim != 3 or 3 not in (image.shape[0], image.shape[-1]) or 0 in image.shape:
        raise UserError(f"pixels of shape {image.shape}: give one picture in colour, (H, W, 3) or (3, H, W)")
    if image.shape[-1] != 3:
        image = image.transpose(1, 2, 0)
    if np.issubdtype(image.dtype, np.floating):
        low, high = float(image.min()), float(image.max())
        if not (0 <= low <= high <= 1):  # also where one is not a number
            raise UserError(f"float pixels must be in [0, 1], these are from {low:g} to {high:g}")
        image = np.rint(image.astype(np.float64) * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"pixels of type {image.dtype}: give uint8, or float in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(image))
