"""A labels file of a folder's pictures: good ones, and what is said of bad ones."""

import shutil

import pytest
import torch
from sources_lab import HOW, folder  # noqa: F401

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.sources import load_folder
from crafter_pl.errors import UserError

ANN = ["ann/a.JPEG", "ann/a.jpg", "ann/a.png", "ann/a.webp"]


def read(folder, text, kind="multilabel", columns=None):
    file = folder.parent / "labels.csv"
    file.write_text(text)
    faces = load_folder(folder, HOW, file, kind, columns)
    assert faces.file_names == [*ANN, "bob/b.png"]
    return faces


@pytest.mark.parametrize(("no", "separator"), [("0", ","), ("-1", ","), ("0", ";"), ("-1", " ")])
def test_attributes(folder, no, separator):
    rows = [["file", "Smiling", "Young"], ["ann/a.jpg", "1", no], ["b.png", no, "1"], ["gone.png", "1", "1"]]
    faces = read(folder, "\n".join(map(separator.join, rows)))
    assert faces.attribute_names == ["Smiling", "Young"] and faces.labels_kind == "multilabel"
    assert faces.attributes[1].tolist() == [1, 0] and faces.attributes[4].tolist() == [0, 1]
    assert faces.attributes[[0, 2, 3]].isnan().all() and faces.labelled.tolist() == [
        False,
        True,
        *[False] * 2,
        True,
    ]
    assert faces.notes["rows_without_picture"] == 1 and faces.notes["pictures_without_row"] == 3
    young = read(folder, "\n".join(map(separator.join, rows)), columns=[1])
    assert young.attribute_names == ["Young"] and young.attributes[4].tolist() == [1]


def test_celebas_own_head(folder):
    faces = read(folder, "2\nBald Young\nann/a.jpg  1 -1\nb.png -1  1\n")
    assert faces.attribute_names == ["Bald", "Young"] and faces.attributes[4].tolist() == [0, 1]


def test_classes_are_one_hot(folder):
    faces = read(folder, "file,mood\nann/a.jpg,sad\nann/a.png,glad\nb.png,sad\n", "multiclass")
    assert faces.attribute_names == ["glad", "sad"] and faces.labels_kind == "multiclass"
    numbers = "file,mood\nann/a.jpg,10\nann/a.png,9\nb.png,x\n"
    assert read(folder, numbers, "multiclass").attribute_names == ["9", "10", "x"], "as nets count them"
    with pytest.raises(UserError, match=r"line 3: there is no class"):
        read(folder, "file,mood\nann/a.jpg,sad\nann/a.png,\nb.png,sad\n", "multiclass")
    assert faces.attributes[[1, 2, 4]].tolist() == [[0, 1], [1, 0], [0, 1]]
    assert faces.attributes[0].isnan().all()
    both = "file,mood,age\nann/a.jpg,sad,3\nb.png,glad,4\n"
    assert read(folder, both, "multiclass", [0]).attribute_names == ["glad", "sad"]
    with pytest.raises(UserError, match="mood, age"):
        read(folder, both, "multiclass")


def test_values(folder):
    faces = read(folder, "file,age\nann/a.jpg,31.5\nb.png,-2e1\n", "regression")
    assert faces.attributes[[1, 4], 0].tolist() == [31.5, -20.0] and faces.attributes.dtype == torch.float32


def test_all_classes_can_be_named_in_the_order_of_a_net(folder):
    file = folder.parent / "labels.csv"
    file.write_text("file,mood\nann/a.jpg,sad\nann/a.png,glad\nb.png,sad\n")
    faces = load_folder(folder, HOW, file, "multiclass", None, ["sad", "cross", "glad"])
    assert faces.attribute_names == ["sad", "cross", "glad"]
    assert faces.attributes[[1, 2]].tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(UserError, match=r"line 3: glad is none of the classes"):
        load_folder(folder, HOW, file, "multiclass", None, ["sad", "cross"])
    for classes, kind in (
        (["sad"], "multiclass"),
        (["sad", "sad"], "multiclass"),
        (["a", "b"], "regression"),
    ):
        with pytest.raises(UserError, match="give two different names"):
            FacesDataModule(source="folder", labels=str(file), labels_kind=kind, classes=classes)


def test_names_that_are_not_utf8_are_refused(folder):
    file = folder.parent / "labels.csv"
    for text, kind in (("file,m\xe4nnlich\nb.png,1\n", "multilabel"), ("file,a\nb.png,\xe4\n", "multiclass")):
        file.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match="not UTF-8"):
            load_folder(folder, HOW, file, kind, None)


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("file,a\nann/a.jpg,2\n", "multilabel", "line 2"),
        ("file,a\nann/a.jpg,0\nb.png,-1\n", "multilabel", "line 3"),
        ("file,a\nann/a.jpg,\n", "regression", "line 2"),
        ("file,a\nann/a.jpg,1\nb.png,nan\n", "regression", "line 3"),
        ("file,a\nann/a.jpg,1,1\n", "regression", "line 2"),
        ("file,a\nann/a.jpg,1\nann/a.jpg,0\n", "multilabel", "line 3"),
        ("file,a\nbob/b.png,1\nb.png,0\n", "multilabel", "line 3"),
        ("file,a,a\nb.png,1,1\n", "multilabel", "two columns"),
        ("ann/a.jpg,1\nb.png,0\n", "multilabel", "line 1"),
        ("", "multilabel", "line 1"),
        ("file,a\nnobody.png,1\n", "multilabel", "no row"),
    ],
)
def test_bad_files_are_named_with_their_line(folder, text, kind, said):
    with pytest.raises(UserError, match=said) as error:
        read(folder, text, kind)
    assert "labels.csv" in str(error.value)


def test_a_short_name_of_two_pictures(folder):
    (folder / "bob" / "b.png").rename(folder / "bob" / "a.png")
    file = folder.parent / "labels.csv"
    file.write_text("file,a\na.png,1\n")
    with pytest.raises(UserError, match="line 2"):
        load_folder(folder, HOW, file)


def test_settings_that_do_not_go_together(folder):
    for wrong in ({"labels_kind": "regression"}, {"source": "celeba", "labels": "x.csv"}):
        with pytest.raises(UserError, match="labels"):
            FacesDataModule(**{"source": "folder", "root": str(folder), **wrong})
    data = FacesDataModule(source="folder", root=str(folder), labels=str(folder / "none.csv"))
    with pytest.raises(UserError, match=r"none\.csv"):
        data.setup()


def test_of_two_folders_a_person_and_a_picture_are_enough(folder):
    other = folder.parent / "others"
    shutil.copytree(folder / "bob", other / "eve")
    file = folder.parent / "labels.csv"
    file.write_text(f"file,a\nann/a.jpg,1\neve/b.png,0\n{folder.name}/bob/b.png,1\n")
    faces = load_folder(folder, HOW, file, "multilabel", None, public_root=other)
    known = {name: row.item() for name, row in zip(faces.file_names, faces.attributes, strict=True)}
    asked = [f"{folder.name}/ann/a.jpg", "others/eve/b.png", f"{folder.name}/bob/b.png"]
    assert [known[name] for name in asked] == [1, 0, 1] and faces.notes["pictures_without_row"] == 3
    file.write_text("file,a\nb.png,1\n")
    with pytest.raises(UserError, match="2 pictures"):
        load_folder(folder, HOW, file, "multilabel", None, public_root=other)
