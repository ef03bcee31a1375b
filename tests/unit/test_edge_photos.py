import builtins
import importlib
import io
import math
import re
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from PIL import Image

from crafter_pl.data.decoding import decode
from crafter_pl.data.framing import OFFICIAL
from crafter_pl.edge.faces import Finder, Place, cut
from crafter_pl.edge.photos import Refused, open_photo, photographs, shown, to_picture
from crafter_pl.errors import UserError


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "photos"
    made.mkdir()
    return made


def names(folder):
    """The paths in a folder by the name that is printed."""
    return {shown(path.name): path for path in folder.iterdir()}


def test_hostile_files_are_refused_with_a_line_each(folder):
    lines = hostile.refused(folder)
    paths = names(folder)
    for name, line in lines.items():
        if name in ("away", "one.png"):  # the listing's business, and the finder's
            continue
        with pytest.raises(Refused) as refused:
            open_photo(paths[name])
        assert str(refused.value).startswith(line), name
        assert str(refused.value).isprintable() and len(str(refused.value)) < 160, name
    with pytest.raises(Refused, match=r"^a folder"):
        open_photo(folder / "empty.jpg")
    with pytest.raises(Refused, match=r"^missing"):
        open_photo(folder / "absent.jpg")
    for name in ("nul\0.jpg", "a" * 300):
        with pytest.raises(Refused, match=r"^(cannot be read|missing)"):
            open_photo(folder / name)


def test_odd_files_are_taken_with_a_remark(folder):
    expected = np.asarray(hostile.smooth()).astype(int)
    for name, remark in hostile.taken(folder).items():
        picture, notes = open_photo(folder / name)
        assert picture.mode == "RGB", name
        assert "; ".join(notes).startswith(remark) and bool(notes) == bool(remark), (name, notes)
        if name in ("grey16.png", "greyalpha.png", "bits.png", "alpha.png", "palette.png", "broken_exif.jpg"):
            continue
        tolerance = 70 if "palette" in name or name == "moving.gif" else 14
        assert np.abs(np.asarray(picture).astype(int) - expected).max() <= tolerance, name
    grey = np.asarray(open_photo(folder / "grey16.png")[0])
    assert decode(folder / "odd_exif.jpg", 16).shape == (3, 16, 16)
    assert np.array_equal(grey[..., 1], expected[..., 0])  # scaled, not cut off at 255
    alpha = np.asarray(open_photo(folder / "alpha.png")[0])
    assert alpha[0].min() > 250 and np.abs(alpha[-1].astype(int) - expected[-1]).max() < 10


def test_limits(folder, monkeypatch):
    hostile.smooth((40, 50)).save(folder / "a.png")
    assert open_photo(folder / "a.png", 2000)[0].size == (40, 50)
    with pytest.raises(Refused, match="--max_pixels 1999"):
        open_photo(folder / "a.png", 1999)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(Refused, match="too many pixels"):
        open_photo(folder / "a.png", 1999)


def test_what_may_not_be_read(folder, monkeypatch):
    hostile.smooth().save(folder / "a.png")
    plain = builtins.open

    def opened(file, *args, **kwargs):  # permissions do not stop root, who may run the tests
        if str(file).endswith("a.png"):
            raise PermissionError(13, "Permission denied")
        return plain(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(Refused, match="permissions"):
        open_photo(folder / "a.png")


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(100)


def test_heic_without_its_library_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (folder / "a.jpg").write_bytes(HEIC)
    with pytest.raises(Refused, match="pillow-heif"):
        open_photo(folder / "a.jpg")


def test_heic_with_its_library(folder):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    hostile.smooth().transpose(Image.Transpose.ROTATE_90).save(
        folder / "a.heic", quality=95, exif=exif.tobytes()
    )
    picture, notes = open_photo(folder / "a.heic")
    assert picture.size == (40, 48) and not notes
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(hostile.smooth())).max() < 30
    whole = (folder / "a.heic").read_bytes()
    for data in (whole[: len(whole) // 2], HEIC):
        (folder / "a.heic").write_bytes(data)
        with pytest.raises(Refused, match=r"damaged|no photograph"):
            open_photo(folder / "a.heic")


def test_random_damage_never_gets_through(folder):
    """Bytes flipped at random, in every format: a picture or a refusal, nothing else."""
    generator = np.random.default_rng(0)
    hostile.taken(folder)
    for path in sorted(folder.iterdir()):
        whole = bytearray(path.read_bytes())
        for _ in range(12):
            data = bytearray(whole)
            for place in generator.integers(0, len(data), 4):
                data[place] = generator.integers(0, 256)
            path.write_bytes(data)
            try:
                assert open_photo(path)[0].mode == "RGB"
            except Refused as refused:
                assert str(refused).isprintable()


# What the Python API takes


def test_pixels_of_all_kinds_are_one_picture():
    picture = hostile.smooth()
    array = np.asarray(picture)
    same = [
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        array.astype(np.float32) / 255,
        torch.from_numpy(array.copy()).double() / 255,
        picture.convert("RGBA"),
    ]
    for image in same:
        assert np.array_equal(np.asarray(to_picture(image)), array)
    half = to_picture(torch.from_numpy(array.copy()).div(255).bfloat16())
    assert np.abs(np.asarray(half).astype(int) - array).max() <= 1


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (7, "cannot protect a int"),
        (np.zeros((4, 4)), r"shape \(4, 4\)"),
        (np.zeros((2, 3, 40, 40), np.uint8), r"shape \(2, 3, 40, 40\)"),
        (np.zeros((0, 40, 3), np.uint8), r"shape \(0, 40, 3\)"),
        (np.zeros((40, 40, 3), np.int64), "int64"),
        (np.full((40, 40, 3), 1.5), r"\[0, 1\].* 1.5"),
        (np.full((40, 40, 3), np.nan), r"must be in \[0, 1\]"),
        (torch.full((3, 40, 40), -0.1), r"must be in \[0, 1\]"),
        (Image.new("F", (40, 40)), "unusual pixels"),
    ],
)
def test_pixels_that_are_no_picture(image, words):
    with pytest.raises(UserError, match=words):
        to_picture(image)


