"""Folders of pictures: found below a root, and their pictures by name."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from unicodedata import normalize

from crafter_pl.data.pictures import ENDINGS, is_junk, shown, text_of
from crafter_pl.errors import UserError

LFW_FOLDERS = ("lfw-deepfunneled", "lfw_funneled", "lfw")
log = logging.getLogger(__name__)


def _is_picture(entry: os.DirEntry[str]) -> bool:
    """Whether a folder's entry is meant as a picture; what it holds is for the opener to say."""
    return entry.name.lower().endswith(ENDINGS) and not is_junk(entry.name) and not entry.is_dir()


def holds_pictures(folder: Path) -> bool:
    """Whether there is a picture straight in it."""
    return folder.is_dir() and any(map(_is_picture, os.scandir(folder)))


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
    return by_name(chosen, folder)


def by_name(paths: Iterable[str], folder: Path) -> dict[str, str]:
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


def people_folders(root: Path) -> tuple[dict[str, str], dict[str, int]]:
    """The pictures `<person>/<picture>` under `root`.

    Returns:
        Their paths by name, and the numbers of the people by name, both in the order of the names.

    Raises:
        UserError: there are none, or two people have one name.
    """
    people = [entry for entry in os.scandir(root) if entry.is_dir() and not is_junk(entry.name)]
    by_name((person.name for person in people), root)
    inside = [(f"{person.name}/{entry.name}", entry) for person in people for entry in os.scandir(person)]
    files = _pictures(inside, root)
    if not files:
        meant = [person.path for person in people if holds_people(Path(person.path))]
        hint = f"; did you mean {' or '.join(map(shown, sorted(meant)))}?" if meant else ""
        raise UserError(
            f"{shown(root)} holds no pictures: expected <person>/<picture>, ending in {', '.join(ENDINGS)}"
            f"{hint}"
        )
    if deeper := sum(entry.is_dir() and not is_junk(entry.name) for _, entry in inside):
        log.warning("%s: left out %d folders inside a person's", shown(root), deeper)
    names = sorted({name.partition("/")[0] for name in files})
    return dict(sorted(files.items())), {person: number for number, person in enumerate(names)}
