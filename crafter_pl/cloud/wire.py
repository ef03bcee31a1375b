"""Features that somebody else has written, sent over the network or in a store: no byte of them is trusted.

The format is that of the `safetensors` library: eight bytes with the length of the header, the header as
JSON, then the tensors' bytes without gaps. It is read here and not by the library, which takes a name twice
in the header. There are four tensors at most: nothing is allocated by what a header says, and every refusal
is a line for the sender.
"""

import re
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from crafter_pl.errors import UserError
from crafter_pl.files import parse_json

MAX_HEADER = 64 * 1024  # bytes; that of a shard with its hashes has 300
TRANSPORT = {"F32": "<f4", "F16": "<f2", "I8": "<i1"}  # what features may be sent as
_TYPES = {**TRANSPORT, "I64": "<i8"}
_OTHERS = {
    b"--": "form data",
    b"{": "JSON",
    b"[": "JSON",
    b"\x1f\x8b": "gzip",
    b"PK": "a zip",
    b"\x80": "a pickle",
}
CODING = ("scale", "offset")  # of features sent as I8, see `crafter_pl.data.transport`


class Refused(Exception):
    """A body that is not taken: one line for its sender."""


class Foreign(Refused):
    """A body that is no safetensors at all."""


@dataclass(frozen=True)
class Features:
    """A body that was taken.

    Attributes:
        sent: the type that they were sent in, a key of `TRANSPORT`.
        array: the finite features, float32 ``(n, C, h, w)``.
        index: int64, the sender's numbers of them; None: there were none.
        metadata: of the header.
    """

    sent: str
    array: np.ndarray
    index: list[int] | None
    metadata: dict[str, str]


def read_features(body: bytes, shape: tuple[int, ...] | None = None) -> Features:
    """Read one feature or a shard of a feature store.

    Args:
        body: safetensors with `features`, float32, float16 or int8 ``(C, h, w)`` or ``(n, C, h, w)``; with
            int8 also `scale` and `offset`, float32 ``(n,)``; and if the sender likes `index`, int64 ``(n,)``.
        shape: ``(C, h, w)`` of the features that the reader takes; None: any, ``(n, C, h, w)`` alone.

    Raises:
        Foreign: the body is something else.
        Refused: the body is malformed, of another shape or type, or not finite.
    """
    header, data = _split(body)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Refused("__metadata__ in the safetensors header must map names to strings")
    if strange := sorted(header.keys() - {"features", "index", *CODING}):
        raise Refused(f"tensor {strange[0][:40]!r} is not expected: features, and index, are")
    if "features" not in header:
        raise Refused("there is no tensor features in the body")
    spans = {name: _span(name, entry, len(data)) for name, entry in header.items()}
    at = 0
    for begin, end in sorted((begin, end) for _, _, begin, end in spans.values()):
        if begin != at:
            raise Refused("the tensors overlap or leave gaps: data_offsets must follow each other from 0")
        at = end
    if at != len(data):
        raise Refused(f"the header describes {at} bytes of tensors, the body has {len(data)}")
    dtype, sizes, begin, end = spans["features"]
    if dtype not in TRANSPORT:
        raise Refused(f"features are {dtype}: F32, F16 or I8 are taken")
    if shape is None and len(sizes) != 4:
        raise Refused(f"features have the shape {sizes}, not (n, C, h, w)")
    if shape is not None and (tuple(sizes[-3:]) != shape or len(sizes) not in (3, 4)):
        wanted = ", ".join(map(str, shape))
        raise Refused(f"features have the shape {sizes}: this classifier takes ({wanted}) or (n, {wanted})")
    count = sizes[0] if len(sizes) == 4 else 1
    if not prod(sizes):
        raise Refused("there is no feature in the body: features have the shape of none")
    rows = np.frombuffer(data[begin:end], TRANSPORT[dtype]).reshape(count, -1)
    if dtype == "I8" or spans.keys() & {*CODING}:
        rows = _decoded(rows, dtype, spans, data)
    index = _index(spans["index"], data, count) if "index" in spans else None
    if not (finite := np.isfinite(rows).all(1)).all():
        row = int(np.argmin(finite))
        which = f"feature {row}" if index is None else f"feature {row} (index {index[row]})"
        raise Refused(f"{which} is not finite (NaN or infinite)")
    return Features(dtype, rows.reshape(count, *sizes[-3:]).astype(np.float32), index, metadata)


