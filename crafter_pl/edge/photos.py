"""One photograph from anywhere: opened by its content, within limits, or refused for one clear reason."""

from __future__ import annotations

import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from crafter_pl.data.decoding import upright
from crafter_pl.errors import UserError

MAX_PIXELS = 50_000_000
PILLOWS_LIMIT = 178_000_000  # Pillow refuses more by itself
MAX_BYTES = 200 * 2**20
_MAX_SCANS = 100  # a progressive JPEG has ten or so; a small file of thousands would take hours
# What Pillow is asked to try, with its endings. Others (EPS, PDF, ...) are not photographs, and run programs.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),  # a JPEG with more pictures behind the first, as some phones write it
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_WIDE = ("I;16", "I;16B", "I;16L", "I;16N")


class Refused(UserError):
    """A photograph, or a path, that is left out.

    Attributes:
        kind: what summaries count; the message may say more, in brackets.
    """

    def __init__(self, kind: str, more: str = "") -> None:
        super().__init__(f"{kind} ({more})" if more else kind)
        self.kind = kind


def shown(path: str | Path) -> str:
    """A path as it can be printed here: control characters and undecodable bytes are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = str(path).encode(encoding, "backslashreplace").decode(encoding)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def open_photo(file: Path, max_pixels: int = MAX_PIXELS) -> tuple[Image.Image, list[str]]:
    """Open a photograph, whoever made it.

    The first frame of an animated one; upright; transparent parts white; 16-bit greys scaled to 8 bits.

    Args:
        file: of any format that `_FORMATS` lists, whatever its ending.
        max_pixels: more are refused from the header, before anything is decoded.

    Returns:
        The picture, mode RGB, and remarks on what was not as expected.

    Raises:
        Refused: it cannot be read, is no photograph, is damaged or exceeds a limit.
    """
    data = _read(file)
    with _decoding():
        picture, notes = _header(data, max_pixels)
        suffix = file.suffix.lower()
        if suffix not in _FORMATS[str(picture.format)] and any(suffix in ends for ends in _FORMATS.values()):
            notes.append(f"its content is {picture.format}, whatever its ending says")
        picture.load()
        rgb, more = to_rgb(picture)
    return rgb, notes + more


def to_rgb(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """A decoded picture of any mode as upright RGB, and remarks.

    Raises:
        Refused: its pixels are numbers of no known range.
    """
    notes: list[str] = []
    if picture.mode in _WIDE or (picture.mode == "I" and picture.format == "PNG"):
        grey = np.asarray(picture).astype(np.float64) / 257
        turned = upright(picture, Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)))
    elif picture.mode in ("I", "F", "LAB"):  # numbers of any range
        raise Refused("unusual pixels", f"mode {picture.mode}: save it as RGB of 8 bits")
    else:
        turned = upright(picture)
    if turned.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in turned.info:
        layers = turned.convert("RGBA")
        if np.asarray(layers.getchannel("A")).min() < 255:
            notes.append("its transparent parts are taken as white")
            white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
            turned = Image.alpha_composite(white, layers)
    return turned.convert("RGB"), notes


def to_picture(image: Any) -> Image.Image:  # noqa: ANN401 (what `Protector.protect` takes)
    """A PIL image, or pixels as an array or tensor, as upright RGB.

    Args:
        image: a PIL image; or uint8, or float in [0, 1], of shape ``(H, W, 3)`` or ``(3, H, W)``.

    Raises:
        UserError: it is something else, or its values are out of range.
    """
    if isinstance(image, Image.Image):
        try:
            with _decoding():
                image.load()
                return to_rgb(image)[0]
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


def _read(file: Path) -> bytes:
    """The whole content of a regular file of reasonable size."""
    try:
        if file.is_symlink() and not file.exists():
            raise Refused("a link to nothing")
        status = file.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Refused("a folder", "give the photographs in it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise Refused("no regular file")
        if status.st_size > MAX_BYTES:
            raise Refused(
                "too large a file", f"{status.st_size >> 20} MB, at most {MAX_BYTES >> 20} are read"
            )
        with open(file, "rb") as stream:
            data = stream.read(MAX_BYTES)
    except FileNotFoundError as error:
        raise Refused("missing") from error
    except PermissionError as error:
        raise Refused("may not be read", "change its permissions") from error
    except (OSError, ValueError) as error:  # a failing disk; a name that no file can have
        raise Refused("cannot be read", getattr(error, "strerror", None) or str(error)) from error
    if not data:
        raise Refused("empty")
    return data


@contextmanager
def _decoding() -> Iterator[None]:
    """Turns whatever a decoder makes of bytes that somebody else has written into `Refused`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large picture, of odd metadata
            yield
    except Refused:
        raise
    except Image.DecompressionBombError as error:
        raise Refused("too many pixels", f"over {PILLOWS_LIMIT}") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds for damaged bytes
        reason = str(error).partition("\n")[0][:80]
        raise Refused("damaged or truncated", shown(reason) or type(error).__name__) from error


def _header(data: bytes, max_pixels: int) -> tuple[Image.Image, list[str]]:
    """The picture, not decoded yet, and remarks."""
    if data[4:8] == b"ftyp" and b"avif" not in data[8:32] and any(brand in data[8:32] for brand in _HEIC):
        _need_heif()
    Image.init()
    try:
        picture = Image.open(BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        if data.startswith(_BEGINNINGS):
            raise Refused("damaged or truncated", "its header cannot be read") from error
        raise Refused(
            "no photograph", "JPEG, PNG, WebP, HEIC, AVIF, GIF, TIFF and BMP are read, by content"
        ) from error
    width, height = picture.size
    if width * height > max_pixels:
        raise Refused("too many pixels", f"{width} x {height}, over --max_pixels {max_pixels}")
    if picture.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > _MAX_SCANS:
        raise Refused("too long to decode", f"a JPEG of {scans} scans")
    moving = picture.format != "MPO" and getattr(picture, "is_animated", False)
    return picture, ["of several pictures in it the first is taken"] if moving else []


def _need_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise Refused("HEIC, which needs pillow-heif", "pip install pillow-heif") from error
    register_heif_opener()
