"""Plain folders of faces: a folder a person, or all straight in one; private and public ones."""

import logging
import os
from pathlib import Path

from crafter_pl.data.layout import by_name, holds_people, pictures_in
from crafter_pl.data.pictures import ENDINGS, is_junk, shown
from crafter_pl.errors import UserError

log = logging.getLogger(__name__)


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
    files = pictures_in(inside, root)
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


def beside(roots: list[Path]) -> tuple[Path, list[str]]:
    """The folder above several ones, and how paths of each begin below it; of a single one itself.

    Raises:
        UserError: one is missing, or lies within the other.
    """
    for folder, option in zip(roots, ("root", "public_root"), strict=False):
        if not folder.is_dir():
            raise UserError(f"{shown(folder)} is missing: no folder of faces (--data.{option})")
    if len(roots) == 1:
        return roots[0], [""]
    whole = [Path(os.path.realpath(folder)) for folder in roots]
    base = Path(os.path.commonpath(whole))
    if base in whole:
        raise UserError(
            f"{shown(roots[0])} and {shown(roots[1])} lie within one another, and private people must not be "
            "public: give two folders beside each other (--data.root, --data.public_root)"
        )
    return base, [f"{folder.relative_to(base).as_posix()}/" for folder in whole]


def folder_pictures(folder: Path, named: bool) -> dict[str, str]:
    """The paths below a folder by name: of people's folders, or straight in it."""
    if named:
        return people_folders(folder)[0]
    if not (files := pictures_in(((entry.name, entry) for entry in os.scandir(folder)), folder)):
        raise UserError(
            f"{shown(folder)} holds no pictures straight in it, as --data.identities none expects: give "
            "another folder, or --data.identities folder for a folder a person"
        )
    return files
