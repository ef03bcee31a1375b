"""Averaging over queries (the paper's A3): noise that is drawn anew for every query cancels."""

import copy
from typing import Any

from torch import Tensor

from crafter_pl.attacks.base import Attack, Target
from crafter_pl.attacks.white_box import WhiteBoxAttack


class AveragedAttack(Attack):
    """Inverts the mean of several protected features of a face; another attack does the inversion.

    It gains on a defence that draws random numbers for every query. A defence whose features depend on the
    picture alone (Crafter with a fixed critic) answers all queries alike, and this is the plain inversion; so
    it is where there is one query, as for unprotected features.

    Args:
        base: the attack that inverts the mean, also one that adapts; null is `WhiteBoxAttack` as it is.
        name: how the report calls it.
    """

    def __init__(self, base: Attack | None = None, name: str = "averaged") -> None:
        self.base = WhiteBoxAttack() if base is None else base
        self.kind = type(self.base)
        self.name = name
        self.checkpoints = self.base.checkpoints
        self.adaptive = self.base.adaptive

    def observe(self, queries: Tensor) -> Tensor:
        """The mean of several features of each face: ``(K, N, C, h, w)`` -> ``(N, C, h, w)``."""
        return queries.mean(0)

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
        return {"base": {"class": self.kind.__name__, "version": self.kind.version, **self.base.settings()}}
