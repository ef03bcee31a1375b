"""The one way to open a picture: data sources and the edge see the same pixels, and refuse the same files."""

import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from crafter_pl.data.containers import MAX_SCANS, first_picture
from crafter_pl.errors import UserError

MAX_PIXELS = 50_000_000
PILLOWS_LIMIT = 178_000_000  # Pillow refuses more by itself
MAX_BYTES = 200 * 2**20
# What Pillow is asked to try, with its endings. Others (EPS, PDF, ...) are not photographs, and run programs.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp", ".dib"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
ENDINGS = tuple(ending for endings in FORMATS.values() for ending in endings)
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
_JUNK = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx", "lost+found")
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


class Refused(UserError):
    """A picture, or a path, that is left out.

    Attributes:
        kind: what summaries count; the message may say more, in brackets.
    """

    def __init__(self, kind: str, more: str = "") -> None:
        super().__init__(f"{kind} ({more})" if more else kind)
        self.kind = kind


class Opened(NamedTuple):
    """A picture as it is seen.

    Attributes:
        pixels: mode RGB, upright.
        size: of the whole picture, width and height.
        scale: of `pixels` to that; less than 1 if it was decoded smaller.
        notes: what was not as expected.
    """

    pixels: Image.Image
    size: tuple[int, int]
    scale: float
    notes: list[str]


def shown(path: str | Path) -> str:
    """A path as it can be printed here: control characters and undecodable bytes are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    text = str(path).encode(encoding, "backslashreplace").decode(encoding)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def is_junk(name: str) -> bool:
    """Whether a file or folder is one that systems leave behind: nobody means it."""
    return name.startswith(".") or name.lower() in _JUNK


def open_picture(
    file: Path,
    max_pixels: int | None = None,
    shrink: Callable[[tuple[int, int]], float] | None = None,
) -> Opened:
    """Open a picture, whoever made it.

    The first frame of an animated one; upright; transparent parts white; 16-bit greys scaled to 8 bits. The
    content counts, not the ending; metadata and what follows the picture never cost it.

    Args:
        file: of any format that `FORMATS` lists.
        max_pixels: more are refused from the header, before anything is decoded; None for `MAX_PIXELS`.
        shrink: of the size, width and height, how much smaller the picture may be decoded, if that is
            quicker.

    Raises:
        Refused: it cannot be read, is no photograph, is damaged or exceeds a limit.
    """
    data = _read(file)
    with _refusing():
        first = first_picture(data)
        if first.scans > MAX_SCANS:
            raise Refused("too long to decode", f"a JPEG of over {MAX_SCANS} scans")
        picture = _identify(first.picture, data)
        width, height = size = picture.size
        if width * height > (max_pixels or MAX_PIXELS):
            over = f"--max_pixels {max_pixels}" if max_pixels else MAX_PIXELS
            raise Refused("too many pixels", f"{width} x {height}, over {over}")
        turn = _turn(picture, first.about)
        scale = 1.0
        if shrink is not None and turn is None:
            want = shrink(size)
            drafted = picture.draft("RGB", (max(1, round(width * want)), max(1, round(height * want))))
            if drafted is not None:
                scale = drafted[1][2] / width  # exact: the picture's own sides are rounded up
        picture.load()
        rgb, notes = _to_rgb(picture, turn)
        if first.several or _moves(picture):
            notes.insert(0, "of several pictures in it the first is taken")
        suffix = file.suffix.lower()
        if suffix in ENDINGS and suffix not in FORMATS[str(picture.format)]:
            notes.insert(0, f"its content is {picture.format}, whatever its ending says")
    return Opened(rgb, size if turn is None else rgb.size, scale, notes)


def to_rgb(picture: Image.Image) -> Image.Image:
    """A PIL image of any mode as upright RGB.

    Raises:
        Refused: it is damaged, or its pixels are numbers of no known range.
    """
    with _refusing():
        picture.load()
        return _to_rgb(picture, _turn(picture, None))[0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps warnings of large pictures and odd metadata back; not in a thread, since it is of all threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _refusing() -> Iterator[None]:
    """Makes a refusal of every exception: Pillow's decoders raise a dozen kinds for damaged bytes."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise Refused("too many pixels", f"over {PILLOWS_LIMIT}") from error
    except MemoryError as error:
        raise Refused("too large for the memory") from error
    except Exception as error:
        reason = str(error).partition("\n")[0][:80]
        raise Refused("damaged or truncated", shown(reason) or type(error).__name__) from error


