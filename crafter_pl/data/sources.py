"""Real faces from disk: CelebA's and LFW's layouts as people have them, and a plain folder a person."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from unicodedata import normalize

import torch

from crafter_pl.data.decoding import Decoding, decode_all
from crafter_pl.data.faces import Faces
from crafter_pl.data.pictures import ENDINGS, is_junk, shown, text_of
from crafter_pl.errors import UserError

log = logging.getLogger(__name__)

LFW_PAPER_COLUMNS = [0, 1, 2, 7, 9, 14, 16, 17, 19, 25]
_CELEBA_FOLDERS = ("img_align_celeba", "img_align_celeba_png")
_LFW_FOLDERS = ("lfw-deepfunneled", "lfw_funneled", "lfw")
_KAGGLE = "; Kaggle's copy of CelebA has none: get it from CelebA's own page (Anno/identity_CelebA.txt)"


def load_celeba(root: Path, how: Decoding, attribute_columns: list[int] | None = None) -> Faces:
    """Read CelebA, whole or any subset: `img_align_celeba/` and its label files.

    A picture needs a row in `identity_CelebA.txt` and one in `list_attr_celeba.txt`. The third file,
    `list_eval_partition.txt`, is checked if it is there, and not used: the split is by identity (`split.py`).
    Pictures may be one folder deeper, or PNG beside labels that say .jpg; label files may be CSV, and in the
    official folders `Anno` and `Eval`.

    Args:
        root: the folder that holds them.
        how: size, crop and cache of the pictures.
        attribute_columns: which of the attributes to use, from 0; None for all.

    Raises:
        UserError: something is missing or a row is malformed (naming file and line).
    """
    folder = _find(root, _CELEBA_FOLDERS, _holds_pictures, "the CelebA pictures")
    identity = {
        row.name: _number(row.values[0], row.at, "an identity number")
        for row in _table(_needed(root, folder, "identity_CelebA", _KAGGLE), 1)[1]
    }
    names, rows = _table(_needed(root, folder, "list_attr_celeba"), None)
    columns = _columns(attribute_columns, list(range(len(names))), len(names))
    labels: dict[str, list[int]] = {}
    for row in rows:
        if len(row.values) != len(names) or not set(row.values) <= {"1", "-1"}:
            raise UserError(
                f"{row.at}: expected a file name and {len(names)} values of 1 or -1, got {len(row.values)} "
                f"values: {' '.join(row.values)[:40]!r}"
            )
        labels[row.name] = [int(row.values[column] == "1") for column in columns]
    if (partition := _label_file(root, folder, "list_eval_partition")) is not None:
        for row in _table(partition, 1)[1]:
            if row.values[0] not in ("0", "1", "2"):
                raise UserError(f"{row.at}: the partition must be 0, 1 or 2, got {row.values[0]!r}")

    pictures = _pictures(((entry.name, entry) for entry in os.scandir(folder)), folder)
    row_of = _rows_of(pictures, identity.keys() | labels.keys())
    chosen = sorted(name for name, row in row_of.items() if row in identity and row in labels)
    notes = {
        "rows_without_picture": len((identity.keys() | labels.keys()) - set(row_of.values())),
        "pictures_without_row": len(pictures) - len(chosen),
    }
    return _assemble(
        folder,
        {name: pictures[name] for name in chosen},
        [identity[row_of[name]] for name in chosen],
        None,
        [labels[row_of[name]] for name in chosen],
        [names[c] for c in columns],
        notes,
        how,
    )


def load_lfw(
    root: Path, how: Decoding, attribute_columns: list[int] | None = None, require_attributes: bool = True
) -> Faces:
    """Read LFW: `lfw-deepfunneled/<Name>/<Name>_NNNN.jpg`, and `lfw_attributes.txt`, by the scores' sign.

    The folder of people may also be `lfw_funneled` or `lfw`, or one folder deeper.

    Args:
        root: the folder that holds them.
        how: size, crop and cache of the pictures.
        attribute_columns: which of the 73 attributes to use, from 0; None for the paper's ten.
        require_attributes: leave out pictures without a row of attributes; if false, keep every picture, read
            no attributes and have none (`A` = 0).

    Raises:
        UserError: something is missing or a row is malformed (naming file and line).
    """
    folder = _find(root, _LFW_FOLDERS, _holds_people, "the LFW pictures")
    files = _people_folders(folder)
    people = _people(files)
    notes: dict[str, int] = {}
    names: list[str] = []
    labels: dict[str, list[int]] = {}
    if require_attributes:
        file = _needed(root, folder, "lfw_attributes", "; or do without: --data.require_attributes false")
        names, labels = _lfw_attributes(file, attribute_columns)
        known = {PurePosixPath(f).stem for f in files}
        notes["rows_without_picture"] = len(labels.keys() - known)
        notes["pictures_without_row"] = len(known - labels.keys())
        files = {f: path for f, path in files.items() if PurePosixPath(f).stem in labels}
    elif attribute_columns is not None:
        raise UserError(
            "attribute_columns are given but require_attributes is false: drop one of the two (--data.*)"
        )
    return _assemble(
        folder,
        files,
        [people[f.partition("/")[0]] for f in files],
        list(people),
        [labels[PurePosixPath(f).stem] if names else [] for f in files],
        names,
        notes,
        how,
    )


def load_folder(root: Path, how: Decoding) -> Faces:
    """Read `root/<person>/<picture>`, a folder a person; there are no attributes.

    Args:
        root: the folder of the people's folders.
        how: size, crop and cache of the pictures.

    Raises:
        UserError: the folder is missing or holds no such pictures.
    """
    if not root.is_dir():
        raise UserError(f"{shown(root)} is missing: no folder of the people's folders (--data.root)")
    files = _people_folders(root)
    people = _people(files)
    notes = {"pictures_outside_a_person": sum(map(_is_picture, os.scandir(root)))}
    return _assemble(
        root,
        files,
        [people[f.partition("/")[0]] for f in files],
        list(people),
        [[] for _ in files],
        [],
        notes,
        how,
    )


def _assemble(
    folder: Path,
    files: dict[str, str],
    identity: list[int],
    people: list[str] | None,
    labels: list[list[int]],
    attribute_names: list[str],
    notes: dict[str, int],
    how: Decoding,
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
    present = torch.unique(numbers).tolist()
    return Faces(
        images=images,
        attributes=torch.tensor([labels[k] for k in kept], dtype=torch.uint8).view(
            len(kept), len(attribute_names)
        ),
        identity=numbers,
        attribute_names=attribute_names,
        identity_names=[str(number) if people is None else people[number] for number in present],
        file_names=[names[k] for k in kept],
        notes=notes,
    )


# Finding pictures


def _is_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a folder's entry is meant as a picture; what it holds is for the opener to say."""
    return entry.name.lower().endswith(ENDINGS) and not is_junk(entry.name) and not entry.is_dir()


