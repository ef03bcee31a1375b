import io
import os
import resource
import shutil
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image

from crafter_pl.data import decoding
from crafter_pl.data.decoding import Decoding, decode, decode_all
from crafter_pl.data.labels import LFW_PAPER_COLUMNS
from crafter_pl.data.sources import load_celeba, load_folder, load_lfw
from crafter_pl.errors import UserError

HOW = Decoding(image_size=8)


def picture(file, colour=(200, 100, 50), size=(12, 12), **save):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(file, **save)


def damage(file):
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])


@pytest.fixture
def celeba(tmp_path):
    """Six pictures of three people, and label files that have one row too many and miss one."""
    root = tmp_path / "celeba"
    names = [f"{k:06d}.jpg" for k in range(1, 7)]
    for k, name in enumerate(names):
        picture(root / "img_align_celeba" / name, (40 * k, 100, 50))
    (root / "identity_CelebA.txt").write_text(
        "".join(f"{n} {70 - k // 2}\n" for k, n in enumerate([*names[:5], "000009.jpg"]))
    )
    rows = [f"{name} {'1 -1' if k % 2 else '-1  1'} -1" for k, name in enumerate(names)]
    (root / "list_attr_celeba.txt").write_text("6\nBald Smiling Young\n" + "\n".join(rows) + "\n")
    (root / "list_eval_partition.txt").write_text("".join(f"{n} 2\n" for n in names))
    return root


@pytest.fixture
def lfw(tmp_path):
    root = tmp_path / "lfw"
    lines = ["# lfw_attributes.txt", "#\tperson\timagenum\t" + "\t".join(f"Thing {k}" for k in range(73))]
    for person in ("Ann Bee", "Cy"):
        for number in (1, 2, 12):
            picture(
                root
                / "lfw-deepfunneled"
                / person.replace(" ", "_")
                / f"{person.replace(' ', '_')}_{number:04d}.jpg"
            )
            scores = [f"{(-1) ** (k + number) * 0.5}" for k in range(73)]
            lines.append("\t".join([person, str(number), *scores]))
    picture(root / "lfw-deepfunneled" / "Aa_First" / "Aa_First_0001.jpg")
    lines.append("\t".join(["Gone", "1", *["0.1"] * 73]))
    (root / "lfw_attributes.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "people"
    for ending in ("jpg", "JPEG", "png", "webp"):
        picture(root / "ann" / f"a.{ending}")
    picture(root / "bob" / "b.png")
    (root / "bob" / "notes.txt").write_text("no picture")
    picture(root / "loose.png")
    return root


# CelebA


def test_celeba(celeba):
    faces = load_celeba(celeba, HOW)
    assert faces.file_names == [f"{k:06d}.jpg" for k in range(1, 6)]
    assert faces.identity.tolist() == [70, 70, 69, 69, 68]
    assert faces.identity_names == ["68", "69", "70"] and faces.name_of(69) == "69"
    assert faces.attribute_names == ["Bald", "Smiling", "Young"]
    assert faces.attributes.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert faces.notes == {"rows_without_picture": 1, "pictures_without_row": 1}
    assert faces.images.shape == (5, 3, 8, 8)
    assert (faces.images[3].float().mean((1, 2)) - torch.tensor([120.0, 100, 50])).abs().max() < 4


def test_celeba_attribute_columns(celeba):
    faces = load_celeba(celeba, HOW, [2, 0])
    assert faces.attribute_names == ["Young", "Bald"] and faces.attributes[1].tolist() == [0, 1]
    for columns in ([3], [-1], [1, 1], []):
        with pytest.raises(
            UserError, match=r"must be different numbers from 0 to 2 \(--data.attribute_columns\)"
        ):
            load_celeba(celeba, HOW, columns)


@pytest.mark.parametrize(
    ("name", "line", "row", "message"),
    [
        (
            "identity_CelebA.txt",
            2,
            "000002.jpg",
            r"identity_CelebA.txt, line 2: expected a file name and 1 value",
        ),
        (
            "identity_CelebA.txt",
            3,
            "000003.jpg x7",
            r"identity_CelebA.txt, line 3: expected an identity number, got 'x7'",
        ),
        (
            "identity_CelebA.txt",
            3,
            "000001.jpg 7",
            r"identity_CelebA.txt, line 3: a second row for 000001.jpg",
        ),
        (
            "list_attr_celeba.txt",
            5,
            "000003.jpg 1 1",
            r"list_attr_celeba.txt, line 5: .* 3 values of 1 or -1, got 2",
        ),
        (
            "list_attr_celeba.txt",
            4,
            "000002.jpg 1 0 1",
            r"list_attr_celeba.txt, line 4: .* 3 values of 1 or -1",
        ),
        (
            "list_attr_celeba.txt",
            1,
            "000002.jpg 1 1",
            r"list_attr_celeba.txt: line 1 must be the number of rows",
        ),
        (
            "list_eval_partition.txt",
            6,
            "000006.jpg 3",
            r"list_eval_partition.txt, line 6: the partition must be 0, 1 or 2",
        ),
    ],
)
def test_celeba_malformed_rows_name_file_and_line(celeba, name, line, row, message):
    lines = (celeba / name).read_text().splitlines()
    lines[line - 1] = row
    (celeba / name).write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=message):
        load_celeba(celeba, HOW)


