"""Small data sets of each layout."""

import pytest
from PIL import Image

from crafter_pl.data.decoding import Decoding

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
