import io
import os
import struct
import sys
import time
from pathlib import Path

import hostile
import numpy as np
import pytest
from PIL import Image

from crafter_pl.data import pictures
from crafter_pl.data.decoding import decode, square
from crafter_pl.data.pictures import ENDINGS, FORMATS, Refused, open_picture, shown
from crafter_pl.edge.photos import open_photo
from crafter_pl.errors import UserError


def pixels(file):
    return np.asarray(open_picture(file).pixels).astype(int)


# Metadata, and what follows the picture


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_metadata_and_what_follows_never_cost_a_picture(tmp_path):
    expected = np.asarray(hostile.smooth()).astype(int)
    files = hostile.misdescribed()
    assert {name.rpartition(".")[2] for name in files} >= {"jpg", "png", "webp", "gif", "tif"}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        seen = pixels(tmp_path / name)
        assert seen.shape == expected.shape, name  # not turned
        assert np.abs(seen - expected).max() <= (70 if name.endswith("gif") else 14), name
        assert decode(tmp_path / name, 16).shape == (3, 16, 16)


def exif(turn):
    made = Image.Exif()
    made[0x0112] = turn
    return made


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_sound_metadata_turn_a_picture_once(tmp_path, kind):
    expected = np.asarray(hostile.smooth()).astype(int)
    for turn in range(1, 9):
        back = {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn)  # how to lay the picture down for it
        laid = hostile.smooth() if turn == 1 else hostile.smooth().transpose(pictures._TURNS[back])
        (tmp_path / "a").write_bytes(hostile.encoded(kind, laid, exif=exif(turn)))
        assert np.abs(pixels(tmp_path / "a") - expected).max() <= 14, turn


def test_a_turn_beside_broken_metadata_is_found():
    """In a JPEG and a PNG: whatever else is odd."""
    laid = hostile.smooth().transpose(Image.Transpose.ROTATE_90)
    jpeg = hostile.encoded("JPEG", laid, exif=exif(6))
    png = hostile.encoded("PNG", laid, exif=exif(6))
    odd = b"\xff\xee\0\7Adobe", hostile.chunk(b"tEXt", b"a\0b", check=1)
    for data in (jpeg[:20] + odd[0] + jpeg[20:], png[:33] + odd[1] + png[33:]):
        first = pictures.first_picture(data)
        assert pictures._turn(pictures._open(first.picture), first.about) == Image.Transpose.ROTATE_270


def test_scans_are_those_of_the_picture(tmp_path):
    few, many = hostile.scanned(80), hostile.scanned(5000)
    (tmp_path / "few.jpg").write_bytes(few + b"\xff\xda" * 5000)  # the film behind it
    assert pixels(tmp_path / "few.jpg").shape == (48, 40, 3)
    (tmp_path / "many.jpg").write_bytes(many)
    began = time.perf_counter()
    for opener in (open_picture, open_photo, lambda file: decode(file, 16)):
        with pytest.raises(Refused, match="scans"):
            opener(tmp_path / "many.jpg")
    assert time.perf_counter() - began < 1
    thumbnail = hostile.scanned(200)[:60000]
    inside = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    (tmp_path / "few.jpg").write_bytes(few[:2] + inside + few[2:])
    assert pixels(tmp_path / "few.jpg").shape == (48, 40, 3)


# One way: the data module and the edge


