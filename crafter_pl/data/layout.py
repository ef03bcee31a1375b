"""What a data set on disk is made of: folders of pictures, and label files, found and read.

What is wrong in a table is said by file and line.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from unicodedata import normalize

from crafter_pl.data.pictures import ENDINGS, is_junk, shown
from crafter_pl.errors import UserError

LFW_FOLDERS = ("lfw-deepfunneled", "lfw_funneled", "lfw")
LFW_PAPER_COLUMNS = [0, 1, 2, 7, 9, 14, 16, 17, 19, 25]
log = logging.getLogger(__name__)

# Folders of pictures


def is_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a folder's entry is meant as a picture; what it holds is for the opener to say."""
    return entry.name.lower().endswith(ENDINGS) and not is_junk(entry.name) and not entry.is_dir()


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture straight in it."""
    return folder.is_dir() and any(map(is_picture, os.scandir(folder)))


def holds_people(folder: Path) -> bool:
    """Whether there are folders of people in it, as LFW has them."""
    if not folder.is_dir() or any((folder / name).is_dir() for name in LFW_FOLDERS):
        return False  # or it is an archive's folder around that of the people
    return any(holds_pictures(folder / person) for person in sorted(os.listdir(folder)))


def find_folder(root: Path, names: tuple[str, ...], holds: Callable[[Path], bool], what: str) -> Path:
    """The folder of pictures: one of `names` under `root`, or in that a folder of the same name.

    Raises:
        UserError: there is none; says where one is, above `root` or one below.
    """

    def within(base: Path) -> Path | None:
        return next(filter(holds, (base / more / name for name in names for more in ("", name, "Img"))), None)

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


def pictures_in(entries: Iterable[tuple[str, os.DirEntry[str]]], folder: Path) -> dict[str, str]:
    """Which files are pictures, by name; others are counted by their endings.

    Args:
        entries: paths below `folder`, and what is there.
        folder: where they are.
    """
    chosen, others = [], Counter[str]()
    for path, entry in entries:
        if is_picture(entry):
            chosen.append(path)
        elif not is_junk(entry.name) and not entry.is_dir():
            others[os.path.splitext(entry.name)[1].lower() or "without any"] += 1
    if others:
        counts = ", ".join(f"{count} {shown(ending)}" for ending, count in others.most_common(10))
        log.warning("%s: left out by their endings: %s", shown(folder), counts)
    return by_name(chosen, folder)


def by_name(paths: Iterable[str], folder: Path) -> dict[str, str]:
    """Paths below a folder by the names that they have on every system: UTF-8, Unicode's normal form C.

    Raises:
        UserError: two have one name.
    """
    named: dict[str, str] = {}
    for path in paths:
        # The same text whatever this system's locale: UTF-8, other bytes as surrogates.
        name = normalize("NFC", os.fsencode(path).decode("utf-8", "surrogateescape"))
        if name in named:
            raise UserError(
                f"{shown(folder)} holds {shown(name)} twice, in two normal forms of Unicode "
                f"({named[name]!a} and {path!a}): rename or remove one"
            )
        named[name] = path
    return named


# Label files


def find_labels(root: Path, folder: Path, stem: str) -> Path | None:
    """A label file under its official name: beside the pictures, or in CelebA's own folders for them."""
    places = (root, root / "Anno", root / "Eval", folder.parent)
    files = (place / f"{stem}{ending}" for place in places for ending in (".txt", ".csv"))
    return next(filter(Path.is_file, files), None)


def need_labels(root: Path, folder: Path, stem: str, more: str = "") -> Path:
    """The label file of that stem.

    Raises:
        UserError: there is none.
    """
    if (file := find_labels(root, folder, stem)) is None:
        raise UserError(
            f"{shown(root / stem)}.txt is missing; it belongs beside the pictures, under its official name"
            f"{more}"
        )
    return file


def read_lines(file: Path) -> list[str]:
    """A text file's lines, in NFC.

    Raises:
        UserError: it is no text.
    """
    text = normalize("NFC", file.read_bytes().decode("utf-8-sig", "surrogateescape"))
    if "\0" in text:
        raise UserError(f"{shown(file)} cannot be read as text: save it in UTF-8")
    return text.splitlines()


def cells(line: str, separator: str | None) -> list[str]:
    """A line's parts: at a separator, else at blanks."""
    return line.split() if separator is None else [cell.strip(' "') for cell in line.split(separator)]


