import shutil

import pytest
from PIL import Image
from real_data import real  # noqa: F401

from crafter_pl.data.decoding import Decoding
from crafter_pl.data.sources import load_celeba, load_lfw

# Real pictures


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
