import numpy as np
import pytest
import torch
from PIL import Image
from sources_lab import HOW, celeba, folder, lfw  # noqa: F401

from crafter_pl.data.decoding import Decoding, decode
from crafter_pl.data.faces import FaceSet
from crafter_pl.data.layout import LFW_PAPER_COLUMNS
from crafter_pl.data.sources import load_celeba, load_folder, load_lfw
from crafter_pl.errors import UserError

# CelebA


def test_celeba(celeba):
    faces = load_celeba(celeba, HOW)
    assert faces.file_names == [f"{k:06d}.jpg" for k in range(1, 6)]
    assert faces.identity.tolist() == [70, 70, 69, 69, 68]
    assert faces.identity_names == ["68", "69", "70"]
    assert faces.attribute_names == ["Bald", "Smiling", "Young"]
    assert faces.attributes.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert faces.notes == {"rows_without_picture": 1, "pictures_without_row": 1}
    assert faces.images.shape == (5, 3, 8, 8)
    assert (faces.images[3].float().mean((1, 2)) - torch.tensor([120.0, 100, 50])).abs().max() < 4


def test_celeba_attribute_columns(celeba):
    faces = load_celeba(celeba, HOW, [2, 0])
    assert faces.attribute_names == ["Young", "Bald"] and faces.attributes[1].tolist() == [0, 1]
    for columns in ([3], [-1], [1, 1], []):
        with pytest.raises(UserError, match=r"--data.attribute_columns"):
            load_celeba(celeba, HOW, columns)


@pytest.mark.parametrize(
    ("name", "line", "row", "message"),
    [
        (
            "identity_CelebA.txt",
            2,
            "000002.jpg",
            "CelebA.txt, line 2",
        ),
        (
            "identity_CelebA.txt",
            3,
            "000003.jpg x7",
            "CelebA.txt, line 3.*'x7'",
        ),
        (
            "identity_CelebA.txt",
            3,
            "000001.jpg 7",
            "line 3.*000001.jpg",
        ),
        (
            "list_attr_celeba.txt",
            5,
            "000003.jpg 1 1",
            "celeba.txt, line 5",
        ),
        (
            "list_attr_celeba.txt",
            4,
            "000002.jpg 1 0 1",
            "celeba.txt, line 4",
        ),
        (
            "list_attr_celeba.txt",
            1,
            "000002.jpg 1 1",
            "celeba.txt: line 1",
        ),
        (
            "list_eval_partition.txt",
            6,
            "000006.jpg 3",
            "partition.txt, line 6",
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
    with pytest.raises(UserError, match=r"img_align.*--data.root"):
        load_celeba(tmp_path / "nowhere", HOW)
    with pytest.raises(UserError, match=rf"did you mean {celeba}\?"):
        load_celeba(tmp_path, HOW)
    (celeba / "list_eval_partition.txt").unlink()
    load_celeba(celeba, HOW)
    (celeba / "list_attr_celeba.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"list_attr_celeba.txt"):
        load_celeba(celeba, HOW)
    (celeba / "identity_CelebA.txt").unlink()
    with pytest.raises(UserError, match=r"identity_CelebA.txt"):
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


def test_lfw_keeps_pictures_that_nobody_has_labelled(lfw):
    faces = load_lfw(lfw, HOW, keep_unlabelled=True)
    known = load_lfw(lfw, HOW)
    assert len(faces) == 7 and faces.labelled.tolist() == [False, *[True] * 6]
    assert torch.equal(faces.attributes[1:], known.attributes)
    given = FaceSet(faces, torch.arange(7)).take(torch.tensor([0, 1]))["attributes"]
    assert given[0].isnan().all() and torch.equal(given[1], known.attributes[0].float())


def test_lfw_without_attributes_keeps_everybody(lfw):
    (lfw / "lfw_attributes.txt").unlink()
    faces = load_lfw(lfw, HOW, require_attributes=False)
    assert len(faces) == 7 and faces.attributes.shape == (7, 0) and faces.identity_names[0] == "Aa_First"
    with pytest.raises(UserError, match="require_attributes"):
        load_lfw(lfw, HOW, [1], require_attributes=False)
    with pytest.raises(UserError, match=r"lfw_attributes.txt"):
        load_lfw(lfw, HOW)


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        (2, "person", "who", "attributes.txt, line 2"),
        (4, "\t", " ", "line 4: .*75"),
        (4, "\t2\t", "\ttwo\t", "line 4: .*'two'"),
        (5, "0.5", "high", "attributes.txt, line 5"),
        (5, "0.5", "nan", "attributes.txt, line 5"),
        (5, "0.5", "inf", "attributes.txt, line 5"),
        (4, "\t2\t", "\t1\t", "line 4: .*Ann_Bee_0001"),
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
    with pytest.raises(UserError, match=r"--data.root"):
        load_folder(tmp_path / "people", HOW)
    (tmp_path / "people" / "ann").mkdir(parents=True)
    with pytest.raises(UserError, match="<person>/<picture>"):
        load_folder(tmp_path / "people", HOW)


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
    with pytest.raises(UserError, match=r"own.png .*100 x 140"):
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


def test_celeba_without_attributes(celeba):
    (celeba / "list_attr_celeba.txt").unlink()
    faces = load_celeba(celeba, HOW, None, False)
    assert faces.attributes.shape == (5, 0) and faces.attribute_names == []
    with pytest.raises(UserError, match="attribute_columns"):
        load_celeba(celeba, HOW, [0], False)