def test_celeba_missing_parts(celeba, tmp_path):
    with pytest.raises(UserError, match=r"img_align_celeba is missing: .*\(--data.root\)$"):
        load_celeba(tmp_path / "nowhere", HOW)
    with pytest.raises(UserError, match=rf"did you mean {celeba}\?"):
        load_celeba(tmp_path, HOW)
    (celeba / "list_eval_partition.txt").unlink()
    load_celeba(celeba, HOW)
    (celeba / "list_attr_celeba.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"list_attr_celeba.txt cannot be read as text"):
        load_celeba(celeba, HOW)
    (celeba / "identity_CelebA.txt").unlink()
    with pytest.raises(UserError, match=r"identity_CelebA.txt is missing; it belongs beside the pictures"):
        load_celeba(celeba, HOW)


def test_celeba_labels_of_other_pictures(celeba):
    for file in (celeba / "img_align_celeba").iterdir():
        file.rename(file.with_name("x" + file.name))
    with pytest.raises(UserError, match="no picture in common"):
        load_celeba(celeba, HOW)


# LFW


def test_lfw(lfw):
    faces = load_lfw(lfw, HOW)
    assert faces.file_names[0] == "Ann_Bee/Ann_Bee_0001.jpg" and len(faces) == 6
    assert faces.identity.tolist() == [1, 1, 1, 2, 2, 2]  # 0 is the person without attributes
    assert faces.identity_names == ["Ann_Bee", "Cy"]
    assert faces.attribute_names == [f"Thing_{k}" for k in LFW_PAPER_COLUMNS]
    assert faces.attributes[0].tolist() == [k % 2 for k in LFW_PAPER_COLUMNS]
    assert faces.attributes[1].tolist() == [1 - k % 2 for k in LFW_PAPER_COLUMNS]
    assert faces.notes == {"rows_without_picture": 1, "pictures_without_row": 1}


def test_lfw_without_attributes_keeps_everybody(lfw):
    (lfw / "lfw_attributes.txt").unlink()
    faces = load_lfw(lfw, HOW, require_attributes=False)
    assert len(faces) == 7 and faces.attributes.shape == (7, 0) and faces.identity_names[0] == "Aa_First"
    with pytest.raises(UserError, match="require_attributes is false"):
        load_lfw(lfw, HOW, [1], require_attributes=False)
    with pytest.raises(UserError, match=r"lfw_attributes.txt is missing"):
        load_lfw(lfw, HOW)


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        (2, "person", "who", r"lfw_attributes.txt, line 2: expected a header"),
        (4, "\t", " ", r"lfw_attributes.txt, line 4: expected 75 cells separated by tabs, got 1"),
        (4, "\t2\t", "\ttwo\t", r"lfw_attributes.txt, line 4: expected a picture number, got 'two'"),
        (5, "0.5", "high", r"lfw_attributes.txt, line 5: the scores must be finite numbers"),
        (5, "0.5", "nan", r"lfw_attributes.txt, line 5: the scores must be finite numbers"),
        (5, "0.5", "inf", r"lfw_attributes.txt, line 5: the scores must be finite numbers"),
        (4, "\t2\t", "\t1\t", r"lfw_attributes.txt, line 4: a second row for Ann_Bee_0001"),
    ],
)
def test_lfw_malformed_rows_name_file_and_line(lfw, line, old, new, message):
    lines = (lfw / "lfw_attributes.txt").read_text().splitlines()
    lines[line - 1] = lines[line - 1].replace(old, new)
    (lfw / "lfw_attributes.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        load_lfw(lfw, HOW)


# Folder


def test_folder(folder):
    faces = load_folder(folder, HOW)
    assert faces.file_names == ["ann/a.JPEG", "ann/a.jpg", "ann/a.png", "ann/a.webp", "bob/b.png"]
    assert faces.identity.tolist() == [0, 0, 0, 0, 1] and faces.identity_names == ["ann", "bob"]
    assert faces.attributes.shape == (5, 0) and faces.attribute_names == []
    assert faces.notes == {"pictures_outside_a_person": 1}


def test_folder_without_pictures(tmp_path):
    with pytest.raises(
        UserError, match=r"people is missing: no folder of the people's folders \(--data.root\)"
    ):
        load_folder(tmp_path / "people", HOW)
    (tmp_path / "people" / "ann").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no pictures: expected <person>/<picture>"):
        load_folder(tmp_path / "people", HOW)


# As people have them


def same(one, other):
    assert one.identity.tolist() == other.identity.tolist() and torch.equal(one.images, other.images)
    assert one.attributes.tolist() == other.attributes.tolist()
    assert one.attribute_names == other.attribute_names


def test_celeba_one_folder_deeper_and_in_its_own_folders(celeba):
    plain = load_celeba(celeba, HOW)
    (celeba / "img_align_celeba").rename(celeba / "x")
    (celeba / "img_align_celeba").mkdir()
    (celeba / "x").rename(celeba / "img_align_celeba" / "img_align_celeba")
    same(load_celeba(celeba, HOW), plain)
    for name in ("Img", "Anno", "Eval"):
        (celeba / name).mkdir()
    (celeba / "img_align_celeba" / "img_align_celeba").rename(celeba / "Img" / "img_align_celeba")
    for name in ("identity_CelebA.txt", "list_attr_celeba.txt"):
        (celeba / name).rename(celeba / "Anno" / name)
    same(load_celeba(celeba, HOW), plain)


def test_celeba_labels_as_csv(celeba):
    plain = load_celeba(celeba, HOW)
    for file, head in (("list_attr_celeba", ""), ("list_eval_partition", "image_id,partition\r\n")):
        lines = (celeba / f"{file}.txt").read_text().splitlines()
        if not head:
            head, lines = "image_id," + ",".join(lines[1].split()) + "\r\n", lines[2:]
        rows = "\r\n".join(",".join(line.split()) for line in lines)
        (celeba / f"{file}.csv").write_text("\ufeff" + head + rows, encoding="utf-8")
        (celeba / f"{file}.txt").unlink()
    same(load_celeba(celeba, HOW), plain)
    text = (celeba / "list_attr_celeba.csv").read_text(encoding="utf-8")
    (celeba / "list_attr_celeba.csv").write_text(text.replace(",", ";"), encoding="utf-8")
    same(load_celeba(celeba, HOW), plain)
    (celeba / "list_attr_celeba.csv").write_text(text.replace("000002.jpg,1", "000002.jpg,2"))
    with pytest.raises(UserError, match=r"list_attr_celeba.csv, line 3: .*1 or -1"):
        load_celeba(celeba, HOW)
    (celeba / "identity_CelebA.txt").unlink()
    with pytest.raises(UserError, match=r"identity_CelebA.txt is missing.*Kaggle"):
        load_celeba(celeba, HOW)


def test_celeba_png_beside_labels_that_say_jpg(celeba):
    plain = load_celeba(celeba, HOW)
    (celeba / "img_align_celeba").rename(celeba / "img_align_celeba_png")
    for file in (celeba / "img_align_celeba_png").iterdir():
        Image.open(file).save(file.with_suffix(".png"))
        file.unlink()
    faces = load_celeba(celeba, HOW)
    same(faces, plain)
    assert faces.file_names == [f"{k:06d}.png" for k in range(1, 6)] and faces.notes == plain.notes
    picture(celeba / "img_align_celeba_png" / "000001.webp")  # one of two: nobody knows which
    assert load_celeba(celeba, HOW).file_names == [f"{k:06d}.png" for k in range(2, 6)]
    picture(celeba / "img_align_celeba_png" / "000001.jpg")
    assert load_celeba(celeba, HOW).file_names[:2] == ["000001.jpg", "000002.png"]


def test_lfw_in_other_folders(lfw):
    plain = load_lfw(lfw, HOW)
    people = (lfw / "lfw-deepfunneled").rename(lfw / "x")
    for place in ("lfw_funneled", "lfw", "lfw-deepfunneled/lfw-deepfunneled"):
        (lfw / place).parent.mkdir(exist_ok=True)
        people = people.rename(lfw / place)
        same(load_lfw(lfw, HOW), plain)
        assert load_lfw(lfw, HOW).file_names == plain.file_names


@pytest.mark.parametrize(
    ("source", "root", "meant"),
    [
        ("celeba", "celeba/img_align_celeba", "celeba"),
        ("celeba", ".", "celeba"),
        ("lfw", "lfw/lfw-deepfunneled", "lfw"),
        ("lfw", ".", "lfw"),
        ("folder", ".", "people"),
    ],
)
def test_the_folder_above_or_below_is_named(request, tmp_path, source, root, meant):
    request.getfixturevalue(source)
    (tmp_path / "people" / "loose.png").unlink(missing_ok=True)
    load = {"celeba": load_celeba, "lfw": load_lfw, "folder": load_folder}[source]
    with pytest.raises(UserError, match=rf"did you mean {tmp_path / meant}\?"):
        load(tmp_path / root, HOW)


def test_what_counts_is_the_content_and_other_files_are_named(folder, caplog):
    for name in ("a.bmp", "a.tif", "a.GIF", "wrong.jfif"):
        Image.new("RGB", (12, 12)).save(folder / "bob" / name, format=None if name != "wrong.jfif" else "PNG")
    for name in ("raw.CR2", "raw.cr2", "Thumbs.db", ".DS_Store", "._b.png", "desktop.ini", ".hidden.png"):
        (folder / "bob" / name).write_bytes(b"x")
    for name in ("@eaDir", "__MACOSX", ".cache"):
        picture(folder / name / "b.png")
    picture(folder / "bob" / "holiday" / "b.png")
    faces = load_folder(folder, HOW)
    assert [name for name in faces.file_names if name.startswith("bob")] == [
        "bob/a.GIF",
        "bob/a.bmp",
        "bob/a.tif",
        "bob/b.png",
        "bob/wrong.jfif",
    ]
    assert faces.identity_names == ["ann", "bob"] and "unreadable_pictures" not in faces.notes
    (line,) = [record.getMessage() for record in caplog.records if "endings" in record.getMessage()]
    assert "2 .cr2" in line and "1 .txt" in line and "db" not in line and "ini" not in line
    assert any("1 folders" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("strict", [False, True])
def test_an_odd_file_costs_itself_alone(folder, strict):
    odd = {
        "dds": b"DDS " + bytes(124),
        "pdf": b"%PDF-1.4",
        "random": os.urandom(2000),
        "bomb": b"BM" + b"\xff" * 60,
    }
    for name, data in odd.items():
        (folder / "bob" / f"{name}.jpg").write_bytes(data)
    os.mkfifo(folder / "bob" / "pipe.jpg")
    if strict:
        with pytest.raises(UserError, match=r"bomb.jpg is no readable picture"):
            load_folder(folder, Decoding(8, strict=True))
    else:
        faces = load_folder(folder, HOW)
        assert len(faces) == 5 and faces.notes["unreadable_pictures"] == 5


# Names


def test_names_are_bytes(tmp_path, caplog, monkeypatch):
    """Latin-1 under UTF-8, and a terminal that knows ASCII alone."""
    odd, person = os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"Ren\xe9e")
    picture(tmp_path / "people" / person / odd)
    picture(tmp_path / "people" / "中" / "b.png")
    (tmp_path / "people" / person / os.fsdecode(b"bad\xe9.png")).write_text("broken")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    faces = load_folder(
        tmp_path / "people", Decoding(8, cache_dir=tmp_path / os.fsdecode(b"c\xe9"), max_memory_mb=0)
    )
    assert faces.file_names == [f"{person}/{odd}", "中/b.png"] and faces.identity_names == [person, "中"]
    assert all(record.getMessage().isascii() for record in caplog.records) and caplog.records
    with pytest.raises(UserError) as error:
        load_folder(tmp_path / "people", Decoding(8, strict=True))
    assert str(error.value).isascii()


def test_names_are_equal_on_every_system(tmp_path):
    for form in ("NFC", "NFD"):
        picture(tmp_path / form / normalize(form, "Zoë") / normalize(form, "é.png"))
        picture(tmp_path / form / "Zoz" / "b.png")
    one, other = (load_folder(tmp_path / form, HOW) for form in ("NFC", "NFD"))
    assert one.file_names == other.file_names == ["Zoz/b.png", "Zoë/é.png"]
    assert one.identity_names == other.identity_names


@pytest.mark.parametrize("path", ["Zoë/a.png", "Zoe/é.png"])
def test_two_names_in_two_normal_forms_are_refused(tmp_path, path):
    for form in ("NFC", "NFD"):
        picture(tmp_path / normalize(form, path))
    with pytest.raises(UserError, match="normal forms"):
        load_folder(tmp_path, HOW)


def test_labels_find_pictures_in_either_normal_form(lfw):
    text = (lfw / "lfw_attributes.txt").read_text().replace("Cy", "Zoë")
    (lfw / "lfw_attributes.txt").write_text(text, encoding="utf-8")
    old = lfw / "lfw-deepfunneled" / "Cy"
    for file in old.iterdir():
        file.rename(file.with_name(normalize("NFD", file.name.replace("Cy", "Zoë"))))
    old.rename(old.with_name(normalize("NFD", "Zoë")))
    assert load_lfw(lfw, HOW).identity_names == ["Ann_Bee", "Zoë"]


# Unreadable pictures


def test_unreadable_pictures_are_left_out_and_counted(folder):
    damage(folder / "ann" / "a.jpg")
    (folder / "ann" / "empty.png").write_bytes(b"")
    (folder / "ann" / "text.png").write_text("hello")
    faces = load_folder(folder, HOW)
    assert faces.file_names == ["ann/a.JPEG", "ann/a.png", "ann/a.webp", "bob/b.png"]
    assert faces.notes["unreadable_pictures"] == 3


def test_a_person_without_readable_pictures_is_gone(folder):
    damage(folder / "bob" / "b.png")
    faces = load_folder(folder, HOW)
    assert faces.identity_names == ["ann"] and faces.people.tolist() == [0]


@pytest.mark.parametrize("cached", [False, True])
def test_a_dangling_link_is_an_unreadable_picture(folder, tmp_path, cached):
    (folder / "ann" / "b.png").symlink_to(tmp_path / "gone.png")
    cache = tmp_path / "cache" if cached else None
    faces = load_folder(folder, Decoding(8, cache_dir=cache))
    assert len(faces) == 5 and faces.notes["unreadable_pictures"] == 1
    with pytest.raises(UserError, match=r"ann/b.png is no readable picture"):
        load_folder(folder, Decoding(8, strict=True, cache_dir=cache))
    picture(tmp_path / "gone.png")
    assert len(load_folder(folder, Decoding(8, cache_dir=cache))) == 6


@pytest.mark.parametrize("cached", [False, True])
def test_strict_stops_at_an_unreadable_picture(folder, tmp_path, cached):
    damage(folder / "ann" / "a.jpg")
    cache = tmp_path / "cache" if cached else None
    if cached:
        load_folder(folder, Decoding(8, cache_dir=cache))
    with pytest.raises(UserError, match=r"ann/a.jpg is no readable picture.*--data.strict false"):
        load_folder(folder, Decoding(8, strict=True, cache_dir=cache))


def test_nothing_readable(folder):
    for file in folder.glob("*/*.*"):
        file.write_text("broken")
    with pytest.raises(UserError, match=r"none of the 5 pictures in .* is readable"):
        load_folder(folder, HOW)


# Crop and resize


def test_official_geometries_are_cropped_to_the_face_and_others_are_not(tmp_path):
    for name, size, box in (
        ("celeba.png", (178, 218), (25, 55, 153, 183)),
        ("lfw.png", (250, 250), (50, 50, 200, 200)),
        ("own.png", (100, 140), (0, 20, 100, 120)),
    ):
        image = Image.new("RGB", size, (255, 0, 0))
        image.paste((0, 0, 255), box)
        image.save(tmp_path / name)
        assert (decode(tmp_path / name, 16, "auto")[2] > 200).all(), name
        if name != "own.png":
            assert (decode(tmp_path / name, 16, "none")[0] > 100).any(), name
    assert (decode(tmp_path / "lfw.png", 16, 150)[2] > 200).all()
    with pytest.raises(UserError, match=r"own.png is 100 x 140, smaller than the crop of 120"):
        decode(tmp_path / "own.png", 16, 120)
    with pytest.raises(UserError, match="crop is 'face'"):
        Decoding(8, crop="face")


def test_reduced_jpeg_decoding_agrees_with_the_whole_picture(tmp_path):
    grid = np.linspace(0, 6, 218)[:, None] + np.linspace(0, 5, 178)[None]
    smooth = np.stack([127 + 100 * np.sin(grid + phase) for phase in range(3)], -1).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    Image.fromarray(smooth).save(tmp_path / "a.png")
    jpeg, png = (decode(tmp_path / f"a.{e}", 16, "auto").astype(float) for e in ("jpg", "png"))
    assert abs(jpeg - png).max() < 6


def test_camera_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 40, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    red = decode(tmp_path / "a.jpg", 8, "none")[0]
    assert red[:3].min() > 200 and red[5:].max() < 60


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode).save(file)
    assert decode(file, 8).shape == (3, 8, 8) and decode(file, 8).min() > 250


