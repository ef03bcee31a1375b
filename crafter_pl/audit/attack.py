"""From attacks and sets of features to reconstructions, made once: an interrupted audit goes on.

An attack may take hours. What it has made is kept in `out/cache`, a file a batch, in a folder named by a hash
of everything that it depends on: the bytes of the features, the attack's version and settings, the
SHA-256 of its checkpoints. Batches do not depend on each other, so any number of processes may share them.
"""

import copy
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.audit.bind import Moment
from crafter_pl.audit.features import Loaded
from crafter_pl.audit.options import Options
from crafter_pl.errors import UserError
from crafter_pl.files import write_file
from crafter_pl.progress import Steps


@dataclass(frozen=True)
class Job:
    """One attack, at one moment of it, on one set of features: its reconstructions, a file a batch.

    Attributes:
        name: of the attack.
        attack: bound to these features.
        loaded: the features.
        moment: None: the attack at its end.
        asked: how many features are handed over at a time, in what order, and where what is made is kept.
        device: where the attack loads its nets.
    """

    name: str
    attack: Attack
    loaded: Loaded
    moment: Moment
    asked: Options
    device: str

    @property
    def order(self) -> Tensor:
        """A shuffled order of the faces.

        Neighbours in a split are often one person, which an attack must not learn.
        """
        count = self.loaded.queries.shape[1]
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.asked.seed))

    @property
    def features(self) -> Tensor:
        """All that the attack is given, `(N, C, h, w)`."""
        return self.attack.observe(self.loaded.queries[:, self.order])

    @cached_property
    def folder(self) -> Path:
        """Of the files, named by a hash of all that they depend on.

        The attack's name does not count: two attacks that differ in nothing else share what they make.
        """
        features, asked = self.features, self.asked
        digest = hashlib.sha256(features.contiguous().numpy().tobytes())
        matters = {key: value for key, value in self.attack.describe().items() if key != "name"}
        rest = [list(features.shape), str(features.dtype), matters, asked.batch_size, asked.seed]
        digest.update(json.dumps(rest, sort_keys=True).encode())
        return asked.cache / digest.hexdigest()[:32]

    @property
    def kind(self) -> tuple[str, str]:
        """What its reconstructions cost alike in: an attack's moments and targets may be different work."""
        return self.name, type(self.attack).__name__ + json.dumps(self.attack.settings(), sort_keys=True)

    @property
    def sizes(self) -> list[int]:
        """How many faces each batch has."""
        return [len(part) for part in self.order.split(self.asked.batch_size)]

    def _shape(self, count: int) -> tuple[int, ...]:
        """Of so many reconstructions."""
        return (count, 3, self.asked.data.image_size, self.asked.data.image_size)

    def _read(self) -> list[Tensor | None]:
        """The batches; None for one that is not there yet, or damaged."""
        found: list[Tensor | None] = []
        for number, size in enumerate(self.sizes):
            try:
                images = load_file(self.folder / f"{number:05d}.safetensors")["images"]
            except (OSError, SafetensorError, KeyError):
                images = torch.empty(0)
            found.append(images if images.shape == self._shape(size) else None)
        return found

    def missing(self) -> list[int]:
        """Numbers of the batches that are not there yet, or damaged."""
        return [number for number, images in enumerate(self._read()) if images is None]

    def pictures(self) -> Tensor:
        """All reconstructions, `(N, 3, H, W)` in [0, 1], in the order of the originals.

        Raises:
            UserError: what another process was to make is not there.
        """
        parts = self._read()
        there = [part for part in parts if part is not None]
        if len(there) < len(parts):
            raise UserError(
                f"{self.folder} lacks {len(parts) - len(there)} of {len(parts)} files: is it one file system "
                "for all processes? The same command goes on"
            )
        return torch.cat(there)[self.order.argsort()]

    def make(self, numbers: Sequence[int], done: Callable[[int], None]) -> None:
        """Lets the attack at some of the batches.

        Random numbers are seeded anew for each batch, so that its pictures do not depend on who makes them
        and when.

        Args:
            numbers: of the batches.
            done: told after each batch how many faces it had.

        Raises:
            ValueError: if the attack breaks its contract (shape, finite, range).
        """
        attack, parts = copy.copy(self.attack), self.features.split(self.asked.batch_size)
        attack.prepare(self.device)  # on a copy: its nets are let go with it
        for number in numbers:
            with torch.random.fork_rng():
                torch.manual_seed(self.asked.seed + number * self.asked.batch_size)
                images = attack.reconstruct(parts[number]).detach().float().cpu()
            expected = self._shape(len(parts[number]))
            if images.shape != expected:
                raise ValueError(f"attack {self.name} returned {tuple(images.shape)}, expected {expected}")
            if not bool(torch.isfinite(images).all()) or images.min() < -1e-3 or images.max() > 1 + 1e-3:
                raise ValueError(f"attack {self.name} returned pictures outside [0, 1]")
            write_file(
                self.folder / f"{number:05d}.safetensors", save({"images": images.clamp(0, 1).contiguous()})
            )
            done(len(images))