def _holds_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(map(_is_picture, os.scandir(folder)))


def _holds_people(folder: Path) -> bool:
    if not folder.is_dir() or any((folder / name).is_dir() for name in _LFW_FOLDERS):
        return False  # or it is an archive's folder around that of the people
    return any(_holds_pictures(folder / person) for person in sorted(os.listdir(folder)))


def _find(root: Path, names: tuple[str, ...], holds: Callable[[Path], bool], what: str) -> Path:
    """The folder of pictures: one of `names` under `root`, or in that a folder of the same name.

    Raises:
        UserError: there is none; says where one is, above `root` or one below.
    """

    def within(base: Path) -> Path | None:
        places = [base / more / name for name in names for more in ("", name, "Img")]
        return next(filter(holds, places), None)

    if (found := within(root)) is not None:
        if found != root / names[0]:
            log.warning("the pictures are taken from %s", shown(found))
        return found
    here = Path(os.path.abspath(root))
    meant = [
        base for base in (here.parent, here.parent.parent) if (at := within(base)) and here in (at, at.parent)
    ]
    meant += (
        [each for each in sorted(root.iterdir()) if each.is_dir() and within(each)] if root.is_dir() else []
    )
    hint = f"; did you mean {' or '.join(map(shown, meant))}?" if meant else ""
    wrong = "holds none" if (root / names[0]).is_dir() else "is missing"
    raise UserError(f"{shown(root / names[0])} {wrong}: no folder of {what} (--data.root){hint}")


