"""Real faces from disk: CelebA's and LFW's layouts as people have them, and a plain folder a person."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from crafter_pl.data.decoding import Decoding, decode_all
from crafter_pl.data.faces import UNKNOWN, Faces, LabelsKind
from crafter_pl.data.folders import beside, folder_pictures, people_folders
from crafter_pl.data.labels import read_labels
from crafter_pl.data.layout import (
    LFW_FOLDERS,
    choose_columns,
    find_folder,
    find_labels,
    holds_people,
    holds_pictures,
    is_picture,
    lfw_attributes,
    need_labels,
    pictures_in,
    read_table,
    to_number,
)
from crafter_pl.data.pictures import shown
from crafter_pl.errors import UserError

log = logging.getLogger(__name__)

_NO_COLUMNS = "attribute_columns are given but require_attributes is false: drop one of the two (--data.*)"
_KAGGLE = "; Kaggle's copy of CelebA has none: get it from CelebA's own page (Anno/identity_CelebA.txt)"


def load_celeba(
    root: Path,
    how: Decoding,
    attribute_columns: list[int] | None = None,
    require_attributes: bool = True,
) -> Faces:
    """Read CelebA, whole or any subset: `img_align_celeba/` and its label files.

    A picture needs a row in `identity_CelebA.txt` and one in `list_attr_celeba.txt`. The third file,
    `list_eval_partition.txt`, is checked if it is there, and not used: the split is by identity (`split.py`).
    Pictures may be one folder deeper, or PNG beside labels that say .jpg; label files may be CSV, and in the
    official folders `Anno` and `Eval`.

    Args:
        root: the folder that holds them.
        how: size, crop and cache of the pictures.
        attribute_columns: which of the attributes to use, from 0; None for all.
        require_attributes: a picture needs a row of attributes; if false, none are read (`A` = 0).

    Raises:
        UserError: something is missing or a row is malformed (naming file and line).
    """
    if not require_attributes and attribute_columns is not None:
        raise UserError(_NO_COLUMNS)
    folder = find_folder(
        root, ("img_align_celeba", "img_align_celeba_png"), holds_pictures, "the CelebA pictures"
    )
    people = read_table(need_labels(root, folder, "identity_CelebA", _KAGGLE), 1)[1]
    identity = {name: to_number(values[0], at, "an identity number") for name, (at, values) in people.items()}
    names: list[str] = []
    rows: dict[str, tuple[str, list[str]]] = {}
    if require_attributes:
        names, rows = read_table(need_labels(root, folder, "list_attr_celeba"), None)
    columns = choose_columns(attribute_columns, list(range(len(names))), len(names)) if names else []
    labels: dict[str, list[int]] = {}
    for name, (at, values) in rows.items():
        if len(values) != len(names) or not set(values) <= {"1", "-1"}:
            raise UserError(
                f"{at}: expected a file name and {len(names)} values of 1 or -1, got {len(values)} "
                f"values: {' '.join(values)[:40]!r}"
            )
        labels[name] = [int(values[column] == "1") for column in columns]
    if (partition := find_labels(root, folder, "list_eval_partition")) is not None:
        for at, values in read_table(partition, 1)[1].values():
            if values[0] not in ("0", "1", "2"):
                raise UserError(f"{at}: the partition must be 0, 1 or 2, got {values[0]!r}")

    pictures = pictures_in(((entry.name, entry) for entry in os.scandir(folder)), folder)
    row_of = _rows_of(pictures, identity.keys() | labels.keys())
    known = identity.keys() & labels.keys() if require_attributes else identity.keys()
    chosen = sorted(name for name, row in row_of.items() if row in known)
    return _assemble(
        folder,
        {name: pictures[name] for name in chosen},
        [identity[row_of[name]] for name in chosen],
        None,
        [labels.get(row_of[name], []) for name in chosen],
        [names[c] for c in columns],
        {
            "rows_without_picture": len((identity.keys() | labels.keys()) - set(row_of.values())),
            "pictures_without_row": len(pictures) - len(chosen),
        },
        how,
    )


def load_lfw(
    root: Path,
    how: Decoding,
    attribute_columns: list[int] | None = None,
    require_attributes: bool = True,
    keep_unlabelled: bool = False,
) -> Faces:
    """Read LFW: `lfw-deepfunneled/<Name>/<Name>_NNNN.jpg`, and `lfw_attributes.txt`, by the scores' sign.

    The folder of people may also be `lfw_funneled` or `lfw`, or one folder deeper.

    Args:
        root: the folder that holds them.
        how: size, crop and cache of the pictures.
        attribute_columns: which of the 73 attributes to use, from 0; None for the paper's ten.
        require_attributes: leave out pictures without a row of attributes; if false, keep every picture, read
            no attributes and have none (`A` = 0).
        keep_unlabelled: keep pictures without a row, whose attributes are unknown.

    Raises:
        UserError: something is missing or a row is malformed (naming file and line).
    """
    folder = find_folder(root, LFW_FOLDERS, holds_people, "the LFW pictures")
    files, people = people_folders(folder)
    notes: dict[str, int] = {}
    names: list[str] = []
    labels: dict[str, list[int]] = {}
    if require_attributes:
        file = need_labels(root, folder, "lfw_attributes", "; or do without: --data.require_attributes false")
        names, labels = lfw_attributes(file, attribute_columns)
        known = {PurePosixPath(f).stem for f in files}
        notes["rows_without_picture"] = len(labels.keys() - known)
        notes["pictures_without_row"] = len(known - labels.keys())
        if not keep_unlabelled:
            files = {f: path for f, path in files.items() if PurePosixPath(f).stem in labels}
    elif attribute_columns is not None:
        raise UserError(_NO_COLUMNS)
    return _assemble(
        folder,
        files,
        [people[f.partition("/")[0]] for f in files],
        list(people),
        [labels.get(PurePosixPath(f).stem, [UNKNOWN] * len(names)) for f in files],
        names,
        notes,
        how,
    )


def load_folder(
    root: Path,
    how: Decoding,
    labels: Path | None = None,
    labels_kind: LabelsKind = "multilabel",
    label_columns: list[int] | None = None,
    classes: list[str] | None = None,
    public_root: Path | None = None,
    named: bool = True,
) -> Faces:
    """Read `root/<person>/<picture>`, a folder a person.

    Args:
        root: the folder of the people's folders.
        how: size, crop and cache of the pictures.
        public_root: another such folder, of all public people; those in `root` are all private then.
        named: whether there are people's folders; if not, all pictures lie straight in their folder.
        labels: a file of labels, see `read_labels`; None: there are none (`A` = 0).
        labels_kind: what is in it.
        label_columns: which of its columns to use, from 0; None for all.
        classes: all classes in their order; None: those that are there.

    Raises:
        UserError: a folder is missing, holds no such pictures or lies within the other one, or the labels are
            malformed.
    """
    roots = [root] if public_root is None else [root, public_root]
    base, below = beside(roots)
    files: dict[str, str] = {}
    person_of: dict[str, str] = {}
    private: dict[str, bool] = {}
    for folder, start in zip(roots, below, strict=True):
        for name, path in folder_pictures(folder, named).items():
            files[start + name] = start + path
            person_of[start + name] = start + (name.partition("/")[0] if named else name)
            private[start + name] = folder is root
    files = dict(sorted(files.items()))
    everybody = sorted(set(person_of.values()))
    people = {person: number for number, person in enumerate(everybody)}
    loose = sum(is_picture(entry) for folder in roots for entry in os.scandir(folder)) if named else 0
    notes = {"pictures_outside_a_person": loose}
    names: list[str] = []
    rows: list[list[float]] = [[] for _ in files]
    if labels is not None:
        found = read_labels(labels, labels_kind, label_columns, files, classes)
        names, rows = found.names, found.rows(files)
        notes |= {"rows_without_picture": found.unused, "pictures_without_row": len(files) - len(found.of)}
    faces = _assemble(
        base,
        files,
        [people[person_of[f]] for f in files],
        everybody,
        rows,
        names,
        notes,
        how,
        labels_kind,
    )
    mine = None if public_root is None else torch.tensor([private[f] for f in faces.file_names])
    return replace(faces, private=mine, named=named)


def _assemble(
    folder: Path,
    files: dict[str, str],
    identity: list[int],
    people: list[str] | None,
    labels: Sequence[Sequence[float]],
    attribute_names: list[str],
    notes: dict[str, int],
    how: Decoding,
    labels_kind: LabelsKind = "multilabel",
) -> Faces:
    """Decode the pictures and put the rows of the readable ones together; `people` are names by number."""
    if not files:
        raise UserError(
            f"{shown(folder)} and its label files have no picture in common ({dict(notes)}); do they belong "
            "together?"
        )
    names = list(files)
    images, kept = decode_all(folder, list(files.values()), how)
    notes = {
        reason: count
        for reason, count in {**notes, "unreadable_pictures": len(files) - len(kept)}.items()
        if count
    }
    for reason, count in notes.items():
        log.warning("%s: %d %s", shown(folder), count, reason.replace("_", " "))
    numbers = torch.tensor([identity[k] for k in kept], dtype=torch.long)
    return Faces(
        images=images,
        attributes=torch.tensor([labels[k] for k in kept], dtype=torch.float32).view(
            len(kept), len(attribute_names)
        ),
        identity=numbers,
        attribute_names=attribute_names,
        identity_names=[
            str(number) if people is None else people[number] for number in numbers.unique().tolist()
        ],
        file_names=[names[k] for k in kept],
        notes=notes,
        labels_kind=labels_kind,
    )


def _rows_of(pictures: Iterable[str], rows: set[str]) -> dict[str, str]:
    """The row of each picture: of its name, or else the only one whose name differs in the ending alone."""
    row_of = {name: name for name in pictures if name in rows}
    free, others = _by_stem(rows - row_of.keys()), _by_stem(set(pictures) - row_of.keys())
    other = {name: free[stem] for stem, name in others.items() if stem in free}
    if other:
        log.warning(
            "%d pictures have another ending than in the label files, %s for %s first",
            len(other),
            *map(shown, min(other.items())),
        )
    return row_of | other


def _by_stem(names: set[str]) -> dict[str, str]:
    """The names by what is before their ending, where no other has the same there."""
    stems = {name: os.path.splitext(name)[0] for name in names}
    count = Counter(stems.values())
    return {stem: name for name, stem in stems.items() if count[stem] == 1}
