import os

import pytest
import torch
from PIL import Image
from sources_lab import HOW, celeba, folder, lfw, picture  # noqa: F401

from crafter_pl.data.decoding import Decoding
from crafter_pl.data.sources import load_celeba, load_folder, load_lfw
from crafter_pl.errors import UserError

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
    with pytest.raises(UserError, match=r"celeba.csv, line 3"):
        load_celeba(celeba, HOW)
    (celeba / "identity_CelebA.txt").unlink()
    with pytest.raises(UserError, match=r"identity_CelebA.*Kaggle"):
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
        with pytest.raises(UserError, match=r"bomb.jpg"):
            load_folder(folder, Decoding(8, strict=True))
    else:
        faces = load_folder(folder, HOW)
        assert len(faces) == 5 and faces.notes["unreadable_pictures"] == 5
