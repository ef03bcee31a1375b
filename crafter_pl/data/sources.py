"""Real faces from disk: CelebA's and LFW's official layouts, and a plain folder a person."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import torch

from crafter_pl.data.decoding import Decoding, decode_all
from crafter_pl.data.faces import Faces
from crafter_pl.errors import UserError

log = logging.getLogger(__name__)

LFW_PAPER_COLUMNS = [0, 1, 2, 7, 9, 14, 16, 17, 19, 25]
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


def load_celeba(root: Path, how: Decoding, attribute_columns: list[int] | None = None) -> Faces:
    """Read CelebA, whole or any subset: `img_align_celeba/` and its label files.

    A picture needs a row in `identity_CelebA.txt` and one in `list_attr_celeba.txt`. The third file,
    `list_eval_partition.txt`, is checked if it is there, and not used: the split is by identity (`split.py`).

    Args:
        root: the folder that holds them.
        how: size, crop and cache of the pictures.
        attribute_columns: which of the attributes to use, from 0; None for all.

    Raises:
        UserError: something is missing or a row is malformed (naming file and line).
    """
    folder = _need_folder(root, "img_align_celeba", "the CelebA pictures")
    identity = {
        name: _number(value, at, "an identity number")
        for at, name, (value,) in _rows(root / "identity_CelebA.txt", 0, 1)
    }
    lines = _rows(root / "list_attr_celeba.txt", 2, None)
    header = _read_lines(root / "list_attr_celeba.txt")[:2]
    names = header[1].split() if len(header) == 2 else []
    if not names or not header[0].strip().isdigit():
        raise UserError(
            f"{root / 'list_attr_celeba.txt'}: line 1 must be the number of rows, line 2 the attribute names"
        )
    if int(header[0]) != len(lines):
        log.warning(
            "%s announces %s rows and has %d", root / "list_attr_celeba.txt", header[0].strip(), len(lines)
        )
    columns = _columns(attribute_columns, list(range(len(names))), len(names))
    labels: dict[str, list[int]] = {}
    for at, name, values in lines:
        if len(values) != len(names) or not set(values) <= {"1", "-1"}:
            raise UserError(
                f"{at}: expected a file name and {len(names)} values of 1 or -1, got {len(values)} values: "
                f"{' '.join(values)[:40]!r}"
            )
        labels[name] = [int(values[column] == "1") for column in columns]
    if (partition := root / "list_eval_partition.txt").exists():
        for at, _, (value,) in _rows(partition, 0, 1):
            if value not in ("0", "1", "2"):
                raise UserError(f"{at}: the partition must be 0, 1 or 2, got {value!r}")

    pictures = {entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(PICTURE_ENDINGS)}
    chosen = sorted(pictures & identity.keys() & labels.keys())
    notes = {
        "rows_without_picture": len((identity.keys() | labels.keys()) - pictures),
        "pictures_without_row": len(pictures) - len(chosen),
    }
    return _assemble(
        folder,
        chosen,
        [identity[n] for n in chosen],
        None,
        [labels[n] for n in chosen],
        [names[c] for c in columns],
        notes,
        how,
    )


def load_lfw(
    root: Path, how: Decoding, attribute_columns: list[int] | None = None, require_attributes: bool = True
) -> Faces:
    """Read LFW: `lfw-deepfunneled/<Name>/<Name>_NNNN.jpg`, and `lfw_attributes.txt`, by the scores' sign.

    Args:
        root: the folder that holds them.
        how: size, crop and cache of the pictures.
        attribute_columns: which of the 73 attributes to use, from 0; None for the paper's ten.
        require_attributes: leave out pictures without a row of attributes; if false, keep every picture, read
            no attributes and have none (`A` = 0).

    Raises:
        UserError: something is missing or a row is malformed (naming file and line).
    """
    folder = _need_folder(root, "lfw-deepfunneled", "the LFW pictures")
    files = _people_folders(folder)
    people = {person: number for number, person in enumerate(sorted({Path(f).parent.name for f in files}))}
    notes: dict[str, int] = {}
    names: list[str] = []
    labels: dict[str, list[int]] = {}
    if require_attributes:
        names, labels = _lfw_attributes(root / "lfw_attributes.txt", attribute_columns)
        known = {Path(f).stem for f in files}
        notes["rows_without_picture"] = len(labels.keys() - known)
        notes["pictures_without_row"] = len(known - labels.keys())
        files = [f for f in files if Path(f).stem in labels]
    elif attribute_columns is not None:
        raise UserError(
            "attribute_columns are given but require_attributes is false: drop one of the two (--data.*)"
        )
    identity = [people[Path(f).parent.name] for f in files]
    return _assemble(
        folder,
        files,
        identity,
        list(people),
        [labels[Path(f).stem] if names else [] for f in files],
        names,
        notes,
        how,
    )


def load_folder(root: Path, how: Decoding) -> Faces:
    """Read `root/<person>/*.jpg|jpeg|png|webp`, a folder a person; there are no attributes.

    Args:
        root: the folder of the people's folders.
        how: size, crop and cache of the pictures.

    Raises:
        UserError: the folder is missing or holds no such pictures.
    """
    files = _people_folders(_need_folder(root.parent, root.name, "the people's folders"))
    people = {person: number for number, person in enumerate(sorted({Path(f).parent.name for f in files}))}
    loose = sum(
        entry.is_file() and entry.name.lower().endswith(PICTURE_ENDINGS) for entry in os.scandir(root)
    )
    notes = {"pictures_outside_a_person": loose}
    return _assemble(
        root,
        files,
        [people[Path(f).parent.name] for f in files],
        list(people),
        [[] for _ in files],
        [],
        notes,
        how,
    )


def _assemble(
    folder: Path,
    files: list[str],
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
            f"{folder} and its label files have no picture in common ({dict(notes)}); do they belong "
            "together?"
        )
    images, kept = decode_all(folder, files, how)
    notes = {
        reason: count
        for reason, count in {**notes, "unreadable_pictures": len(files) - len(kept)}.items()
        if count
    }
    for reason, count in notes.items():
        log.warning("%s: %d %s", folder, count, reason.replace("_", " "))
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
        file_names=[files[k] for k in kept],
        notes=notes,
    )


# Reading label files


def _need_folder(root: Path, name: str, what: str) -> Path:
    folder = root / name
    if not folder.is_dir():
        hint = next((f"; did you mean {deeper.parent}?" for deeper in root.glob(f"*/{name}")), "")
        raise UserError(f"{folder} is missing: no folder of {what} (--data.root){hint}")
    return folder


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing; it belongs beside the pictures, under its official name"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read as text: {error}") from error


def _rows(file: Path, skip: int, width: int | None) -> list[tuple[str, str, list[str]]]:
    """The rows of a label file after `skip` lines: (place, for messages; file name; values).

    Each has `width` values, if that is given.
    """
    rows, seen = [], set()
    for number, line in enumerate(_read_lines(file)[skip:], start=skip + 1):
        if not (cells := line.split()):
            continue
        at = f"{file}, line {number}"
        if width is not None and len(cells) != width + 1:
            raise UserError(f"{at}: expected a file name and {width} value, got {line[:60]!r}")
        if cells[0] in seen:
            raise UserError(f"{at}: a second row for {cells[0]}; remove one of them")
        seen.add(cells[0])
        rows.append((at, cells[0], cells[1:]))
    return rows


def _number(text: str, at: str, what: str) -> int:
    if not text.isdigit():
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
    header = lines[1].lstrip("#").strip("\t ").split("\t") if len(lines) > 1 else []
    if header[:2] != ["person", "imagenum"]:
        raise UserError(f"{file}, line 2: expected a header that starts '#, person, imagenum', tab-separated")
    names = header[2:]
    columns = _columns(chosen, LFW_PAPER_COLUMNS, len(names))
    labels: dict[str, list[int]] = {}
    for number, line in enumerate(lines[2:], start=3):
        if not line.strip():
            continue
        at, cells = f"{file}, line {number}", line.split("\t")
        if len(cells) != len(names) + 2:
            raise UserError(f"{at}: expected {len(names) + 2} cells separated by tabs, got {len(cells)}")
        stem = f"{cells[0].replace(' ', '_')}_{_number(cells[1], at, 'a picture number'):04d}"
        if stem in labels:
            raise UserError(f"{at}: a second row for {stem}; remove one of them")
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


def _people_folders(root: Path) -> list[str]:
    """The pictures `<person>/<file>` under `root`, sorted.

    Raises:
        UserError: there are none.
    """
    files = [
        f"{person.name}/{entry.name}"
        for person in os.scandir(root)
        if person.is_dir() and not person.name.startswith(".")
        for entry in os.scandir(person)
        if entry.name.lower().endswith(PICTURE_ENDINGS)
    ]
    if not files:
        raise UserError(
            f"{root} holds no pictures: expected <person>/<picture>, ending in {', '.join(PICTURE_ENDINGS)}"
        )
    return sorted(files)