def test_a_truncated_image_object():
    data = io.BytesIO()
    hostile.smooth().save(data, "PNG")
    image = Image.open(io.BytesIO(data.getvalue()[:100]))
    with pytest.raises(UserError, match="damaged or truncated"):
        to_picture(image)


# Listing


def test_listing(folder):
    for name in (
        "b.jpg",
        "a.jpg",
        ".hidden.jpg",
        "deep/er/c.jpg",
        ".cache/d.jpg",
        "store/e.jpg",
        "Thumbs.db",
        "@eaDir/f.jpg",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "z.jpg").symlink_to(folder / "a.jpg")
    (folder / "linked").symlink_to(folder / "deep")
    (folder / "none").mkdir()
    given = [str(folder), str(folder / "b.jpg"), str(folder / "none"), str(folder / "absent.jpg")]
    paths, refused = photographs(given, {folder / "store"})
    assert [path.removeprefix(f"{folder}/") for path in paths] == [
        "a.jpg",
        "b.jpg",
        "deep/er/c.jpg",
        "absent.jpg",
    ]
    lines = {path.removeprefix(f"{folder}/"): str(why) for path, why in refused}
    assert lines == {
        "z.jpg": f"twice (the same file as {folder}/a.jpg)",
        "linked": "a link to a folder",
        "none": "no files in it",
    }


# Faces


def test_cutting_is_what_the_data_module_cuts(tmp_path):
    hostile.smooth((178, 218)).save(tmp_path / "a.png")
    place = Finder("none").find(open_photo(tmp_path / "a.png")[0])
    assert place == [Place(89.0, 119.0, 128.0)]
    for size in (16, 64, 200):
        mine = cut(Image.open(tmp_path / "a.png"), place[0], size)
        assert mine.dtype == torch.uint8 and mine.shape == (3, size, size)
        assert np.abs(mine.numpy().astype(int) - decode(tmp_path / "a.png", size)).max() <= 2


def test_cutting_turns_and_continues_borders():
    picture = hostile.smooth((200, 200))
    straight = cut(picture, Place(100, 100, 60), 32).int()
    turned = cut(picture.rotate(-30, Image.Resampling.BICUBIC), Place(100, 100, 60, 30), 32).int()
    assert (turned - straight).abs().max() <= 3
    outside = cut(picture, Place(0, 0, 80), 32)
    assert (outside[0, :, :16] <= 6).all() and outside[0, :, -1].min() > 30
    assert cut(picture, Place(-500, 900, 4000, 45), 8).shape == (3, 8, 8)


@pytest.mark.parametrize("size", [(40, 40), (33, 2000), (3000, 33), (32, 32), (500, 400)])
def test_no_face(size):
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for picture in (Image.new("RGB", size, (120, 130, 140)), Image.fromarray(noise)):
        with pytest.raises(Refused, match="no face found"):
            Finder().find(picture)


def test_options_of_the_finder():
    for wrong in ({"faces": "some"}, {"min_confidence": 2.0}, {"min_size": 0}, {"margin": -0.5}):
        with pytest.raises(UserError, match="--"):
            Finder(**wrong)
    with pytest.raises(Refused, match="--min_size 32"):
        Finder("none").find(Image.new("RGB", (31, 80)))


def test_photographs_are_cut_for_a_training(folder, tmp_path, capsys):
    """scripts/cut_faces.py: the same folders, a file for each, and what is there is kept."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
    cut_faces = importlib.import_module("cut_faces").cut_faces
    for name in ("ann/one.jpg", "bob/one.png"):
        (folder / name).parent.mkdir()
        Image.new("RGB", (90, 60), "teal").save(folder / name)
    (folder / "bob" / "two.jpg").write_bytes(b"no picture")
    assert cut_faces(folder, tmp_path / "out", 48, "none") == 2
    made = {str(file.relative_to(tmp_path / "out")): file for file in (tmp_path / "out").rglob("*.*")}
    assert sorted(made) == ["ann/one.jpg.png", "bob/one.png.png"]
    assert Image.open(made["ann/one.jpg.png"]).size == (48, 48)
    said = capsys.readouterr().out
    assert "skipped" in said and "two.jpg" in said and "2 faces" in said and "1 files left out" in said
    made["ann/one.jpg.png"].write_bytes(b"mine")
    assert cut_faces(folder, tmp_path / "out", 48, "none") == 2
    assert made["ann/one.jpg.png"].read_bytes() == b"mine"


def test_the_square_of_the_page_is_the_finders():
    """docs/export.md, for who finds faces with a detector of their own."""
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (block,) = [one for one in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M) if "def square" in one]
    exec(block, names := {})
    points = np.array([[41, 60], [83, 52], [60, 80], [50, 103], [82, 97]], dtype=float)  # the third: the nose
    place = Finder("none", frame=OFFICIAL)._place(np.array([20.0, 20.0, 110.0, 125.0]), points)
    centre, side, angle = names["square"]([complex(*points[row]) for row in (0, 1, 3, 4)], OFFICIAL._asdict())
    assert place.angle != 0, "by its points, and not by its box"
    found = (centre.real, centre.imag, side, math.degrees(angle))
    assert found == pytest.approx((place.x, place.y, place.side, place.angle))