# Cache and memory


def test_cache_is_used_until_a_file_or_an_option_changes(folder, tmp_path, monkeypatch):
    how = Decoding(8, cache_dir=tmp_path / "cache")
    first = load_folder(folder, how)
    assert sorted(p.suffix for p in how.cache_dir.iterdir()) == [".bin", ".json"]
    calls = []
    original = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *args: calls.append(args) or original(*args))
    again = load_folder(folder, how)
    assert not calls and torch.equal(again.images, first.images) and again.file_names == first.file_names
    load_folder(folder, Decoding(6, cache_dir=how.cache_dir))
    assert len(calls) == 5
    picture(folder / "bob" / "b.png", (1, 2, 3))
    os.utime(folder / "bob" / "b.png", ns=(1, 1))
    changed = load_folder(folder, how)
    assert len(calls) == 10 and changed.images[4].float().mean() < 4


@pytest.mark.parametrize("ending", [".bin", ".json"])
def test_a_damaged_cache_is_made_again(folder, tmp_path, ending):
    how = Decoding(8, cache_dir=tmp_path / "cache")
    first = load_folder(folder, how)
    file = next(p for p in how.cache_dir.iterdir() if p.suffix == ending)
    damage(file)
    assert torch.equal(load_folder(folder, how).images, first.images)
    assert not list(how.cache_dir.glob("*.tmp"))


