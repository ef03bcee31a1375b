"""Bodies that the cloud refuses, by name, each with words of its answer."""

import json
import struct

import torch
from cloud_lab import body
from safetensors.torch import save

from crafter_pl.cloud.wire import MAX_HEADER
from crafter_pl.data.transport import encode

SHAPE = (2, 3, 3)
ROW = 4 * 18  # bytes of a feature
HASH = "ab" * 32


def raw(header, data=b"", length=None):
    """A body by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(1, *SHAPE), offsets=(0, ROW)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = raw({"features": entry()}, bytes(ROW))
MALFORMED = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"1234567", "no safetensors file"),
    "length alone": (struct.pack("<Q", 0), "no safetensors file"),
    "a header of 2**63 bytes": (raw(b"{}", length=2**63), "no safetensors file"),
    "a header of 2**64-1 bytes": (raw(b"{}", length=2**64 - 1), "no safetensors file"),
    "a header one byte longer than the body": (raw(b"{}", length=3), "truncated"),
    "a header that is too long": (raw(b"{" + b" " * MAX_HEADER + b"}"), "at most 65536"),
    "truncated in the header": (GOOD[:30], "truncated"),
    "truncated in the tensors": (GOOD[:-1], "data_offsets"),
    "a byte too many": (GOOD + b"\0", "the body has 73"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0" + bytes(50), "but gzip"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(200), "no safetensors file"),
    "a pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0c__builtin__\nexec\n", "but a pickle"),
    "a zip, as torch.save makes it": (b"PK\x03\x04" + bytes(100), "but a zip"),
    "a form": (b"--x\r\nContent-Disposition: form-data\r\n\r\n", "but form data"),
    "JSON": (b'{"features": [[1, 2]]}', "but JSON"),
    "no UTF-8": (raw(b'{"\xff": 1}'), "cannot be read as JSON"),
    "UTF-16": (raw('{"a": 1}'.encode("utf-16")), "no safetensors file"),
    "half a header": (raw(b'{"features": {"dty'), "cannot be read as JSON"),
    "a list as header": (raw(b"[]"), "no safetensors file"),
    "a number as header": (raw(b"1"), "no safetensors file"),
    "a number of 5000 digits": (raw(b'{"a":' + b"1" * 5000 + b"}"), "cannot be read as JSON"),
    "deep lists": (raw(b'{"a":' + b"[" * 60000), "nested too deeply"),
    "deep objects": (raw(b'{"a":' * 12000), "nested too deeply"),
    "NaN in the header": (raw(b'{"features": NaN}'), "not finite"),
    "a name twice": (raw(b'{"features": 1, "features": 2}'), "twice"),
    "no tensor": (raw({}), "no tensor features"),
    "index alone": (raw({"index": entry("I64", [1], [0, 8])}, bytes(8)), "no tensor features"),
    "a name of 60000 letters twice": (
        raw(b"{%s, %s}" % ((b'"' + b"a" * 30000 + b'": 1',) * 2)),
        "cannot be read",
    ),
    "a stranger": (raw({"features": entry(), "image": entry()}, bytes(ROW)), "'image' is not expected"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}, "features": entry()}, bytes(ROW)), "to strings"),
    "metadata as list": (raw({"__metadata__": [], "features": entry()}, bytes(ROW)), "to strings"),
    "an entry that is a number": (raw({"features": 1}), "must have dtype"),
    "an entry without shape": (
        raw({"features": {"dtype": "F32", "data_offsets": [0, 0]}}),
        "must have dtype",
    ),
    "an entry with more": (raw({"features": {**entry(), "x": 1}}, bytes(ROW)), "must have dtype"),
    "a type that is none": (raw({"features": entry("PICKLE")}, bytes(ROW)), "'PICKLE'"),
    "a type that is a list": (raw({"features": {**entry(), "dtype": []}}, bytes(ROW)), "is of type"),
    "bfloat16": (body(torch.zeros(1, *SHAPE, dtype=torch.bfloat16)), "'BF16'"),
    "float64": (body(torch.zeros(1, *SHAPE, dtype=torch.float64)), "'F64'"),
    "int8 without scale": (
        save({"features": torch.zeros(1, *SHAPE, dtype=torch.int8)}),
        "need scale and offset",
    ),
    "int8 with too many scales": (
        save({**encode(torch.rand(2, *SHAPE), "int8"), "scale": torch.ones(3)}),
        "need scale and offset, F32 [2] each",
    ),
    "int8 with an infinite scale": (
        save({**encode(torch.rand(2, *SHAPE), "int8"), "scale": torch.tensor([1.0, float("inf")])}),
        "feature 1 is not finite",
    ),
    "float32 with a scale": (
        save({"features": torch.zeros(1, *SHAPE), "scale": torch.ones(1), "offset": torch.ones(1)}),
        "others have neither",
    ),
    "integers": (body(torch.zeros(1, *SHAPE, dtype=torch.int64)), "features are I64"),
    "a negative size": (raw({"features": entry(shape=(-1, *SHAPE))}, bytes(ROW)), "not negative"),
    "a size of 2**62": (raw({"features": entry(shape=(2**62, *SHAPE))}, bytes(ROW)), "not negative"),
    "a size of 2**39": (raw({"features": entry(shape=(2**39, *SHAPE))}, bytes(ROW)), "do not hold"),
    "a size that is true": (raw({"features": entry(shape=(True, *SHAPE))}, bytes(ROW)), "not negative"),
    "a size that is a float": (raw({"features": entry(shape=(1.0, *SHAPE))}, bytes(ROW)), "not negative"),
    "a shape that is a string": (raw({"features": {**entry(), "shape": "1"}}, bytes(ROW)), "not negative"),
    "five dimensions": (raw({"features": entry(shape=(1, 1, *SHAPE))}, bytes(ROW)), "not negative"),
    "negative offsets": (raw({"features": entry(offsets=(-ROW, 0))}, bytes(ROW)), "not negative"),
    "offsets backwards": (raw({"features": entry(offsets=(ROW, 0))}, bytes(ROW)), "do not hold"),
    "offsets beyond the body": (raw({"features": entry(offsets=(4, ROW + 4))}, bytes(ROW)), "do not hold"),
    "offsets of another size": (raw({"features": entry(offsets=(0, 8))}, bytes(ROW)), "do not hold"),
    "three offsets": (raw({"features": entry(offsets=(0, 1, ROW))}, bytes(ROW)), "not negative"),
    "a gap in front": (raw({"features": entry(offsets=(8, ROW + 8))}, bytes(ROW + 8)), "gaps"),
    "overlap": (
        raw({"features": entry(), "index": entry("I64", [1], [0, 8])}, bytes(ROW)),
        "overlap",
    ),
    "other channels": (body(torch.zeros(1, 3, 3, 3)), "this classifier takes (2, 3, 3)"),
    "one dimension": (body(torch.zeros(18)), "this classifier takes"),
    "a scalar": (body(torch.tensor(1.0)), "this classifier takes"),
    "none at all": (body(torch.zeros(0, *SHAPE)), "no feature"),
    "NaN": (body(torch.full((1, *SHAPE), torch.nan)), "feature 0 is not finite"),
    "infinity, second": (
        body(torch.cat([torch.zeros(1, *SHAPE), torch.full((1, *SHAPE), -torch.inf)])),
        "feature 1",
    ),
    "infinity in float16": (body(torch.full(SHAPE, torch.inf).half()), "not finite"),
    "index of floats": (save({"features": torch.zeros(SHAPE), "index": torch.zeros(1)}), "index is F32"),
    "index too short": (body(torch.zeros(2, *SHAPE), index=[1]), "I64 [2]"),
    "an index twice": (body(torch.zeros(2, *SHAPE), index=[7, 7]), "twice"),
}
