import csv
import hashlib
import os
from dataclasses import replace
from unicodedata import normalize

import pytest
import torch

from crafter_pl.data.faces import UNKNOWN, Faces
from crafter_pl.data.split import PARTS, check_split, make_split, rows_hash, split_rows, write_split_csv
from crafter_pl.errors import UserError


def faces_of(counts, order=None):
    """Blank faces, `counts[k]` pictures of person k; `order` shuffles the rows."""
    rows = [(person, picture) for person, count in enumerate(counts) for picture in range(count)]
    rows = rows if order is None else [rows[k] for k in order]
    return Faces(
        images=torch.zeros(len(rows), 3, 2, 2, dtype=torch.uint8),
        attributes=torch.zeros(len(rows), 0, dtype=torch.uint8),
        identity=torch.tensor([100 + 7 * person for person, _ in rows]),
        attribute_names=[],
        identity_names=[f"person{k}" for k in range(len(counts))],
        file_names=[f"{person}-{picture}.jpg" for person, picture in rows],
    )


SETTINGS = {
    "private_people": 4,
    "min_private_images": 5,
    "test_images": 2,
    "public_val_fraction": 0.25,
    "seed": 0,
}
COUNTS = [3, 5, 6, 7, 8, 9, 5, 1, 4, 6, 5, 12]


def split_hash(faces, splits):
    return rows_hash(split_rows(faces, splits))


def test_parts_share_no_person_and_no_picture():
    faces = faces_of(COUNTS)
    splits = make_split(faces, **SETTINGS)
    assert tuple(splits) == PARTS
    assert sorted(torch.cat(list(splits.values())).tolist()) == list(range(len(faces)))
    people = {part: set(faces.identity[rows].tolist()) for part, rows in splits.items()}
    assert people["private_train"] == people["private_test"] and len(people["private_test"]) == 4
    assert not people["private_test"] & (people["public_train"] | people["public_val"])
    assert not people["public_train"] & people["public_val"]
    assert len(people["public_val"]) == 2 and len(people["public_train"]) == 6
    for person in people["private_test"]:
        assert (faces.identity == person).sum() >= 5
        assert (faces.identity[splits["private_test"]] == person).sum() == 2


def test_the_seed_decides_who_is_private():
    faces = faces_of([6] * 40)
    chosen = [
        frozenset(make_split(faces, **SETTINGS | {"seed": s})["private_train"].tolist()) for s in (0, 0, 1, 2)
    ]
    assert chosen[0] == chosen[1] and len(set(chosen)) == 3


def test_the_split_and_its_hash_do_not_depend_on_the_order_of_rows():
    plain = faces_of(COUNTS)
    order = torch.randperm(len(plain), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = faces_of(COUNTS, order)
    one, two = make_split(plain, **SETTINGS), make_split(shuffled, **SETTINGS)
    for part in PARTS:
        names = {plain.file_names[row] for row in one[part].tolist()}
        assert names == {shuffled.file_names[row] for row in two[part].tolist()}
    assert split_hash(plain, one) == split_hash(shuffled, two)
    assert split_hash(plain, one) != split_hash(plain, make_split(plain, **SETTINGS | {"seed": 3}))


def test_the_hash_is_of_the_csv(tmp_path):
    faces = faces_of(COUNTS)
    splits = make_split(faces, **SETTINGS)
    write_split_csv(tmp_path / "runs" / "split.csv", faces, splits)
    header, *rows = (tmp_path / "runs" / "split.csv").read_text().splitlines(keepends=True)
    assert header == "file,person,part\n" and len(rows) == len(faces)
    assert split_hash(faces, splits) == hashlib.sha256("".join(rows).encode()).hexdigest()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["split.csv"]


def test_the_hash_is_the_same_on_every_machine():
    splits = make_split(faces_of(COUNTS), **SETTINGS)
    assert (
        split_hash(faces_of(COUNTS), splits)
        == "6175818d0ccbd9f8d08ae09e07f0530d09682ede3d5ef689853f555810d3c60b"
    )


def named(file, person):
    faces = faces_of(COUNTS)
    return replace(
        faces, file_names=[file, *faces.file_names[1:]], identity_names=[person, *faces.identity_names[1:]]
    )


def test_names_are_bytes_and_of_one_normal_form(tmp_path):
    odd = named(os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"Ren\xe9e"))
    splits = make_split(odd, **SETTINGS)
    write_split_csv(tmp_path / "split.csv", odd, splits)
    written = (tmp_path / "split.csv").read_bytes()
    assert b"caf\xe9.jpg,Ren\xe9e," in written
    assert split_hash(odd, splits) == hashlib.sha256(written.partition(b"\n")[2]).hexdigest()
    mac, linux = (named(normalize(form, "é.jpg"), normalize(form, "Zoë")) for form in ("NFD", "NFC"))
    one, other = make_split(mac, **SETTINGS), make_split(linux, **SETTINGS)
    assert all(torch.equal(one[part], other[part]) for part in PARTS)
    assert split_hash(mac, one) == split_hash(linux, other)