def read_table(file: Path, width: int | None) -> tuple[list[str], dict[str, tuple[str, list[str]]]]:
    """The columns' names, where it has them, and the rows of CelebA's label files, official or CSV.

    A row stands under the picture's name: its place, for messages, and the values.

    Args:
        file: either kind, whatever its ending.
        width: how many values a row has; None: as many as there are named columns.

    Raises:
        UserError: names file and line.
    """
    lines, at = read_lines(file), shown(file)
    separator = next((mark for mark in ",;" if lines and mark in lines[0]), None)
    columns: list[str] = []
    skip = 0
    if separator is not None and not (head := cells(lines[0], separator))[1].removeprefix("-").isdecimal():
        columns, skip = head[1:], 1  # its first value is no number
    elif width is None:
        columns, skip = lines[1].split() if len(lines) > 1 else [], 2
        if separator is not None or not columns or not lines[0].strip().isdecimal():
            raise UserError(f"{at}: line 1 must be the number of rows, line 2 the attribute names")
    rows = table_rows(lines, skip, separator, width, at)
    if skip == 2 and int(lines[0]) != len(rows):
        log.warning("%s announces %s rows and has %d", at, lines[0].strip(), len(rows))
    return columns, rows


def table_rows(
    lines: list[str], skip: int, separator: str | None, width: int | None, at: str
) -> dict[str, tuple[str, list[str]]]:
    """The rows behind a head of `skip` lines: by their first cell their place, for messages, and the others.

    Raises:
        UserError: names the line where there are not `width` others, or a name comes again.
    """
    rows: dict[str, tuple[str, list[str]]] = {}
    for number, line in enumerate(lines[skip:], start=skip + 1):
        if not line.strip():
            continue
        name, *values = cells(line, separator)
        if width is not None and len(values) != width:
            raise UserError(f"{at}, line {number}: expected a file name and {width} value, got {line[:60]!r}")
        if name in rows:
            raise UserError(f"{at}, line {number}: a second row for {shown(name)}; remove one of them")
        rows[name] = f"{at}, line {number}", values
    return rows


def to_number(text: str, at: str, what: str) -> int:
    """A cell as a whole number from 0.

    Raises:
        UserError: it is none; ``at`` says where, ``what`` what was expected.
    """
    if not text.isdecimal():
        raise UserError(f"{at}: expected {what}, got {text!r}")
    return int(text)


def choose_columns(chosen: list[int] | None, default: list[int], width: int) -> list[int]:
    """The columns chosen, or the default's.

    Raises:
        UserError: there is no such column.
    """
    columns = default if chosen is None else chosen
    if not columns or len(set(columns)) != len(columns) or not all(0 <= column < width for column in columns):
        raise UserError(
            f"attribute_columns {columns} must be different numbers from 0 to {width - 1} "
            "(--data.attribute_columns)"
        )
    return columns


def lfw_attributes(file: Path, chosen: list[int] | None) -> tuple[list[str], dict[str, list[int]]]:
    """The names of the chosen columns, and the labels by the picture's name without its ending."""
    lines = read_lines(file)
    separator, between = ("\t", "tabs") if any("\t" in line for line in lines[:2]) else (",", "commas")
    heads = [cells(line.lstrip("#").strip(), separator) for line in lines[:2]]
    skip = next((number for number, head in enumerate(heads, 1) if head[:2] == ["person", "imagenum"]), 0)
    if not skip:
        raise UserError(
            f"{shown(file)}, line 2: expected a header that starts '#, person, imagenum', tab-separated"
        )
    names = heads[skip - 1][2:]
    columns = choose_columns(chosen, LFW_PAPER_COLUMNS, len(names))
    labels: dict[str, list[int]] = {}
    for number, line in enumerate(lines[skip:], start=skip + 1):
        if not line.strip():
            continue
        at, own = f"{shown(file)}, line {number}", cells(line, separator)
        if len(own) != len(names) + 2:
            raise UserError(f"{at}: expected {len(names) + 2} cells separated by {between}, got {len(own)}")
        stem = f"{own[0].replace(' ', '_')}_{to_number(own[1], at, 'a picture number'):04d}"
        if stem in labels:
            raise UserError(f"{at}: a second row for {shown(stem)}; remove one of them")
        try:
            scores = [float(own[2 + column]) for column in columns]
        except ValueError:
            scores = [math.nan]
        if not all(map(math.isfinite, scores)):
            raise UserError(
                f"{at}: the scores must be finite numbers, got {[own[2 + c] for c in columns][:3]}..."
            )
        labels[stem] = [int(score > 0) for score in scores]
    return [names[column].replace(" ", "_") for column in columns], labels