def test_an_interrupted_decoding_leaves_no_cache(folder, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "decode", stop)
    with pytest.raises(KeyboardInterrupt):
        load_folder(folder, Decoding(8, cache_dir=tmp_path / "cache"))
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("cached", [False, True])
def test_too_large_for_memory_is_mapped_from_disk(folder, tmp_path, monkeypatch, cached):
    monkeypatch.setattr(decoding.tempfile, "tempdir", str(tmp_path))
    damage(folder / "ann" / "a.png")
    plain = load_folder(folder, HOW)
    how = Decoding(8, max_memory_mb=0, cache_dir=tmp_path / "cache" if cached else None)
    for _ in range(2):
        mapped = load_folder(folder, how)
        assert torch.equal(mapped.images, plain.images) and mapped.images.shape == (4, 3, 8, 8)
    assert not list(tmp_path.glob("crafter_pl-faces-*"))


def test_long_decoding_shows_the_projects_progress(folder, capsys, monkeypatch):
    load_folder(folder, HOW)
    assert "decoding" not in capsys.readouterr().out
    monkeypatch.setattr(decoding, "Steps", partial(decoding.Steps, interval=0.0))
    load_folder(folder, HOW)
    captured = capsys.readouterr()
    assert "decoding 5/5 pictures" in captured.out and "\r" not in captured.out + captured.err


