"""A file's first picture, cut out of what else the file holds: metadata, further pictures, films, junk.

Decoders get the picture alone, so nothing else can cost it or count against a limit.
"""

import re
import struct
import zlib
from typing import NamedTuple

MAX_SCANS = 100  # a progressive JPEG has ten or so; a small file of thousands would take hours


class First(NamedTuple):
    """What a file begins with.

    Attributes:
        picture: a file of the same format that holds the first picture alone.
        about: the same with the metadata that may say which way up it is; empty if there are none, None if
            they are still in `picture`.
        several: whether other pictures of equal rank followed.
        scans: how often a JPEG goes over its pixels; counted up to one more than `MAX_SCANS`.
    """

    picture: bytes
    about: bytes | None = None
    several: bool = False
    scans: int = 1


def first_picture(data: bytes) -> First:
    """Cut the first picture out of a file; one that is too odd for that is left as it is."""
    for beginning, cut in _FORMATS:
        if beginning.match(data):
            try:
                return cut(data)
            except (struct.error, IndexError):
                break
    return First(data)


_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # others are pixels: stuffed zeros, restarts, fill bytes


def _jpeg(data: bytes) -> First:
    """Segments up to the end of the first image; of the application's own only what tells the colours."""
    kept, about, scans = [], [], 0
    start, at = 0, 2
    while marker := _MARKER.search(data, at):
        begin, at = marker.span()
        code = data[begin + 1]
        if code == 0xD9:
            break
        if code in (0x01, 0xD8):  # these have no length
            continue
        length = 256 * data[at] + data[at + 1]
        if code == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                break
        elif code == 0xFE or (0xE0 <= code <= 0xEF and not _colours(code, data[at + 2 : at + length])):
            kept.append(data[start:begin])
            start = at + length
            if code == 0xE1:
                about.append(data[begin:start])
        at += max(2, length)
    else:
        at = len(data)
    picture = b"".join([*kept, data[start:at]]) if kept or at < len(data) else data
    return First(picture, b"".join([b"\xff\xd8", *about, picture[2:]]) if about else b"", scans=scans)


def _colours(code: int, body: bytes) -> bool:
    """Whether decoders take a picture's kind of colours from an application's segment."""
    return (code == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14) or (
        code == 0xEE and body[:5] == b"Adobe" and len(body) >= 12
    )


_PNG = b"\x89PNG\r\n\x1a\n"
_TELLS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


def _png(data: bytes) -> First:
    """Chunks up to IEND; those that a decoder may ignore are left out, but for the transparency."""
    kept, about, several, at = [_PNG], [], False, len(_PNG)
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + length + 12]
        at += len(chunk)
        if name[:1].isupper() or name == b"tRNS":
            kept.append(chunk)
        elif name == b"eXIf" or (name in (b"iTXt", b"tEXt", b"zTXt") and chunk[8:].startswith(_TELLS)):
            about.append(chunk)
        elif name == b"acTL":
            several = struct.unpack_from(">I", chunk, 8)[0] > 1
        if name == b"IEND":
            break
    head, body = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0), zlib.compress(b"\0\0")
    dot = [_PNG, _chunk(b"IHDR", head), *about, _chunk(b"IDAT", body), _chunk(b"IEND", b"")]
    return First(b"".join(kept), b"".join(dot) if about else b"", several)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _webp(data: bytes) -> First:
    """The chunks of pixels, of a moving picture the first frame."""
    kept, about, frames, at = [], [], 0, 12
    end = min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    while at + 8 <= end:
        name, length = struct.unpack_from("<4sI", data, at)
        chunk = data[at : at + 8 + length + length % 2]
        at += len(chunk)
        if name == b"ANMF":
            frames += 1
        if name in (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM") or (name == b"ANMF" and frames == 1):
            kept.append(chunk)
        elif name in (b"EXIF", b"XMP "):
            about.append(chunk)
    return First(_riff(kept), _riff(kept + about) if about else b"", frames > 1)


def _riff(chunks: list[bytes]) -> bytes:
    body = b"".join([b"WEBP", *chunks])
    return b"RIFF" + struct.pack("<I", len(body)) + body


# Sizes, coding, colours, strips and tiles, JPEG tables: what decoding needs.
_NEEDED = {*range(254, 260), 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325}
_NEEDED |= {332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532, 50674}
_ORIENTATION, _XMP = 274, 700


def _tiff(data: bytes) -> First:
    """The first directory, without the entries that no decoder needs, and no other directory."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2] == 43 or data[3] == 43
    offset, number, entry, size = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    (at,) = struct.unpack_from(order + offset, data, 8 if big else 4)
    (count,) = struct.unpack_from(order + number, data, at)
    first = at + struct.calcsize(order + number)
    end = first + count * entry
    if end > len(data):
        return First(data)
    rows = [data[row : row + entry] for row in range(first, end, entry)]

    def only(tags: set[int]) -> bytes:
        kept = [row for row in rows if struct.unpack_from(order + "H", row)[0] in tags]
        table = struct.pack(order + number, len(kept)) + b"".join(kept) + bytes(size)
        return data[:at] + table + data[at + len(table) :]

    tells = any(struct.unpack_from(order + "H", row)[0] in (_ORIENTATION, _XMP) for row in rows)
    return First(
        picture=only(_NEEDED),
        about=only(_NEEDED | {_ORIENTATION, _XMP}) if tells else b"",
        several=any(data[end : end + size]),
    )


_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def _heif(data: bytes) -> First:
    """The file, in which the item of EXIF data has another name; how to turn it the format says itself."""
    return First(_EXIF_ITEM.sub(rb"\1none", data[: 2**20]) + data[2**20 :])


_FORMATS = [
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(re.escape(_PNG)), _png),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), _webp),
    (re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"), _tiff),
    (re.compile(rb".{4}ftyp", re.DOTALL), _heif),
]
