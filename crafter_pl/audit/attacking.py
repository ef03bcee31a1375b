"""Lets attacks at sets of features: in which order, what is there already, how long the rest will take."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.audit.cache import Reconstructions, cache_key
from crafter_pl.audit.inputs import Entry
from crafter_pl.audit.verdict import title
from crafter_pl.progress import Steps

Moment = (
    dict[str, int] | None
)  # the label of an earlier moment of an attack (`Attack.history`); None: the attack


@dataclass
class _Job:
    """One attack, at one moment of it, on one set of features; aimed."""

    attack: Attack
    entry: Entry
    moment: Moment
    made: Reconstructions

    def kind(self) -> str:
        """What its reconstructions cost alike in: an attack's moments and targets may be different work."""
        settings = json.dumps(self.attack.settings(), sort_keys=True)
        return f"{type(self.attack).__name__} {settings}"

    def name(self) -> str:
        words = "" if self.moment is None else f", round {self.moment['round']}"
        return f"{self.attack.name}{words} on {title(self.entry)}"


class Attacking:
    """All reconstructions of an audit: `run` makes them, calling it hands them out.

    Neighbours in a split are often one person. An attack must not learn that from the order, so it gets a
    shuffled one.

    Args:
        attacks: resolved, see `Attack`.
        entries: the sets of features.
        cache: folder of the reconstructions.
        image_shape: `(3, H, W)` of one.
        device: where attacks load their nets.
        batch_size: features handed over at a time.
        seed: of the order, and of attacks that draw random numbers.
        rank: of several processes that share the batches, which one this is; the first one alone speaks.
        world: how many there are.
    """

    def __init__(
        self,
        attacks: list[Attack],
        entries: list[Entry],
        cache: Path,
        image_shape: tuple[int, ...],
        device: str,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Fix the order."""
        self.attacks, self.entries, self.cache, self.image_shape = attacks, entries, cache, image_shape
        self.device, self.batch_size, self.seed, self.rank, self.world = device, batch_size, seed, rank, world
        self.count = entries[0]["features"].shape[1]
        self.order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        # By attack and kind of job: reconstructions still to make in this process, and seconds for one.
        self.left: dict[str, dict[str, int]] = {}
        self.seconds: dict[str, dict[str, float]] = {}
        self.used: set[Path] = set()

    def _jobs(self, attack: Attack) -> Iterator[_Job]:
        """What an attack has to do; each job is aimed when it is handed out, and not after the next one."""
        for entry in self.entries:
            attack.aim_at(entry["target"])
            moments: list[tuple[Moment, Attack]] = [(None, attack)]
            if entry["target"] is not None:
                moments += attack.history()
            for moment, one in moments:
                features = one.observe(entry["features"][:, self.order])
                folder = self.cache / cache_key(features, one.describe(), self.batch_size, self.seed)
                made = Reconstructions(folder, features, self.image_shape, self.batch_size, self.seed)
                yield _Job(one, entry, moment, made)

    def _mine(self, job: _Job) -> list[int]:
        """The missing batches of this process. Whose a batch is does not depend on what is there."""
        return [number for number in job.made.missing() if number % self.world == self.rank]

    def _make(self, attack: Attack, job: _Job, numbers: list[int]) -> None:
        kind, faces = job.kind(), job.made.faces(numbers)
        job.attack.prepare(self.device)
        began = time.monotonic()
        steps = Steps(job.name(), faces, unit="faces", quiet=self.rank > 0)
        try:
            job.made.make(job.attack, numbers, steps.step)
        finally:
            steps.close()
        self.seconds[attack.name][kind] = (time.monotonic() - began) / faces
        self.left[attack.name][kind] -= faces

    def forecast(self) -> str:
        """Time the next batch of each kind of work of each attack (it is kept).

        On the features that come last: the unprotected come first, and an attack that goes through the
        defence has it easier there.

        Returns:
            One line: the expected minutes, and those of each attack.
        """
        counted: set[Path] = set()  # two jobs may be one: the same attack by two names
        for attack in self.attacks:
            left: dict[str, int] = defaultdict(int)
            last: dict[str, int] = {}
            for place, job in enumerate(self._jobs(attack)):
                if job.made.folder in counted:
                    continue
                counted.add(job.made.folder)
                if mine := self._mine(job):
                    left[job.kind()] += job.made.faces(mine)
                    last[job.kind()] = place
            self.left[attack.name], self.seconds[attack.name] = left, {}
            for place, job in enumerate(self._jobs(attack)):
                if place in last.values():
                    self._make(attack, job, self._mine(job)[:1])
        if not any(count for left in self.left.values() for count in left.values()):
            return "expected: no time for attacks, all reconstructions are there"
        parts = [
            f"{name} {_minutes(self._minutes_of(name))}"
            for name, left in self.left.items()
            if any(left.values())
        ]
        shared = "" if self.world == 1 else f" by each of {self.world} processes"
        work = f"{sum(sum(left.values()) for left in self.left.values())} reconstructions{shared}"
        return (
            f"expected: {_minutes(self.minutes_left())} for {work} ({', '.join(parts)}), and then the judging"
        )

    def _minutes_of(self, name: str) -> float:
        return sum(count * self.seconds[name].get(kind, 0.0) for kind, count in self.left[name].items()) / 60

    def minutes_left(self) -> float:
        """What the reconstructions that are left should take; call `forecast` first."""
        return sum(map(self._minutes_of, self.left))

    def run(self) -> None:
        """Makes what is missing of this process's share; call `forecast` first."""
        for attack in self.attacks:
            for job in self._jobs(attack):
                if numbers := self._mine(job):
                    self._make(attack, job, numbers)
                    if self.rank == 0:
                        print(f"attacks: {_minutes(self.minutes_left())} left", flush=True)

    def __call__(self, attack: Attack) -> Iterator[tuple[Entry, Moment, Tensor]]:
        """All reconstructions of an attack, `(N, 3, H, W)` in the order of the pictures, set by set.

        Aimed at the set that is handed out; when all processes have `run`.
        """
        for job in self._jobs(attack):
            made = job.made.read()
            pictures = torch.empty_like(made)
            pictures[self.order] = made
            self.used.add(job.made.folder)
            yield job.entry, job.moment, pictures


def _minutes(value: float) -> str:
    return f"{value:.0f} min" if value >= 10 else f"{value:.1f} min"
