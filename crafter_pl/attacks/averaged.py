"""Averaging over queries (the paper's A3): noise that is drawn anew for every query cancels."""

from __future__ import annotations

from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.attacks.wrapper import Wrapper


class AveragedAttack(Wrapper):
    """Inverts the mean of several protected features of a face.

    It gains on a defence that draws random numbers for every query. A defence whose features depend on the
    picture alone (Crafter with a fixed critic) answers all queries alike, and this is the plain inversion; so
    it is where there is one query, as for unprotected features.

    Args:
        base: the attack that inverts the mean, also one that adapts; null is `WhiteBoxAttack` as it is.
        name: how the report calls it.
    """

    version = 1

    def __init__(self, base: Attack | None = None, name: str = "averaged") -> None:
        super().__init__(base, name)

    def observe(self, queries: Tensor) -> Tensor:
        """The mean of several features of each face: ``(K, N, C, h, w)`` -> ``(N, C, h, w)``."""
        return queries.mean(0)
