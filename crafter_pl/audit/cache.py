"""Reconstructions, made once: an audit that was interrupted goes on where it stopped.

An attack may take hours. What it has made is kept in `out/cache`, a file a batch, in a folder named by a hash
of everything that it depends on: the bytes of the features, the attack's version and settings, the
SHA-256 of its checkpoints. Batches do not depend on each other, so any number of processes may share them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.errors import UserError
from crafter_pl.files import write_file


def cache_key(features: Tensor, description: dict[str, object], batch_size: int, seed: int) -> str:
    """32 hexadecimal digits that change with anything that a reconstruction depends on.

    Args:
        features: `(N, C, h, w)`.
        description: `Attack.describe()`: class, version, settings, hashes of the checkpoints. The name does
            not count: two attacks that differ in nothing else share their reconstructions.
        batch_size: how many features the attack is handed at a time.
        seed: what the global random numbers are seeded with before each batch.
    """
    digest = hashlib.sha256(features.contiguous().numpy().tobytes())
    matters = {key: value for key, value in description.items() if key != "name"}
    rest = [list(features.shape), str(features.dtype), matters, batch_size, seed]
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Reconstructions:
    """What one attack makes of one set of features: a folder with a file a batch.

    Attributes:
        folder: of the files, see `cache_key`.
        features: `(N, C, h, w)`: all that the attack is given.
        image_shape: `(3, H, W)` of a reconstruction.
        batch_size: features handed over at a time.
        seed: see `cache_key`.
    """

    folder: Path
    features: Tensor
    image_shape: tuple[int, ...]
    batch_size: int
    seed: int

    @property
    def batches(self) -> tuple[Tensor, ...]:
        """The features, batch by batch."""
        return self.features.split(self.batch_size)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def _read(self, number: int) -> Tensor | None:
        try:
            images = load_file(self._file(number))["images"]
        except (OSError, SafetensorError, KeyError):
            return None
        return images if images.shape == (len(self.batches[number]), *self.image_shape) else None

    def missing(self) -> list[int]:
        """Numbers of the batches that are not there yet, or damaged."""
        return [number for number in range(len(self.batches)) if self._read(number) is None]

    def faces(self, numbers: list[int]) -> int:
        """How many faces are in these batches."""
        return sum(len(self.batches[number]) for number in numbers)

    def read(self) -> Tensor:
        """All of them, `(N, 3, H, W)` in [0, 1].

        Raises:
            UserError: what another process was to make is not there.
        """
        parts = [self._read(number) for number in range(len(self.batches))]
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            raise UserError(
                f"{self.folder} lacks {len(parts) - len(there)} of {len(parts)} files: is it one file system "
                "for all processes? The same command goes on"
            )
        return torch.cat(there)

    def make(self, attack: Attack, numbers: list[int], done: Callable[[int], None]) -> None:
        """Lets an attack that is prepared at some of the batches.

        Random numbers are seeded anew for each batch, so that its pictures do not depend on who makes them
        and when.

        Args:
            attack: aimed and prepared.
            numbers: of the batches.
            done: told after each batch how many faces it had.

        Raises:
            ValueError: if the attack breaks its contract (shape, finite, range).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            batch = self.batches[number]
            with torch.random.fork_rng():
                torch.manual_seed(self.seed + number * self.batch_size)
                images = attack.reconstruct(batch).detach().float().cpu()
            if images.shape != (len(batch), *self.image_shape):
                shapes = f"{tuple(images.shape)}, expected {(len(batch), *self.image_shape)}"
                raise ValueError(f"attack {attack.name} returned {shapes}")
            if not bool(torch.isfinite(images).all()) or images.min() < -1e-3 or images.max() > 1 + 1e-3:
                raise ValueError(f"attack {attack.name} returned pictures outside [0, 1]")
            write_file(self._file(number), save({"images": images.clamp(0, 1).contiguous()}))
            done(len(batch))


def remove_unused(folder: Path, used: set[Path]) -> None:
    """Delete reconstructions that the finished report is not made of: they are private pictures, too."""
    for path in folder.iterdir():
        if path.suffix == ".safetensors":  # of an earlier version
            path.unlink()
        elif re.fullmatch("[0-9a-f]{32}", path.name) and path not in used:  # see `cache_key`
            shutil.rmtree(path)
