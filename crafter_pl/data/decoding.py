"""Picture files to one uint8 tensor: crop, resize, in threads; in memory, or mapped from disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from crafter_pl.errors import UserError

log = logging.getLogger(__name__)

# Side and centre (x, y) of the face in pictures of the official geometries, in pixels.
_OFFICIAL_CROPS = {(178, 218): (128, 89.0, 119.0), (250, 250): (150, 125.0, 125.0)}
_PROGRESS_FROM = 2000
_CACHE_VERSION = 1
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
                f"{file} is {width} x {height}, smaller than the crop of {crop}; lower --data.crop or give "
                "auto"
            )
        side = float(crop)
    return x - side / 2, y - side / 2, x + side / 2, y + side / 2


def upright(picture: Image.Image, pixels: Image.Image | None = None) -> Image.Image:
    """A picture, or other `pixels` of it, turned as its EXIF data say.

    Pillow's own `exif_transpose` writes the EXIF data anew, and fails where they are odd.
    """
    pixels = picture if pixels is None else pixels
    turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    return pixels if turn is None else pixels.transpose(turn)


def decode(file: Path, image_size: int, crop: str | int = "auto") -> np.ndarray:
    """One picture file as uint8 `(3, S, S)`, RGB, cut to a square and resized with antialiasing.

    Raises:
        UserError: the crop is larger than the picture.
        OSError: the file is no readable picture (also ValueError or SyntaxError, from Pillow).
    """
    with Image.open(file) as opened:
        picture = upright(opened)
        width, height = picture.size
        box = square(picture.size, crop, file)
        # JPEG can be decoded at 1/2, 1/4, 1/8: as small as still leaves two pixels for each one wanted.
        want = 2 * image_size / (box[2] - box[0])
        drafted = picture.draft("RGB", (max(1, round(width * want)), max(1, round(height * want))))
        ratio = (
            1.0 if drafted is None else drafted[1][2] / width
        )  # exact: the picture's own sides are rounded up
        scaled = (box[0] * ratio, box[1] * ratio, box[2] * ratio, box[3] * ratio)
        small = picture.convert("RGB").resize((image_size, image_size), Image.Resampling.BICUBIC, box=scaled)
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
    """
    size = len(names) * 3 * how.image_size**2
    mapped = size > how.max_memory_mb * 2**20
    if how.cache_dir is None:
        if not mapped:
            pictures = np.empty((len(names), 3, how.image_size, how.image_size), dtype=np.uint8)
            kept = _fill(pictures, root, names, how)
            return torch.from_numpy(pictures)[: len(kept)], kept
        folder = Path(tempfile.mkdtemp(prefix="crafter_pl-faces-"))
        log.warning(
            "the decoded pictures take %d MB: they are memory-mapped from %s (see --data.cache_dir)",
            size >> 20,
            folder,
        )
        images_file, kept = _write(folder, "faces", root, names, how)
        images = _open(images_file, len(kept), how.image_size, mapped=True)
        images_file.unlink()  # the mapping keeps the bytes until the process ends
        folder.rmdir()
        return images, kept
    key = _key(root, names, how)
    if (found := _from_cache(how, key, mapped)) is None:
        how.cache_dir.mkdir(parents=True, exist_ok=True)
        images_file, kept = _write(how.cache_dir, f"faces-{key}", root, names, how)
        found = _open(images_file, len(kept), how.image_size, mapped), kept
    if how.strict and len(found[1]) < len(names):
        missing = names[min(set(range(len(names))) - set(found[1]))]
        raise UserError(f"{root / missing} is no readable picture; {_MEND}")
    return found


def _fill(images: np.ndarray, root: Path, names: Sequence[str], how: Decoding) -> list[int]:
    """Decode into the first rows of `images`; returns the positions of the readable ones."""

    def attempt(name: str) -> np.ndarray | None:
        try:
            return decode(root / name, how.image_size, how.crop)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if how.strict:
                raise UserError(f"{root / name} is no readable picture ({error}); {_MEND}") from error
            log.warning("left out %s: no readable picture (%s)", root / name, error)
            return None

    kept: list[int] = []
    step = 1024
    progress = tqdm(total=len(names), desc="decoding", unit=" pictures", disable=len(names) <= _PROGRESS_FROM)
    with progress, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(names), step):
            for offset, picture in enumerate(pool.map(attempt, names[start : start + step])):
                if picture is not None:
                    images[len(kept)] = picture
                    kept.append(start + offset)
            progress.update(min(step, len(names) - start))
    if not kept:
        raise UserError(
            f"none of the {len(names)} pictures in {root} is readable, {names[0] if names else ''} first"
        )
    return kept


def _key(root: Path, names: Sequence[str], how: Decoding) -> str:
    """A hash of the files (name, size, time of change) and the options that shape the result."""
    digest = hashlib.sha256(f"{_CACHE_VERSION} {how.image_size} {how.crop}\n".encode())
    for name in names:
        try:
            status = (root / name).stat()
        except OSError:  # such as a link to nothing: no readable picture, until it changes
            digest.update(f"{name}\0\n".encode())
        else:
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:20]


def _write(
    folder: Path, stem: str, root: Path, names: Sequence[str], how: Decoding
) -> tuple[Path, list[int]]:
    """Decode into `<stem>.bin`, then write `<stem>.json`, each under a temporary name first."""
    final, partial = folder / f"{stem}.bin", folder / f"{stem}.{os.getpid()}.tmp"
    shape = (len(names), 3, how.image_size, how.image_size)
    images = np.memmap(partial, dtype=np.uint8, mode="w+", shape=shape)
    try:
        kept = _fill(images, root, names, how)
        images.flush()
        os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)
    if how.cache_dir is not None:
        partial.write_text(json.dumps({"count": len(names), "kept": kept}))
        os.replace(partial, folder / f"{stem}.json")
    return final, kept


def _from_cache(how: Decoding, key: str, mapped: bool) -> tuple[Tensor, list[int]] | None:
    """The cache's pictures, or None where there are none or they are incomplete."""
    assert how.cache_dir is not None
    images, index = how.cache_dir / f"faces-{key}.bin", how.cache_dir / f"faces-{key}.json"
    if not (images.is_file() and index.is_file()):
        return None
    try:
        record = json.loads(index.read_text())
        kept, count = [int(position) for position in record["kept"]], int(record["count"])
    except (ValueError, KeyError, TypeError):
        return None
    if images.stat().st_size != count * 3 * how.image_size**2 or not 0 < len(kept) <= count:
        return None
    log.info("decoded pictures taken from %s", images)
    return _open(images, len(kept), how.image_size, mapped), kept


def _open(file: Path, count: int, image_size: int, mapped: bool) -> Tensor:
    """The first `count` pictures of a file of raw bytes."""
    size = count * 3 * image_size**2
    if mapped:
        flat = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
    else:
        flat = torch.from_numpy(np.fromfile(file, dtype=np.uint8, count=size))
    return flat.view(count, 3, image_size, image_size)