def _pictures(entries: Iterable[tuple[str, os.DirEntry[str]]], folder: Path) -> dict[str, str]:
    """Which files are pictures, by name; others are counted by their endings.

    Args:
        entries: paths below `folder`, and what is there.
        folder: where they are.
    """
    chosen, others = [], Counter[str]()
    for path, entry in entries:
        if _is_picture(entry):
            chosen.append(path)
        elif not is_junk(entry.name) and not entry.is_dir():
            others[os.path.splitext(entry.name)[1].lower() or "without any"] += 1
    if others:
        counts = ", ".join(f"{count} {shown(ending)}" for ending, count in others.most_common(10))
        log.warning("%s: left out by their endings: %s", shown(folder), counts)
    return _named(chosen, folder)


def _named(paths: Iterable[str], folder: Path) -> dict[str, str]:
    """Paths below a folder by the names that they have on every system: UTF-8, Unicode's normal form C.

    Raises:
        UserError: two have one name.
    """
    named: dict[str, str] = {}
    for path in paths:
        name = normalize("NFC", text_of(path))
        if name in named:
            raise UserError(
                f"{shown(folder)} holds {shown(name)} twice, in two normal forms of Unicode "
                f"({named[name]!a} and {path!a}): rename or remove one"
            )
        named[name] = path
    return named


def _people_folders(root: Path) -> dict[str, str]:
    """The pictures `<person>/<picture>` under `root`, paths by name, in the order of the names.

    Raises:
        UserError: there are none, or two people have one name.
    """
    people = [entry for entry in os.scandir(root) if entry.is_dir() and not is_junk(entry.name)]
    _named((person.name for person in people), root)
    inside = [(f"{person.name}/{entry.name}", entry) for person in people for entry in os.scandir(person)]
    files = _pictures(inside, root)
    if not files:
        meant = [person.path for person in people if _holds_people(Path(person.path))]
        hint = f"; did you mean {' or '.join(map(shown, sorted(meant)))}?" if meant else ""
        raise UserError(
            f"{shown(root)} holds no pictures: expected <person>/<picture>, ending in {', '.join(ENDINGS)}"
            f"{hint}"
        )
    if deeper := sum(entry.is_dir() and not is_junk(entry.name) for _, entry in inside):
        log.warning("%s: left out %d folders inside a person's", shown(root), deeper)
    return dict(sorted(files.items()))


def _people(files: Iterable[str]) -> dict[str, int]:
    """The people's numbers by name."""
    return {person: number for number, person in enumerate(sorted({f.partition("/")[0] for f in files}))}


def _rows_of(pictures: Iterable[str], rows: set[str]) -> dict[str, str]:
    """The row of each picture: of its name, or else the only one whose name differs in the ending alone."""
    row_of = {name: name for name in pictures if name in rows}
    free, others = _by_stem(rows - row_of.keys()), _by_stem(name for name in pictures if name not in row_of)
    other = {
        names[0]: free[stem][0]
        for stem, names in others.items()
        if len(names) == 1 and len(free.get(stem, ())) == 1
    }
    if other:
        log.warning(
            "%d pictures have another ending than in the label files, %s for %s first",
            len(other),
            *map(shown, min(other.items())),
        )
    return row_of | other


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(os.path.splitext(name)[0], []).append(name)
    return stems


# Reading label files


class _Row(NamedTuple):
    """A row of a label file: its place, for messages; the picture's name; the values."""

    at: str
    name: str
    values: list[str]


def _label_file(root: Path, folder: Path, stem: str) -> Path | None:
    """A label file under its official name: beside the pictures, or in CelebA's own folders for them."""
    places = (root, root / "Anno", root / "Eval", folder.parent)
    files = (place / f"{stem}{ending}" for place in places for ending in (".txt", ".csv"))
    return next(filter(Path.is_file, files), None)


def _needed(root: Path, folder: Path, stem: str, more: str = "") -> Path:
    if (file := _label_file(root, folder, stem)) is None:
        raise UserError(
            f"{shown(root / stem)}.txt is missing; it belongs beside the pictures, under its official name"
            f"{more}"
        )
    return file