class Work:
    """This process's share of all jobs: `forecast` times it, `run` does it.

    Args:
        jobs: of all attacks, in order.
        rank: of several processes that share the batches, which one this is; the first one alone speaks.
        world: how many there are.
    """

    def __init__(self, jobs: Sequence[Job], rank: int = 0, world: int = 1) -> None:
        """Take note."""
        self.jobs, self.rank, self.world = jobs, rank, world
        # By attack and kind of job: reconstructions still to make in this process, and seconds for one.
        self.left: dict[tuple[str, str], int] = {}
        self.seconds: dict[tuple[str, str], float] = {}

    def _mine(self, job: Job) -> list[int]:
        """The missing batches of this process. Whose a batch is does not depend on what is there."""
        return [number for number in job.missing() if number % self.world == self.rank]

    def _make(self, job: Job, numbers: Sequence[int]) -> None:
        words = "" if job.moment is None else f", round {job.moment['round']}"
        faces, began = sum(job.sizes[number] for number in numbers), time.monotonic()
        title = f"{job.name}{words} on {job.loaded.about.title}"
        with closing(Steps(title, faces, unit="faces", quiet=self.rank > 0)) as steps:
            job.make(numbers, steps.step)
        self.seconds[job.kind] = (time.monotonic() - began) / faces
        self.left[job.kind] -= faces

    def forecast(self) -> str:
        """Time the next batch of each kind of work of each attack (it is kept).

        On the features that come last: the unprotected come first, and an attack that goes through the
        defence has it easier there.

        Returns:
            One line: the expected minutes, and those of each attack.
        """
        once: dict[Path, Job] = {}  # two jobs may be one, by two names
        last: dict[tuple[str, str], Job] = {}
        for job in self.jobs:
            if once.setdefault(job.folder, job) is job and (mine := self._mine(job)):
                self.left[job.kind] = self.left.get(job.kind, 0) + sum(job.sizes[number] for number in mine)
                last[job.kind] = job
        for job in last.values():
            self._make(job, self._mine(job)[:1])
        if not (left := sum(self.left.values())):
            return "expected: no time for attacks, all reconstructions are there"
        names = dict.fromkeys(name for (name, _), count in self.left.items() if count)
        parts = ", ".join(f"{name} {self._minutes(name)}" for name in names)
        count = f"{left} reconstructions" + f" by each of {self.world} processes" * (self.world > 1)
        return f"expected: {self._minutes()} for {count} ({parts}), and then the judging"

    def _minutes(self, name: str | None = None) -> str:
        """How long the reconstructions that are left, of one attack or all, should take."""
        kinds = [kind for kind in self.left if name in (None, kind[0])]
        minutes = sum(self.left[kind] * self.seconds[kind] for kind in kinds) / 60
        return f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.1f} min"

    def run(self) -> None:
        """Makes what is missing of this process's share; after `forecast`."""
        for job in self.jobs:
            if numbers := self._mine(job):
                self._make(job, numbers)
                if self.rank == 0:
                    print(f"attacks: {self._minutes()} left", flush=True)


def remove_unused(folder: Path, used: set[Path | None]) -> None:
    """Delete reconstructions and embeddings that the report is not made of: they are private, too."""
    for path in folder.iterdir():
        if path.suffix == ".safetensors" or (path.suffix == ".embedded" and path not in used):
            path.unlink()  # the first kind is of an earlier version
        elif re.fullmatch("[0-9a-f]{32}", path.name) and path not in used:  # see `Job.folder`
            shutil.rmtree(path)