def _decoded(
    rows: np.ndarray, dtype: str, spans: dict[str, tuple[str, list[int], int, int]], data: memoryview
) -> np.ndarray:
    """Features sent in int8 as float32 ``(n, D)``."""
    count = [len(rows)]
    if dtype != "I8" or any(name not in spans or spans[name][:2] != ("F32", count) for name in CODING):
        raise Refused(f"features as I8 need scale and offset, F32 {count} each, and others have neither")
    scale, offset = (np.frombuffer(data[b:e], "<f4")[:, None] for _, _, b, e in (spans[n] for n in CODING))
    with np.errstate(all="ignore"):  # what is not finite is refused after this
        made: np.ndarray = rows.astype(np.float32) * scale + offset
    return made


def claimed_hash(name: str, metadata: dict[str, str], header: str | None) -> str | None:
    """The SHA-256 that the sender claims, from the body's metadata or the request's header; None: neither.

    Raises:
        Refused: it is no SHA-256, or the two differ.
    """
    given = {text.strip().lower() for text in (metadata.get(name), header) if text is not None}
    if len(given) > 1:
        raise Refused(f"the body's metadata and the request's header give two different {name}")
    if not all(re.fullmatch(r"[0-9a-f]{64}", text) for text in given):
        raise Refused(f"{name} is no SHA-256: give the 64 hexadecimal digits of the store's manifest.json")
    return next(iter(given), None)


def _split(body: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header and the tensors' bytes."""
    if not body:
        raise Refused("the body is empty")
    length, room = int.from_bytes(body[:8], "little"), len(body) - 8
    if body[8:9] != b"{" or length > 10**8:  # the library's limit
        other = next((kind for start, kind in _OTHERS.items() if body.startswith(start)), None)
        raise Foreign("the body is no safetensors file" + (f" but {other}" if other else ""))
    if length > min(MAX_HEADER, room):
        raise Refused(
            f"the body is truncated: its header has {length} bytes (at most {MAX_HEADER}), {room} are there"
        )
    try:
        header: dict[str, Any] = parse_json(body[8 : 8 + length], "the safetensors header", "write it anew")
    except UserError as error:
        raise Refused(str(error)[:250]) from error
    return header, memoryview(body)[8 + length :]


def _span(name: str, entry: object, room: int) -> tuple[str, list[int], int, int]:
    """Type, shape and place of a tensor: they fit together, and into `room` bytes."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"{name} must have dtype, shape and data_offsets in the safetensors header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _TYPES:
        raise Refused(f"{name} is of type {str(dtype)[:20]!r}: features are F32, F16 or I8, index is I64")
    if not _naturals(shape) or len(shape) > 4 or not _naturals(offsets) or len(offsets) != 2:
        raise Refused(f"{name}: shape must be up to 4, data_offsets 2 whole numbers that are not negative")
    begin, end = offsets
    width = np.dtype(_TYPES[dtype]).itemsize
    if not begin <= end <= room or end - begin != width * prod(shape):
        raise Refused(
            f"{name}: data_offsets {begin} to {end} do not hold {shape} numbers of {width} bytes within the "
            f"{room} bytes of tensors"
        )
    return dtype, shape, begin, end


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**40 for item in value)


def _index(span: tuple[str, list[int], int, int], data: memoryview, count: int) -> list[int]:
    dtype, shape, begin, end = span
    if dtype != "I64" or shape != [count]:
        raise Refused(f"index is {dtype} {shape}: I64 [{count}], a number for each feature, is taken")
    numbers: list[int] = np.frombuffer(data[begin:end], "<i8").tolist()
    if len(set(numbers)) < len(numbers):
        raise Refused("a number comes twice in index")
    return numbers
