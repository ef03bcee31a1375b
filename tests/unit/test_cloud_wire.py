import random
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from cloud_lab import body
from malformed import GOOD, HASH, MALFORMED, SHAPE
from safetensors import SafetensorError
from safetensors.torch import load, save

from crafter_pl.cloud.wire import Refused, claimed_hash, read_features
from crafter_pl.data.transport import decode, encode


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_bodies_are_refused_in_one_line(name):
    data, words = MALFORMED[name]
    with pytest.raises(Refused) as refused:
        read_features(data, SHAPE)
    line = str(refused.value)
    assert words in line and "\n" not in line and len(line) < 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("rows", [None, 1, 5])
@pytest.mark.parametrize("numbered", [False, True])
def test_what_is_sent_is_read(dtype, rows, numbered):
    features = torch.randn(SHAPE if rows is None else (rows, *SHAPE)).to(dtype)
    index = list(range(-2, (rows or 1) - 2)) if numbered else None
    read = read_features(body(features, HASH, index), SHAPE)
    array = read.array
    assert array.dtype == np.float32 and np.array_equal(array, features.reshape(-1, *SHAPE).float())
    assert read.index == index and read.metadata == {"encoder_sha256": HASH}


def test_a_feature_that_was_written_as_the_page_says_is_read():
    text = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    (block,) = [
        one for one in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M) if "def safetensors" in one
    ]
    exec(block, names := {})
    numbers = np.arange(np.prod(SHAPE), dtype="<f4").reshape(SHAPE)
    read = read_features(names["safetensors"](numbers.tobytes(), list(SHAPE)), SHAPE)
    assert np.array_equal(read.array, numbers[None]) and read.index is None


def test_int8_is_read_as_a_store_reads_it():
    features = torch.randn(3, *SHAPE)
    coded = encode(features, "int8")
    read = read_features(save({**coded, "index": torch.arange(3)}), SHAPE)
    assert np.array_equal(read.array, decode(coded)) and read.index == [0, 1, 2]
    assert np.abs(read.array - features.numpy()).max() < 0.03


def test_ten_thousand_damaged_bodies():
    """Each is read as the library reads it, or refused; nothing else is raised, little is allocated."""
    chance = random.Random(0)
    sound = [body(torch.randn(2, *SHAPE), HASH, [3, 4]), body(torch.randn(SHAPE).half()), GOOD]
    sound.append(save(encode(torch.randn(2, *SHAPE), "int8")))
    good = [*sound * 40, *(data for data, _ in MALFORMED.values() if len(data) < 2000)]
    pieces = [
        b"[",
        b"]",
        b"{",
        b'"',
        b",",
        b"-",
        b"9" * 20,
        b"e9",
        b"null",
        b"\0",
        b"\xff\xfe",
        b"I64",
        b"F16",
    ]
    taken = 0
    for _ in range(10_000):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randint(1, 2)):
            place = chance.randrange(len(data) + 1)
            kind = chance.randrange(5)
            if kind == 0 and place < len(data):
                data[place] ^= 1 << chance.randrange(8)
            elif kind == 1:
                data[place:place] = chance.choice(pieces)
            elif kind == 2:
                del data[place : place + chance.randint(1, 20)]
            elif kind == 3:
                data[:8] = struct.pack(
                    "<Q", chance.choice([0, 2, len(data), max(0, len(data) - 8), 2**31, 2**63])
                )
            else:
                data[place:] = chance.randbytes(chance.randint(0, 60))
        try:
            read = read_features(bytes(data), SHAPE)
        except Refused as refused:
            assert len(str(refused)) < 300
            continue
        taken += 1
        try:
            known = decode(load(bytes(data))).reshape(-1, *SHAPE)
        except SafetensorError as error:
            raise AssertionError(f"taken, but refused by the library ({error}): {bytes(data)!r}") from error
        assert np.array_equal(read.array, known)
    assert 300 < taken < 9000


def test_claims():
    assert claimed_hash("encoder_sha256", {}, None) is None
    assert claimed_hash("encoder_sha256", {"encoder_sha256": HASH}, None) == HASH
    assert claimed_hash("encoder_sha256", {"encoder_sha256": HASH}, f" {HASH.upper()} ") == HASH
    with pytest.raises(Refused, match="two different"):
        claimed_hash("encoder_sha256", {"encoder_sha256": HASH}, "0" * 64)
    for wrong in ("", "abc", "x" * 64, HASH + "0", "../../etc/passwd"):
        with pytest.raises(Refused, match="no SHA-256"):
            claimed_hash("encoder_sha256", {}, wrong)