@contextmanager
def small_disk(size):
    """No file grows beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize("cached", [False, True])
def test_a_full_disk_is_an_error_and_leaves_nothing(folder, tmp_path, monkeypatch, cached, reserve):
    monkeypatch.setattr(decoding.tempfile, "tempdir", str(tmp_path))
    if not reserve:  # as where the system cannot
        monkeypatch.setattr(decoding, "_reserve", lambda *_: None)
    before = sorted(tmp_path.iterdir())
    how = Decoding(32, max_memory_mb=0, cache_dir=tmp_path / "cache" if cached else None)
    with small_disk(4000), pytest.raises(OSError, match=r"large|space") as error:
        load_folder(folder, how)
    assert str(tmp_path) in str(error.value)
    assert [path for path in tmp_path.iterdir() if path.name != "cache"] == before
    assert not cached or not list((tmp_path / "cache").iterdir())


def test_pictures_are_never_written_through_a_mapping(folder, tmp_path, monkeypatch):
    """A full disk would end the process with SIGBUS."""
    modes = []
    plain = np.memmap
    monkeypatch.setattr(
        np, "memmap", lambda *args, mode, **more: modes.append(mode) or plain(*args, mode=mode, **more)
    )
    load_folder(folder, Decoding(8, max_memory_mb=0, cache_dir=tmp_path / "cache"))
    assert modes == ["c"]


def test_decode_all_returns_positions(folder):
    (folder / "ann" / "a.png").write_text("broken")
    images, kept = decode_all(folder, ["ann/a.png", "bob/b.png"], HOW)
    assert kept == [1] and images.shape == (1, 3, 8, 8)


# Real pictures


@pytest.fixture
def real():
    default = Path(__file__).parents[3] / "shared" / "data"
    root = Path(os.environ.get("CRAFTER_DATA") or default)
    if not (root / "celeba").is_dir():
        pytest.skip(f"no real pictures in {root}: set CRAFTER_DATA")
    return root


@pytest.mark.data
@pytest.mark.parametrize(("name", "size"), [("celeba", (96, 96)), ("celeba_aligned_sample", (178, 218))])
def test_real_celeba(real, tmp_path, name, size):
    source = real / name
    (tmp_path / "img_align_celeba").mkdir()
    for file in sorted((source / "img_align_celeba").iterdir())[:150]:
        (tmp_path / "img_align_celeba" / file.name).symlink_to(file)
    for labels in source.glob("*.txt"):
        shutil.copy(labels, tmp_path)
    assert Image.open(file).size == size
    faces = load_celeba(tmp_path, Decoding(32))
    assert len(faces) == 150 and len(faces.attribute_names) == 40
    smiling = faces.attributes[:, faces.attribute_names.index("Smiling")].float().mean()
    assert 0.3 < smiling < 0.7
    mean = faces.images.float().mean((0, 1))
    assert mean[12:24, 12:20].mean() > mean[:, :3].mean() + 10  # a face in the middle, darker at the border


@pytest.mark.data
def test_real_lfw(real, tmp_path):
    (tmp_path / "lfw-deepfunneled").mkdir()
    for person in ("Alvaro_Uribe", "Andre_Agassi", "AJ_Cook"):
        (tmp_path / "lfw-deepfunneled" / person).symlink_to(real / "lfw" / "lfw-deepfunneled" / person)
    shutil.copy(real / "lfw" / "lfw_attributes.txt", tmp_path)
    faces = load_lfw(tmp_path, Decoding(32))
    assert faces.identity_names == ["Alvaro_Uribe", "Andre_Agassi"]
    assert len(faces) >= 40 and faces.notes["pictures_without_row"] >= 1
    assert faces.attribute_names[0] == "Male" and faces.attributes[:, 0].float().mean() > 0.9
