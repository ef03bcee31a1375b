"""Lets attacks at sets of features: in which order, what is there already, how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.audit.cache import cache_key, load_done, reconstruct
from crafter_pl.audit.inputs import Entry
from crafter_pl.audit.verdict import title

Moment = (
    dict[str, int] | None
)  # the label of an earlier moment of an attack (`Attack.history`); None: the attack


@dataclass
class _Job:
    """One attack, at one moment of it, on one set of features; aimed."""

    attack: Attack
    entry: Entry
    moment: Moment
    features: Tensor  # (N, C, h, w), in the order in which the attack gets them
    path: Path  # of the reconstructions
    left: int  # how many are not there yet


class Attacking:
    """All reconstructions of an audit.

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
    ) -> None:
        """Fix the order."""
        self.attacks, self.entries, self.cache, self.image_shape = attacks, entries, cache, image_shape
        self.device, self.batch_size, self.seed = device, batch_size, seed
        self.count = entries[0]["features"].shape[1]
        self.order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        self.left: dict[str, int] = {}  # reconstructions that each attack has still to make
        self.seconds: dict[str, float] = {}  # that one of them takes
        self.used: set[Path] = set()

    def _jobs(self, attack: Attack) -> Iterator[_Job]:
        """What an attack has to do; each job is aimed when it is handed out, and not after the next one."""
        for entry in self.entries:
            attack.aim(entry["target"])
            moments: list[tuple[Moment, Attack]] = [(None, attack)]
            if entry["target"] is not None:
                moments += attack.history()
            for moment, one in moments:
                features = one.observe(entry["features"][:, self.order])
                key = cache_key(features, one.describe(), self.batch_size, self.seed)
                path = self.cache / f"{key}.safetensors"
                done = load_done(path, self.count)
                yield _Job(
                    one, entry, moment, features, path, self.count - (0 if done is None else len(done))
                )

    def _run(self, job: _Job, stop: int | None = None) -> Tensor:
        if job.left:
            job.attack.prepare(self.device)
        words = "" if job.moment is None else f", round {job.moment['round']}"
        name = f"{job.attack.name}{words} on {title(job.entry)}"
        return reconstruct(
            job.attack, job.features, job.path, self.image_shape, self.batch_size, self.seed, name, stop
        )

    def forecast(self) -> float:
        """Time the next batch of each attack (it is kept), on the features that come last; minutes in all.

        The unprotected features come first, and an attack that goes through the defence has it easier there.
        """
        for attack in self.attacks:
            last = None
            self.left[attack.name] = 0
            for number, job in enumerate(self._jobs(attack)):
                self.left[attack.name] += job.left
                last = number if job.left and (last is None or job.moment is None) else last
            if last is None:
                continue
            job = next(job for number, job in enumerate(self._jobs(attack)) if number == last)
            made, began = min(self.batch_size, job.left), time.monotonic()
            self._run(job, stop=self.count - job.left + made)
            self.seconds[attack.name] = (time.monotonic() - began) / made
            self.left[attack.name] -= made
        return self.minutes_left()

    def minutes_left(self) -> float:
        """What the reconstructions that are left should take; call `forecast` first."""
        return sum(count * self.seconds.get(name, 0.0) for name, count in self.left.items()) / 60

    def explain(self) -> str:
        """One line: the expected minutes, and those of each attack."""
        if not any(self.left.values()):
            return "expected: no time for attacks, all reconstructions are there"
        parts = [
            f"{name} {_minutes(count * self.seconds[name] / 60)}"
            for name, count in self.left.items()
            if count
        ]
        total = sum(self.left.values())
        return f"expected: {_minutes(self.minutes_left())} for {total} reconstructions ({', '.join(parts)})"

    def __call__(self, attack: Attack) -> Iterator[tuple[Entry, Moment, Tensor]]:
        """All reconstructions of an attack, `(N, 3, H, W)` in the order of the pictures, set by set.

        Aimed at the set that is handed out.
        """
        for job in self._jobs(attack):
            began = time.monotonic()
            made = self._run(job)
            pictures = torch.empty_like(made)
            pictures[self.order] = made
            self.used.add(job.path)
            if job.left:
                self.seconds[attack.name] = (time.monotonic() - began) / job.left
                self.left[attack.name] = max(self.left.get(attack.name, 0) - job.left, 0)
                print(f"attacks: {_minutes(self.minutes_left())} left", flush=True)
            yield job.entry, job.moment, pictures


def _minutes(value: float) -> str:
    return f"{value:.0f} min" if value >= 10 else f"{value:.1f} min"
