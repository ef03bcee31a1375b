"""A labels file of one's own: attributes, classes or values of the pictures in people's folders."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from crafter_pl.data.faces import UNKNOWN, LabelsKind
from crafter_pl.data.layout import cells, choose_columns, read_lines, table_rows
from crafter_pl.data.pictures import ENDINGS, shown
from crafter_pl.errors import UserError


class Labels(NamedTuple):
    """What a file says of pictures.

    Attributes:
        names: of the columns: attributes, values, or all classes that are there.
        of: by the picture's name, a row of numbers; of classes one-hot.
        unused: rows that name no picture.
    """

    names: list[str]
    of: dict[str, list[float]]
    unused: int

    def rows(self, pictures: Iterable[str]) -> list[list[float]]:
        """Of each picture; unknown where the file has none."""
        unknown = [UNKNOWN] * len(self.names)
        return [self.of.get(name, unknown) for name in pictures]


def read_labels(
    file: Path,
    kind: LabelsKind,
    chosen: list[int] | None,
    pictures: Iterable[str],
    classes: list[str] | None = None,
) -> Labels:
    """Reads a table whose head names the columns, and whose rows begin with a picture's name.

    It is CSV, or parted by blanks; the head may also be CelebA's two lines, the number of rows and the names.

    Args:
        file: the table.
        kind: ``multilabel``, 0 and 1 or -1 and 1; ``multiclass``, one column of classes' names, in whose
            order they are counted; or ``regression``, finite numbers.
        chosen: the columns that are used, from 0; None: all.
        pictures: their names, ``<person>/<picture>``, of two roots ``<folder>/<person>/<picture>``; a row may
            leave out what comes first where only one picture ends so.
        classes: all of them, in the order in which they are counted; None: those that are there.

    Raises:
        UserError: the file is missing, or a row is malformed, by file and line.
    """
    if not file.is_file():
        raise UserError(f"{shown(file)} is missing: no file of labels (--data.labels)")
    columns, table = _table(file)
    columns = [_text(file, column) for column in columns]
    picked = choose_columns(chosen, list(range(len(columns))), len(columns))
    if kind == "multiclass" and len(picked) != 1:
        raise UserError(
            f"{shown(file)} has {len(picked)} columns ({', '.join(columns[one] for one in picked)}), and "
            "classes are named in one: choose it, such as --data.attribute_columns [0]"
        )
    rows = {
        name: (at, [values[column] for column in picked])
        for name, (at, values) in _matched(table, list(pictures)).items()
    }
    if not rows:
        raise UserError(
            f"{shown(file)}: no row names a picture that is there; give <person>/<picture>, or the picture's "
            "own name"
        )
    names, unused = [columns[one] for one in picked], len(table) - len(rows)
    if kind == "multiclass":
        if nameless := next((at for at, values in rows.values() if not values[0]), None):
            raise UserError(f"{nameless}: there is no class; leave the row out if nobody knows")
        names = sorted({values[0] for _, values in rows.values()}, key=_in_order)
        names = [_text(file, name) for name in names] if classes is None else classes
        for at, values in rows.values():
            if values[0] not in names:
                raise UserError(f"{at}: {shown(values[0])} is none of the classes given (--data.classes)")
        return Labels(
            names, {key: [float(one == v[0]) for one in names] for key, (_, v) in rows.items()}, unused
        )
    number = _Binary() if kind == "multilabel" else _finite
    return Labels(
        names, {name: [number(cell, at) for cell in values] for name, (at, values) in rows.items()}, unused
    )


def _text(file: Path, name: str) -> str:
    """A name that is text, whatever bytes the names of pictures may be."""
    if any("\ud800" <= char <= "\udfff" for char in name):
        raise UserError(f"{shown(file)}: {shown(name)} is not UTF-8: save the file in UTF-8")
    return name


def _in_order(name: str) -> tuple[bool, int, str]:
    """Classes that are numbers in the order of numbers, as nets have them; others by their names."""
    number = name.isascii() and name.isdecimal()
    return (not number, int(name) if number else 0, name)


def _table(file: Path) -> tuple[list[str], dict[str, tuple[str, list[str]]]]:
    """The columns' names, and place and cells by the name that a row begins with."""
    lines, at = read_lines(file), shown(file)
    separator = next((mark for mark in ",;" if lines and mark in lines[0]), None)
    official = bool(lines) and lines[0].strip().isdecimal()
    columns = (
        lines[1].split() if official and len(lines) > 1 else cells(lines[0], separator)[1:] if lines else []
    )
    if not columns or (not official and cells(lines[0], separator)[0].lower().endswith(ENDINGS)):
        raise UserError(f"{at}, line 1: expected a head that names the columns, such as 'file,Smiling,Young'")
    if len(set(columns)) < len(columns):
        raise UserError(f"{at}: two columns have one name ({', '.join(columns)}): rename one")
    return columns, table_rows(lines, 1 + official, separator, len(columns), at)


def _matched(
    table: dict[str, tuple[str, list[str]]], pictures: list[str]
) -> dict[str, tuple[str, list[str]]]:
    """The rows by their pictures' names, of which the first folders may be left out."""
    whole, short = set(pictures), dict[str, list[str]]()
    for name in pictures:
        parts = name.split("/")
        for start in range(1, len(parts)):
            short.setdefault("/".join(parts[start:]), []).append(name)
    found: dict[str, tuple[str, list[str]]] = {}
    for name, row in table.items():
        meant = [name] if name in whole else short.get(name, [])
        if len(meant) > 1:
            raise UserError(
                f"{row[0]}: {shown(name)} is the name of {len(meant)} pictures, {shown(meant[0])} and "
                "others: write the whole name"
            )
        if meant and meant[0] in found:
            raise UserError(f"{row[0]}: a second row for {shown(meant[0])}; remove one of them")
        found |= dict.fromkeys(meant, row)
    return found


class _Binary:
    """Cells of 0 and 1, or of -1 and 1, as 0 and 1: all of a file in one way."""

    def __init__(self) -> None:
        self.no: str | None = None

    def __call__(self, cell: str, at: str) -> float:
        if cell not in ("0", "1", "-1"):
            raise UserError(f"{at}: expected 0 or 1, or -1 or 1, got {cell!r}; leave out what nobody knows")
        if cell == "1":
            return 1.0
        if (self.no or cell) != cell:
            raise UserError(
                f"{at}: {cell} after {self.no}: write no in one way, and leave out what nobody knows"
            )
        self.no = cell
        return 0.0


def _finite(cell: str, at: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{at}: expected a finite number, got {cell!r}; leave the row out if nobody knows")
    return value
