"""Picture files to one uint8 tensor: crop, resize, in threads; in memory, or mapped from disk."""

import errno
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from crafter_pl.data.pictures import Refused, open_picture, quiet, shown
from crafter_pl.errors import UserError
from crafter_pl.files import new_file, read_json, to_json, write_file
from crafter_pl.progress import Steps

log = logging.getLogger(__name__)

# Side and centre (x, y) of the face in pictures of the official geometries, in pixels.
_OFFICIAL_CROPS = {(178, 218): (128, 89.0, 119.0), (250, 250): (150, 125.0, 125.0)}
_AT_ONCE = 256  # pictures between two reports; so many more are decoded before an error or Ctrl+C is heard
_CACHE_VERSION = 2  # raised when a picture file gives other pixels than before
_MEND = "mend or remove it, or leave it out with --data.strict false"


@dataclass(frozen=True)
class Decoding:
    """How picture files become a tensor.

    Attributes:
        image_size: side `S` of the result in pixels.
        crop: `auto` cuts the face from CelebA's 178x218 and LFW's 250x250 pictures; of every other picture,
            and with `none` of all, the largest central square is taken; a number is the side of that square.
        strict: an unreadable picture is an error instead of being left out and counted.
        cache_dir: where the decoded pictures are kept for the next run; None keeps nothing.
        max_memory_mb: a larger result is memory-mapped from disk.
    """

    image_size: int
    crop: str | int = "auto"
    strict: bool = False
    cache_dir: Path | None = None
    max_memory_mb: int = 2048

    def __post_init__(self) -> None:
        """Refuse a crop that means nothing."""
        if self.crop not in ("auto", "none") and not (isinstance(self.crop, int) and self.crop > 0):
            raise UserError(f"crop is {self.crop!r}; give auto, none, or a side in pixels (--data.crop)")


def square(size: tuple[int, int], crop: str | int, file: Path) -> tuple[float, float, float, float]:
    """The square to cut from a picture of `size` (width, height): left, top, right, bottom."""
    width, height = size
    side, x, y = float(min(size)), width / 2, height / 2
    if crop == "auto" and size in _OFFICIAL_CROPS:
        side, x, y = _OFFICIAL_CROPS[size]
    elif isinstance(crop, int):
        if crop > side:
            raise UserError(
                f"{shown(file)} is {width} x {height}, smaller than the crop of {crop}; lower --data.crop or "
                "give auto"
            )
        side = float(crop)
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def decode(file: Path, image_size: int, crop: str | int = "auto") -> np.ndarray:
    """One picture file as uint8 `(3, S, S)`, RGB, cut to a square and resized with antialiasing.

    Raises:
        UserError: the crop is larger than the picture; `Refused`: the file is no readable picture.
    """

    def shrink(size: tuple[int, int]) -> float:
        """Leaves two pixels for each one wanted."""
        left, _, right, _ = square(size, crop, file)
        return 2 * image_size / (right - left)

    opened = open_picture(file, shrink=shrink)
    left, top, right, bottom = (side * opened.scale for side in square(opened.size, crop, file))
    small = opened.pixels.resize(
        (image_size, image_size), Image.Resampling.BICUBIC, box=(left, top, right, bottom)
    )
    return np.asarray(small).transpose(2, 0, 1)


def decode_all(root: Path, names: Sequence[str], how: Decoding) -> tuple[Tensor, list[int]]:
    """Decode picture files, or take them from the cache.

    Args:
        root: the folder that the names are relative to.
        names: `N` file names.
        how: size, crop, cache.

    Returns:
        uint8 `(M, 3, S, S)` and the positions in `names` of the `M` pictures that were readable.

    Raises:
        UserError: an unreadable picture when `strict`; no readable picture at all; a picture smaller than the
            crop.
        OSError: no room on the disk for the cache, or for what does not fit into memory.
    """
    size = len(names) * 3 * how.image_size**2
    mapped = size > how.max_memory_mb * 2**20
    if how.cache_dir is not None:
        return _cached(how.cache_dir, root, names, how, mapped)
    if not mapped:
        pictures = np.empty((len(names), 3, how.image_size, how.image_size), dtype=np.uint8)
        rows = iter(pictures)
        kept = _decode(root, names, how, lambda picture: np.copyto(next(rows), picture))
        return torch.from_numpy(pictures)[: len(kept)], kept
    with tempfile.TemporaryDirectory(prefix="crafter_pl-faces-") as folder:
        log.warning(
            "the decoded pictures take %d MB: they are memory-mapped from %s (see --data.cache_dir)",
            size >> 20,
            folder,
        )
        return _cached(Path(folder), root, names, how, mapped)  # the mapping keeps the bytes


