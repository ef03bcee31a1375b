import io
import os
import sys
from unicodedata import normalize

import pytest
from sources_lab import HOW, damage, folder, lfw, picture  # noqa: F401

from crafter_pl.data.decoding import Decoding
from crafter_pl.data.sources import load_folder, load_lfw
from crafter_pl.errors import UserError

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
    with pytest.raises(UserError, match=r"ann/b.png"):
        load_folder(folder, Decoding(8, strict=True, cache_dir=cache))
    picture(tmp_path / "gone.png")
    assert len(load_folder(folder, Decoding(8, cache_dir=cache))) == 6


@pytest.mark.parametrize("cached", [False, True])
def test_strict_stops_at_an_unreadable_picture(folder, tmp_path, cached):
    damage(folder / "ann" / "a.jpg")
    cache = tmp_path / "cache" if cached else None
    if cached:
        load_folder(folder, Decoding(8, cache_dir=cache))
    with pytest.raises(UserError, match=r"ann/a.jpg.*--data.strict"):
        load_folder(folder, Decoding(8, strict=True, cache_dir=cache))


def test_nothing_readable(folder):
    for file in folder.glob("*/*.*"):
        file.write_text("broken")
    with pytest.raises(UserError, match="none of the 5"):
        load_folder(folder, HOW)
