"""Attacks that do something to the features and leave the inversion to another attack."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from torch import Tensor

from crafter_pl.attacks.base import Attack, Target
from crafter_pl.attacks.white_box import WhiteBoxAttack


class Wrapper(Attack):
    """Holds the attack that inverts, and hands it what it needs.

    Args:
        base: the attack that inverts features; null is `WhiteBoxAttack` with its defaults.
        name: how the report calls it.
    """

    def __init__(self, base: Attack | None, name: str) -> None:
        self.base = WhiteBoxAttack() if base is None else base
        self.name = name
        self.checkpoints = self.base.checkpoints
        self.adaptive = self.adaptive or self.base.adaptive

    @abstractmethod
    def observe(self, queries: Tensor) -> Tensor:
        """What the attack that inverts gets of several queries of each face, ``(K, N, C, h, w)``."""

    def aim(self, target: Target | None) -> None:
        """Tells the attack that inverts, too."""
        self.target = target
        self.base.aim(target)
        self.checkpoints = self.base.checkpoints

    def resolve(self, experiment_dir: str | Path) -> None:
        """Finds the checkpoints of the attack that inverts."""
        self.base.commands = self.commands
        self.base.resolve(experiment_dir)

    def prepare(self, device: str) -> None:
        """Loads the nets of the attack that inverts."""
        self.base.prepare(device)

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> pictures in [0, 1], as the attack that inverts makes them."""
        return self.base.reconstruct(features)

    def settings(self) -> dict[str, Any]:
        """Those of the attack that inverts, with its class and version."""
        base = self.base
        return {"base": {"class": type(base).__name__, "version": base.version, **base.settings()}}
