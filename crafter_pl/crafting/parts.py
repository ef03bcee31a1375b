"""Parts of long work that are kept on the disk, so that it goes on where it was interrupted."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crafter_pl.files import new_file


class Parts:
    """Named results in a folder, each a file written whole; those of other work are not found.

    Args:
        folder: of theirs alone; None: nothing is kept.
        start: what the work starts from.
        settings: likewise, written as text.
    """

    def __init__(self, folder: Path | None, start: Tensor | None = None, settings: object = None) -> None:
        self.folder = folder
        made_from = repr((settings, None if start is None else start.tolist()))
        self._digest = hashlib.sha256(made_from.encode()).hexdigest()[:16]

    def read(self, name: str) -> Any:  # noqa: ANN401 (tensors, and what holds them)
        """What was kept under the name; None: nothing."""
        if (file := self._file(name)) is None or not file.is_file():
            return None
        return torch.load(file, map_location="cpu", weights_only=True)

    def write(self, name: str, content: object) -> None:
        """Keep tensors, or lists and dictionaries of them."""
        if (file := self._file(name)) is not None:
            with new_file(file) as stream:
                torch.save(content, stream)

    def clear(self) -> None:
        """Remove the folder: the work is done."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{name}-{self._digest}.pt"
