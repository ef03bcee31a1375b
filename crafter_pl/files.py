"""The one way to write a file, hash it, lock a folder, read JSON from outside, and understand a path.

No torch here: the command line, the edge and the cloud use it alike.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from crafter_pl.errors import UserError
from crafter_pl.processes import rank

MAX_JSON_BYTES = 256 * 2**20  # the largest of ours, a ledger of a million photographs, is smaller
LOCK = ".lock"  # in a folder that a process works in, see `lock`


@contextmanager
def new_file(path: str | Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file `path` when the block ends well, and are gone when it does not.

    The file is written beside its place, forced to the disk and moved there: a reader, a crash or `kill -9`
    meets the old file or the new one. Its folder is made if it is not there.

    Args:
        path: of the file.
        mode: its permissions, as `os.open` takes them.

    Raises:
        OSError: the disk is full, the place is read-only, ...; it names `path`.
        UserError: there is something that is no file, such as a device.
    """
    path = ordinary(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial), os.fsencode(partial)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a write names no file by itself
    finally:
        partial.unlink(missing_ok=True)


def ordinary(path: str | Path) -> Path:
    """A place where a file is, or nothing: one written there would take the place of whatever else is there.

    Raises:
        UserError: there is something else.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is there, and is no file: give another place")
    return path


def write_file(path: str | Path, content: bytes | str, mode: int = 0o666) -> Path:
    """Write a file whole or not at all, see `new_file`; text as UTF-8, names in it as the bytes they are."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    with new_file(path, mode) as stream:
        stream.write(data)
    return Path(path)


@contextmanager
def lock(
    folder: Path, wait: str | None = None, doing: str = "training", other: str = "--experiment"
) -> Iterator[None]:
    """Let one process and its helpers work in a folder; the lock is lifted when the process dies, however.

    Args:
        folder: made if it is not there; one that is empty at the end, and that nobody waits for, is removed.
        wait: what to print where another process holds the lock, to wait for it; None: refuse.
        doing: what the other process does, for the refusal.
        other: the option that gives another folder, for the refusal.

    Raises:
        UserError: another process is at work there.
    """
    if rank():  # a helper: the first process holds the lock
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = FileLock(folder / LOCK)
    try:
        held = file.acquire(timeout=0)
    except Timeout:
        if wait is None:
            raise UserError(
                f"another process is {doing} in {folder}: wait for it, or choose another {other}"
            ) from None
        print(wait, flush=True)
        held = file.acquire()
    with held:
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)  # whoever waits for it notices that
            if wait is None:
                with suppress(OSError):
                    folder.rmdir()


@lru_cache(maxsize=64)
def _digest(path: str, mtime_ns: int, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256(path: str | Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits (remembered until the file changes)."""
    stat = Path(path).stat()
    return _digest(str(path), stat.st_mtime_ns, stat.st_size)


def to_json(content: Any, indent: int | None = 1) -> str:  # noqa: ANN401 (whatever JSON holds)
    """JSON text with a line's end.

    Raises:
        ValueError: a number in it is not finite.
    """
    return json.dumps(content, indent=indent, allow_nan=False) + "\n"


def parse_json(text: str | bytes, where: str, way_out: str) -> Any:  # noqa: ANN401 (whatever JSON holds)
    """JSON that somebody else may have written, within limits.

    Args:
        text: of at most `MAX_JSON_BYTES`; bytes are UTF-8.
        where: names it in the message.
        way_out: the end of the message: what to do about it.

    Raises:
        UserError: it is no JSON, too deep or too large, has a name twice in one object, or a number that is
            not finite.
    """
    try:
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"over {MAX_JSON_BYTES >> 20} MB")
        text = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_finite)
    except (RecursionError, ValueError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{where} cannot be read as JSON ({why}); {way_out}") from error


def read_json(path: str | Path, way_out: str) -> Any:  # noqa: ANN401 (whatever JSON holds)
    """The content of a JSON file, see `parse_json`; a file that cannot be opened is an `OSError`."""
    with open(path, "rb") as stream:
        return parse_json(stream.read(MAX_JSON_BYTES + 1), str(path), way_out)


def expand(text: str) -> str:
    """A path as it was meant: a leading `~`, and `$VARIABLES` that are set, unless it exists as it stands."""
    return text if os.path.lexists(text) else os.path.expanduser(os.path.expandvars(text))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; two members of one name are what two readers understand differently."""
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise ValueError(f"{name[:40]!r} twice in one object")
        made[name] = value
    return made


def _finite(text: str) -> float:
    """A number; JSON knows no others than finite ones."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:20]} is not finite")
    return number


def tidy(folder: str | Path, name: str | None = None) -> None:
    """Remove what `kill -9` left half-written in a folder: `.NAME.PID.tmp`, whose process runs no more here.

    Args:
        folder: where; it need not be there.
        name: of the file or folder that was to be made; None: any.
    """
    made = ".+" if name is None else re.escape(name)
    for entry in os.listdir(folder) if os.path.isdir(folder) else ():
        found = re.fullmatch(rf"\.{made}\.([0-9]{{1,9}})\.tmp", entry, re.DOTALL)
        if found is None or _runs(int(found[1])):
            continue
        path = Path(folder, entry)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # another user's may not be signalled
    return True
