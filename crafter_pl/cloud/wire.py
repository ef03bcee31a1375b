"""What may come in over the network: a safetensors body with features, read without trusting a byte of it.

The format is that of the `safetensors` library: eight bytes with the length of the header, the header as
JSON, then the tensors' bytes without gaps. It is read here and not by the library, since a body holds four
tensors at most: nothing is allocated by what a header says, and every refusal is a line for the sender.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

MAX_HEADER = 64 * 1024  # bytes; that of a shard with its hashes has 300
TRANSPORT = {"F32": "<f4", "F16": "<f2", "I8": "<i1"}  # what features may be sent as
CODING = ("scale", "offset")  # of features sent as I8, see `crafter_pl.data.transport`
CLAIMS = ("encoder_sha256", "defense_sha256")  # metadata keys, and manifest entries of a feature store


class Refused(Exception):
    """A body that is not taken: one line for its sender."""


@dataclass(frozen=True)
class Features:
    """A body that was taken.

    Attributes:
        dtype: numpy's name of what `data` is in, little-endian.
        data: the finite features, row by row.
        count: how many they are.
        index: int64, the sender's numbers of them; None: there were none.
        metadata: of the header.
    """

    dtype: str
    data: bytes
    count: int
    index: list[int] | None
    metadata: dict[str, str]

    def array(self, shape: Sequence[int]) -> np.ndarray:
        """The features as float32 ``(n, C, h, w)``."""
        rows = np.frombuffer(self.data, self.dtype).reshape(self.count, *shape)
        return rows.astype(np.float32)


def read_features(body: bytes, shape: Sequence[int]) -> Features:
    """Read one feature or a shard of a feature store.

    Args:
        body: safetensors with `features`, float32, float16 or int8 ``(C, h, w)`` or ``(n, C, h, w)``; with
            int8 also `scale` and `offset`, float32 ``(n,)``; and if the sender likes `index`, int64 ``(n,)``.
        shape: ``(C, h, w)`` of the features that the classifier takes.

    Raises:
        Refused: the body is malformed, of another shape or type, or not finite.
    """
    header, data = _split(body)
    metadata = _metadata(header.pop("__metadata__", {}))
    if strange := sorted(header.keys() - {"features", "index", *CODING}):
        raise Refused(f"tensor {strange[0][:40]!r} is not expected: send features, and index if you like")
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
        raise Refused(f"features are {dtype}: send F32, F16 or I8")
    if tuple(sizes[-3:]) != tuple(shape) or len(sizes) not in (3, 4):
        wanted = ", ".join(map(str, shape))
        raise Refused(f"features have the shape {sizes}: this classifier takes ({wanted}) or (n, {wanted})")
    count = sizes[0] if len(sizes) == 4 else 1
    if not count:
        raise Refused("there is no feature in the body: features have the shape of none")
    rows, kind = np.frombuffer(data[begin:end], TRANSPORT[dtype]).reshape(count, -1), TRANSPORT[dtype]
    if coded := (dtype == "I8") or spans.keys() & {*CODING}:
        rows, kind = _decoded(rows, dtype, spans, data), "<f4"
    if not (finite := np.isfinite(rows).all(1)).all():
        raise Refused(f"feature {int(np.argmin(finite))} of the body is not finite (NaN or infinite)")
    index = _index(spans["index"], data, count) if "index" in spans else None
    return Features(kind, rows.tobytes() if coded else bytes(data[begin:end]), count, index, metadata)


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
    for text in given:
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise Refused(
                f"{name} is no SHA-256: give the 64 hexadecimal digits of the store's manifest.json"
            )
    return next(iter(given), None)


def _split(body: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header and the tensors' bytes."""
    if len(body) < 8:
        raise Refused(f"a body of {len(body)} bytes is no safetensors file")
    length = int.from_bytes(body[:8], "little")
    if length > MAX_HEADER or length > len(body) - 8:
        raise Refused(
            f"no safetensors file, or a truncated one: its first 8 bytes announce a header of {length} "
            f"bytes, the body has {len(body) - 8} more, and {MAX_HEADER} are the most"
        )
    try:
        header = json.loads(
            body[8 : 8 + length].decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise Refused("the safetensors header is no JSON") from error
    if not isinstance(header, dict):
        raise Refused("the safetensors header is no JSON object")
    return header, memoryview(body)[8 + length :]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, none of whose keys comes twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise Refused("a name comes twice in the safetensors header")
    return made


def _no_constant(name: str) -> None:
    raise Refused(f"{name} in the safetensors header")


def _metadata(entry: object) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise Refused("__metadata__ in the safetensors header must map names to strings")
    return entry


def _span(name: str, entry: object, room: int) -> tuple[str, list[int], int, int]:
    """Type, shape and place of a tensor: they fit together, and into `room` bytes."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"{name} must have dtype, shape and data_offsets in the safetensors header")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in (*TRANSPORT, "I64"):
        raise Refused(f"{name} is of type {str(dtype)[:20]!r}: send features as F32, F16 or I8, index as I64")
    if not _naturals(shape) or len(shape) > 4 or not _naturals(offsets) or len(offsets) != 2:
        raise Refused(f"{name}: shape must be up to 4, data_offsets 2 whole numbers that are not negative")
    begin, end = offsets
    width = {"F32": 4, "F16": 2, "I8": 1, "I64": 8}[dtype]
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
        raise Refused(f"index is {dtype} {shape}: send I64 [{count}], a number for each feature, or no index")
    numbers: list[int] = np.frombuffer(data[begin:end], "<i8").tolist()
    if len(set(numbers)) < len(numbers):
        raise Refused("a number comes twice in index")
    return numbers
