"""What `protect` takes for photographs: the files that a command means, and pixels that a program holds."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crafter_pl.data.pictures import MAX_PIXELS, Refused, is_junk, open_picture, quiet, shown, to_rgb
from crafter_pl.errors import UserError


def photographs(given: list[str], leave_out: set[Path]) -> tuple[list[str], list[tuple[str, Refused]]]:
    """Lists the files given, and those in the folders given and below, sorted.

    Hidden files (their name begins with a dot) in folders, and what systems leave there, are left out without
    a word, and links to folders are not followed. Two names of one file count once: an attacker with two
    features of one picture knows more.

    Args:
        given: files and folders; `~` is expanded.
        leave_out: files and folders that are not looked at.

    Returns:
        Absolute paths, in order, and what could not be listed, each with the reason.
    """
    found: dict[str, str] = {}  # by the file that a name leads to
    refused: dict[str, Refused] = {}

    def add(path: str) -> None:
        first = found.setdefault(os.path.realpath(path), path)
        if first != path:
            refused[path] = Refused("twice", f"the same file as {shown(first)}")

    def unreadable(error: OSError) -> None:
        refused[str(error.filename)] = Refused("may not be read", str(error.strerror))

    def meant(folder: str, name: str) -> bool:
        return not is_junk(name) and Path(os.path.realpath(os.path.join(folder, name))) not in leave_out

    for name in given:
        top = os.path.abspath(os.path.expanduser(name))
        if not os.path.isdir(top):
            add(top)
            continue
        before = len(found) + len(refused)
        for folder, folders, files in os.walk(top, onerror=unreadable):
            links = sorted(each for each in folders if os.path.islink(os.path.join(folder, each)))
            refused |= {os.path.join(folder, each): Refused("a link to a folder") for each in links}
            folders[:] = sorted(each for each in folders if each not in links and meant(folder, each))
            for each in sorted(files):
                if meant(folder, each):
                    add(os.path.join(folder, each))
        if len(found) + len(refused) == before:
            refused[top] = Refused("no files in it")
    return list(found.values()), list(refused.items())


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
        Refused: it is a PIL image that is damaged, or of unusual pixels.
        UserError: it is something else, or its values are out of range.
    """
    if isinstance(image, Image.Image):
        with quiet():
            return to_rgb(image)
    if isinstance(image, Tensor):
        image = (image.float() if image.dtype == torch.bfloat16 else image).detach().cpu().numpy()
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