def test_the_csv_of_odd_names_is_read_as_it_was_written(tmp_path):
    faces = named('a,"b"\n\r.jpg', "Icon\r")
    splits = make_split(faces, **SETTINGS)
    write_split_csv(tmp_path / "split.csv", faces, splits)
    with open(tmp_path / "split.csv", newline="", encoding="utf-8") as file:
        assert [tuple(row) for row in csv.reader(file)][1:] == split_rows(faces, splits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private_people": 10}, "12 people 9"),
        ({"min_private_images": 13}, "12 people 0 .*: 12"),
        ({"test_images": 5}, "min_private_images 5"),
        ({"test_images": 0}, "test_images 0"),
        ({"public_val_fraction": 1.0}, "public_val_fraction"),
    ],
)
def test_impossible_splits_are_refused_with_the_way_out(change, message):
    with pytest.raises(UserError, match=message):
        make_split(faces_of([5] * 8 + [12] + [1] * 3), **SETTINGS | change)


def test_at_least_two_public_people_are_left():
    with pytest.raises(UserError, match="two public people"):
        make_split(faces_of([6] * 5), **SETTINGS)
    splits = make_split(faces_of([6] * 6), **SETTINGS)
    assert len(splits["public_val"]) == len(splits["public_train"]) == 6


def test_overlap_is_an_error():
    faces = faces_of(COUNTS)
    splits = make_split(faces, **SETTINGS)
    leaked = int(splits["private_test"][0])
    with pytest.raises(UserError, match=rf"holds picture {faces.file_names[leaked]} twice"):
        check_split(faces, splits | {"public_val": torch.cat([splits["public_val"], torch.tensor([leaked])])})
    moved = splits | {
        "public_train": torch.cat([splits["public_train"], splits["private_test"][:1]]),
        "private_test": splits["private_test"][1:],
    }
    with pytest.raises(UserError, match=r"public_train, person\d+"):
        check_split(faces, moved)


def test_equal_file_names_are_refused():
    faces = faces_of(COUNTS)
    splits = make_split(faces, **SETTINGS)
    faces.file_names[1] = faces.file_names[0]
    with pytest.raises(UserError, match=r"0-0\.jpg"):
        split_hash(faces, splits)


def test_who_is_not_labelled_is_public():
    """Without a label in one picture nobody is private; of either kind a share is held out."""
    faces = faces_of(COUNTS)
    labels = torch.zeros(len(faces), 1)
    unknown = faces.identity.unique()[[3, 4, 5, 6, 9, 10]]
    labels[torch.isin(faces.identity, unknown)] = UNKNOWN
    known = replace(faces, attributes=labels, attribute_names=["a"])
    splits = make_split(known, **{**SETTINGS, "private_people": 2})
    private = faces.identity[splits["private_test"]].unique()
    assert len(private) == 2 and not torch.isin(private, unknown).any()
    for kind in (unknown, faces.identity.unique()[[0, 1, 2, 7, 8, 11]]):
        assert torch.isin(faces.identity[splits["public_val"]], kind).any()
        assert torch.isin(faces.identity[splits["public_train"]], kind).any()
    with pytest.raises(UserError, match="of 12 people 3 qualify"):
        make_split(known, **{**SETTINGS, "private_people": 4})
    plain = replace(faces, attributes=torch.zeros_like(labels), attribute_names=["a"])
    assert {k: v.tolist() for k, v in make_split(plain, **SETTINGS).items()} == {
        k: v.tolist() for k, v in make_split(faces, **SETTINGS).items()
    }