def _read_lines(file: Path) -> list[str]:
    text = normalize("NFC", file.read_bytes().decode("utf-8-sig", "surrogateescape"))
    if "\0" in text:
        raise UserError(f"{shown(file)} cannot be read as text: save it in UTF-8")
    return text.splitlines()


def _cells(line: str, separator: str | None) -> list[str]:
    return line.split() if separator is None else [cell.strip(' "') for cell in line.split(separator)]


def _table(file: Path, width: int | None) -> tuple[list[str], list[_Row]]:
    """The columns' names, where it has them, and the rows of CelebA's label files, official or CSV.

    Args:
        file: either kind, whatever its ending.
        width: how many values a row has; None: as many as there are named columns.

    Raises:
        UserError: names file and line.
    """
    lines = _read_lines(file)
    at = shown(file)
    separator = next((mark for mark in ",;" if lines and mark in lines[0]), None)
    columns: list[str] = []
    skip = 0
    if separator is not None and not _is_number((head := _cells(lines[0], separator))[1]):
        columns, skip = head[1:], 1
    elif width is None:
        columns, skip = lines[1].split() if len(lines) > 1 else [], 2
        if separator is not None or not columns or not lines[0].strip().isdecimal():
            raise UserError(f"{at}: line 1 must be the number of rows, line 2 the attribute names")
    rows: dict[str, _Row] = {}
    for number, line in enumerate(lines[skip:], start=skip + 1):
        if not line.strip():
            continue
        name, *values = _cells(line, separator)
        if width is not None and len(values) != width:
            raise UserError(f"{at}, line {number}: expected a file name and {width} value, got {line[:60]!r}")
        if name in rows:
            raise UserError(f"{at}, line {number}: a second row for {shown(name)}; remove one of them")
        rows[name] = _Row(f"{at}, line {number}", name, values)
    if skip == 2 and int(lines[0]) != len(rows):
        log.warning("%s announces %s rows and has %d", at, lines[0].strip(), len(rows))
    return columns, list(rows.values())


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _number(text: str, at: str, what: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{at}: expected {what}, got {text!r}")
    return int(text)


def _columns(chosen: list[int] | None, default: list[int], width: int) -> list[int]:
    columns = default if chosen is None else chosen
    if not columns or len(set(columns)) != len(columns) or not all(0 <= column < width for column in columns):
        raise UserError(
            f"attribute_columns {columns} must be different numbers from 0 to {width - 1} "
            "(--data.attribute_columns)"
        )
    return columns


def _lfw_attributes(file: Path, chosen: list[int] | None) -> tuple[list[str], dict[str, list[int]]]:
    """The names of the chosen columns, and the labels by the picture's name without its ending."""
    lines = _read_lines(file)
    separator, between = ("\t", "tabs") if any("\t" in line for line in lines[:2]) else (",", "commas")
    heads = [_cells(line.lstrip("#").strip(), separator) for line in lines[:2]]
    skip = next((number for number, head in enumerate(heads, 1) if head[:2] == ["person", "imagenum"]), 0)
    if not skip:
        raise UserError(
            f"{shown(file)}, line 2: expected a header that starts '#, person, imagenum', tab-separated"
        )
    names = heads[skip - 1][2:]
    columns = _columns(chosen, LFW_PAPER_COLUMNS, len(names))
    labels: dict[str, list[int]] = {}
    for number, line in enumerate(lines[skip:], start=skip + 1):
        if not line.strip():
            continue
        at, cells = f"{shown(file)}, line {number}", _cells(line, separator)
        if len(cells) != len(names) + 2:
            raise UserError(f"{at}: expected {len(names) + 2} cells separated by {between}, got {len(cells)}")
        stem = f"{cells[0].replace(' ', '_')}_{_number(cells[1], at, 'a picture number'):04d}"
        if stem in labels:
            raise UserError(f"{at}: a second row for {shown(stem)}; remove one of them")
        try:
            scores = [float(cells[2 + column]) for column in columns]
        except ValueError:
            scores = [math.nan]
        if not all(map(math.isfinite, scores)):
            raise UserError(
                f"{at}: the scores must be finite numbers, got {[cells[2 + c] for c in columns][:3]}..."
            )
        labels[stem] = [int(score > 0) for score in scores]
    return [names[column].replace(" ", "_") for column in columns], labels
