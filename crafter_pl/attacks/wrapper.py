"""Attacks that do something to the features and leave the inversion to another attack."""

from __future__ import annotations

import copy
from abc import abstractmethod
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
        self.kind = type(self.base)
        self.name = name
        self.checkpoints = self.base.checkpoints
        self.adaptive = self.adaptive or self.base.adaptive

    @abstractmethod
    def observe(self, queries: Tensor) -> Tensor:
        """What the attack that inverts gets of several queries of each face, ``(K, N, C, h, w)``."""

    def aim(self, target: Target | None) -> None:
        """Binds the attack that inverts, too."""
        assert self.commands is not None
        super().aim(target)
        self.base = self.base.against(target, self.commands, self.among)
        self.checkpoints = self.base.checkpoints

    def prepare(self, device: str) -> None:
        """Loads the nets of the attack that inverts."""
        self.base = copy.copy(self.base)  # a copy of this one loads nets of its own
        self.base.prepare(device)

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> pictures in [0, 1], as the attack that inverts makes them."""
        return self.base.reconstruct(features)

    def settings(self) -> dict[str, Any]:
        """Those of the attack that inverts, with its class and version."""
        own = {"class": self.kind.__name__, "version": self.kind.version}
        return {"base": {**own, **self.base.settings()}}
