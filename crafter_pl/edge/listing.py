"""Which photographs a command means: files and folders, each file once."""

from __future__ import annotations

import os
from pathlib import Path

from crafter_pl.data.pictures import Refused, is_junk, shown


def photographs(given: list[str], leave_out: set[Path]) -> tuple[list[str], list[tuple[str, Refused]]]:
    """Lists the files given, and those in the folders given and below, sorted.

    Hidden files (their name begins with a dot) in folders, and what systems leave there, are left out without
    a word, and links to folders are not followed. Two names of one file count once: an attacker with two
    features of one picture knows more.

    Args:
        given: files and folders; `~` is expanded.
        leave_out: files and folders that are not looked at.

    Returns:
        Absolute paths, in order, and what could not be listed, each with the reason.
    """
    found: dict[str, str] = {}  # by the file that a name leads to
    seen: set[str] = set()
    paths: list[str] = []
    refused: list[tuple[str, Refused]] = []

    def add(path: str) -> None:
        real = os.path.realpath(path)
        if path in seen:
            return
        seen.add(path)
        if real in found:
            refused.append((path, Refused("twice", f"the same file as {shown(found[real])}")))
        else:
            found[real] = path
            paths.append(path)

    def unreadable(error: OSError) -> None:
        refused.append((str(error.filename), Refused("may not be read", str(error.strerror))))

    for name in given:
        top = os.path.abspath(os.path.expanduser(name))
        if not os.path.isdir(top):
            add(top)
            continue
        before = len(paths) + len(refused)
        for folder, folders, files in os.walk(top, onerror=unreadable):
            links = [each for each in folders if os.path.islink(os.path.join(folder, each))]
            refused += [(os.path.join(folder, each), Refused("a link to a folder")) for each in sorted(links)]
            folders[:] = sorted(
                each
                for each in folders
                if not is_junk(each)
                and each not in links
                and Path(os.path.realpath(os.path.join(folder, each))) not in leave_out
            )
            for each in sorted(files):
                path = os.path.join(folder, each)
                if not is_junk(each) and Path(os.path.realpath(path)) not in leave_out:
                    add(path)
        if len(paths) + len(refused) == before:
            refused.append((top, Refused("no files in it")))
    return paths, refused