def test_data_module_and_edge_see_the_same_pixels(tmp_path):
    hostile.taken(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        photo, _ = open_photo(file)
        small = photo.resize((16, 16), Image.Resampling.BICUBIC, box=square(photo.size, "auto", file))
        near = np.asarray(small).transpose(2, 0, 1).astype(int) - decode(file, 16).astype(int)
        assert np.abs(near).max() <= (4 if b"JFIF" in file.read_bytes()[:20] else 0), file.name


def test_data_module_and_edge_refuse_the_same_files(tmp_path):
    (tmp_path / "x").mkdir()
    hostile.refused(tmp_path / "x")
    for file in sorted((tmp_path / "x").iterdir()):
        said = []
        for opener in (open_photo, lambda file: decode(file, 16)):
            try:
                opener(file)
                said.append("")
            except Refused as refused:
                said.append(refused.kind)
        assert said[0] == said[1], file


def test_wide_greys(tmp_path):
    """16 and 12 bits, white as the least number, a transparent grey: scaled to what they show."""
    ramp = np.linspace(0, 255, 64).round().astype(np.uint16)[None].repeat(8, 0)
    wide = Image.fromarray(ramp * 257)
    wide.save(tmp_path / "a.png")
    wide.save(tmp_path / "a.tif")
    wide.save(tmp_path / "clear.png", transparency=0)
    inverse = hostile.encoded("TIFF", Image.fromarray(65535 - ramp * 257))
    (tmp_path / "inverse.tif").write_bytes(hostile.tiff(inverse, (262, 3, 1, 0)))
    twelve = (ramp.astype(int) * 4095 // 255).reshape(8, 32, 2)
    packed = np.stack(
        [twelve[..., 0] >> 4, (twelve[..., 0] << 4 & 240) | twelve[..., 1] >> 8, twelve[..., 1]], -1
    )
    raw = bytearray(hostile.encoded("TIFF", Image.fromarray(ramp * 257)))
    at = raw.find((ramp * 257).astype("<u2").tobytes())
    raw[at : at + packed.size] = (packed & 255).astype(np.uint8).tobytes()
    (tmp_path / "twelve.tif").write_bytes(hostile.tiff(bytes(raw), (258, 3, 1, 12), (279, 4, 1, packed.size)))
    for name in ("a.png", "a.tif", "inverse.tif", "twelve.tif"):
        assert np.abs(pixels(tmp_path / name)[..., 0] - ramp).max() <= 1, name
    clear = pixels(tmp_path / "clear.png")[..., 0]
    assert (clear[:, 0] == 255).all() and np.array_equal(clear[:, 1:], ramp[:, 1:])


@pytest.mark.parametrize(
    "error",
    [NotImplementedError, struct.error, RecursionError, OverflowError, MemoryError, SyntaxError, KeyError],
)
def test_whatever_a_decoder_raises_is_a_refusal(tmp_path, monkeypatch, error):
    hostile.smooth().save(tmp_path / "a.png")

    def load(self):
        raise error("odd")

    monkeypatch.setattr(Image.Image, "load", load)
    for opener in (open_picture, open_photo, lambda file: decode(file, 16)):
        with pytest.raises(Refused):
            opener(tmp_path / "a.png")


def test_only_the_formats_listed_are_tried(tmp_path, monkeypatch):
    Image.init()
    tried = []
    for name, (factory, accept) in list(Image.OPEN.items()):

        def spy(prefix, name=name, accept=accept):
            tried.append(name)
            return accept is None or accept(prefix)

        monkeypatch.setitem(Image.OPEN, name, (factory, spy))
    for data in (b"DDS " + bytes(124), b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"8BPS\0\1" + bytes(99)):
        (tmp_path / "a.jpg").write_bytes(data)
        with pytest.raises(Refused, match="no photograph"):
            open_picture(tmp_path / "a.jpg")
    assert tried and set(tried) <= set(FORMATS)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_is_a_picture_or_a_refusal(tmp_path):
    generator = np.random.default_rng(1)
    whole = {**hostile.misdescribed(), "scans.jpg": hostile.scanned(90)}
    for name in sorted(whole)[::3]:
        for _ in range(6):
            data = bytearray(whole[name])
            for place in generator.integers(0, len(data), 3):
                data[place] = generator.integers(0, 256)
            (tmp_path / name).write_bytes(data[: generator.integers(1, len(data))])
            try:
                assert decode(tmp_path / name, 8).shape == (3, 8, 8)
            except UserError:
                pass


# Names


def test_names_are_shown_on_any_terminal(monkeypatch):
    odd = os.fsdecode(b"caf\xe9\n\x1b[31m") + "é中"
    for encoding in ("ascii", "latin-1", "utf-8"):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
        assert shown(odd).isprintable() and shown(Path(odd)).encode(encoding)


def test_every_format_has_its_endings():
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic"} <= set(
        ENDINGS
    )