def _read(file: Path) -> bytes:
    """The whole content of a regular file of reasonable size."""
    try:
        status = os.stat(file)
        if stat.S_ISDIR(status.st_mode):
            raise Refused("a folder", "give the photographs in it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise Refused("no regular file")
        if status.st_size > MAX_BYTES:
            raise Refused(
                "too large a file", f"{status.st_size >> 20} MB, at most {MAX_BYTES >> 20} are read"
            )
        with open(file, "rb") as stream:
            data = stream.read(status.st_size)
    except PermissionError as error:
        raise Refused("may not be read", "change its permissions") from error
    except (OSError, ValueError) as error:  # a failing disk; a name that no file can have
        if os.path.islink(file) and not os.path.exists(file):
            raise Refused("a link to nothing") from error
        if isinstance(error, FileNotFoundError):
            raise Refused("missing") from error
        raise Refused("cannot be read", getattr(error, "strerror", None) or str(error)) from error
    if not data:
        raise Refused("empty")
    return data


def _identify(data: bytes, whole: bytes) -> Image.Image:
    """The picture, not decoded yet."""
    if data[4:8] == b"ftyp" and b"avif" not in data[8:32] and any(brand in data[8:32] for brand in _HEIC):
        try:
            from pillow_heif import register_heif_opener
        except ImportError as error:
            raise Refused("HEIC, which needs pillow-heif", "pip install pillow-heif") from error
        register_heif_opener()
    try:
        return _open(data)
    except UnidentifiedImageError as error:
        if whole.startswith(_BEGINNINGS):
            raise Refused("damaged or truncated", "its header cannot be read") from error
        raise Refused(
            "no photograph", "JPEG, PNG, WebP, HEIC, AVIF, GIF, TIFF and BMP are read, by content"
        ) from error


def _open(data: bytes) -> Image.Image:
    Image.init()
    return Image.open(BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])


def _turn(picture: Image.Image, about: bytes | None) -> Image.Transpose | None:
    """How to turn a picture upright as its EXIF or XMP data say; not at all where these are broken.

    Pillow's own `exif_transpose` writes the EXIF data anew, and fails where they are odd.
    """
    try:
        if about == b"":
            return None
        described = picture if about is None else _open(about)
        return _TURNS.get(Image.Image.getexif(described).get(_ORIENTATION, 1))
    except Exception:  # of a dozen kinds, too
        return None


def _moves(picture: Image.Image) -> bool:
    """Whether there are more frames; one that is broken is none."""
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:
        return False


def _to_rgb(picture: Image.Image, turn: Image.Transpose | None) -> tuple[Image.Image, list[str]]:
    """A decoded picture of any mode as RGB, turned, and remarks."""
    notes: list[str] = []
    wide = picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PNG")
    if not wide and picture.mode in ("I", "F", "LAB"):  # numbers of any range
        raise Refused("unusual pixels", f"mode {picture.mode}: save it as RGB of 8 bits")
    turned = _eight_bits(picture) if wide else picture
    if turn is not None:
        turned = turned.transpose(turn)
    if turned.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in turned.info:
        layers = turned.convert("RGBA")
        if np.asarray(layers.getchannel("A")).min() < 255:
            notes.append("its transparent parts are taken as white")
            turned = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    return turned.convert("RGB"), notes


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, or 12 as some TIFF have it, as one of 8; its transparent grey as alpha."""
    grey = np.asarray(picture).astype(np.float64)
    tags = getattr(picture, "tag_v2", {})
    most = 2.0 ** tags.get(258, (16,))[0] - 1
    small = (grey * (255 / most)).round().clip(0, 255).astype(np.uint8)
    if tags.get(262) == 0:  # white is zero
        small = 255 - small
    clear = picture.info.get("transparency")
    if clear is None:
        return Image.fromarray(small)
    return Image.fromarray(np.stack([small, np.where(grey == clear, 0, 255).astype(np.uint8)], -1))