def _cached(
    folder: Path, root: Path, names: Sequence[str], how: Decoding, mapped: bool
) -> tuple[Tensor, list[int]]:
    """The cache's pictures, decoded into it first where there are none or they are incomplete."""
    stem = f"faces-{_key(root, names, how)}"
    images, index = folder / f"{stem}.bin", folder / f"{stem}.json"
    kept = _index(index, images, len(names), how.image_size)
    if kept is None:
        with new_file(images) as stream:  # written bit by bit: a full disk is an error here, not in a mapping
            _reserve(stream, len(names) * 3 * how.image_size**2)
            kept = _decode(root, names, how, lambda picture: stream.write(picture.tobytes()))
            stream.truncate()  # here, where the last picture ends
        write_file(index, to_json({"count": len(names), "kept": kept}, indent=None))
    else:
        log.info("decoded pictures taken from %s", images)
    if how.strict and len(kept) < len(names):
        missing = names[min(set(range(len(names))) - set(kept))]
        raise UserError(f"{shown(root / missing)} is no readable picture; {_MEND}")
    size = len(kept) * 3 * how.image_size**2
    flat = np.memmap(images, mode="c", shape=(size,)) if mapped else np.fromfile(images, np.uint8, size)
    return torch.from_numpy(flat).view(len(kept), 3, how.image_size, how.image_size), kept


def _index(index: Path, images: Path, count: int, image_size: int) -> list[int] | None:
    """The positions of the pictures in a cache file; None where it is missing, incomplete or damaged."""
    try:
        record = read_json(index, "")
        kept = [int(position) for position in record["kept"]]
        whole = images.stat().st_size == len(kept) * 3 * image_size**2
    except (OSError, UserError, KeyError, TypeError, ValueError):
        return None
    ordered = all(one < other for one, other in pairwise([-1, *kept, count]))
    return kept if whole and kept and ordered and record.get("count") == count else None


def _reserve(stream: BinaryIO, size: int) -> None:
    """Takes the room of a file before the work is done, where the system can."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def _decode(
    root: Path, names: Sequence[str], how: Decoding, take: Callable[[np.ndarray], object]
) -> list[int]:
    """Hand over the readable pictures in order; returns their positions in `names`."""

    def attempt(name: str) -> np.ndarray | None:
        try:
            return decode(root / name, how.image_size, how.crop)
        except Refused as refused:
            if how.strict:
                raise UserError(
                    f"{shown(root / name)} is no readable picture ({refused}); {_MEND}"
                ) from refused
            log.warning("left out %s: %s", shown(root / name), refused)
            return None

    kept: list[int] = []
    with (
        closing(Steps("decoding", len(names), unit="pictures")) as steps,
        quiet(),
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            for position, picture in enumerate(pool.map(attempt, some), start):
                if picture is not None:
                    take(picture)
                    kept.append(position)
            steps.step(len(some))
    if not kept:
        first = f", {shown(names[0])} first" if names else ""
        raise UserError(f"none of the {len(names)} pictures in {shown(root)} is readable{first}")
    return kept


def _key(root: Path, names: Sequence[str], how: Decoding) -> str:
    """A hash of the files (name, size, time of change) and the options that shape the result."""
    digest = hashlib.sha256(f"{_CACHE_VERSION} {how.image_size} {how.crop}\n".encode())
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
        try:
            status = (root / name).stat()
        except OSError:  # such as a link to nothing: no readable picture, until it changes
            digest.update(b"\n")
        else:
            digest.update(f"{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]
