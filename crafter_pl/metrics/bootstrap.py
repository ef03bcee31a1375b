"""95 % percentile bootstrap over identities.

Pictures of one person are not independent: a face that is easy to invert is easy in all its pictures. So
whole people are drawn with replacement, and all pictures of a drawn person come along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crafter_pl.metrics.attributes import attribute_auc
from crafter_pl.metrics.identity import FAR, Floats, equal_error_rate, tar_at_far

CHUNK = 4_000_000  # weights held at once: resamples x pictures, about 32 MB in float64


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Bootstrapped:
    """A figure, and what it is in every resample.

    Attributes:
        value: over all pictures.
        replicates: ``(B,)``; NaN where the resample does not define it.
    """

    value: float
    replicates: Floats

    def __sub__(self, other: Bootstrapped) -> Bootstrapped:
        """The difference, paired over the resamples."""
        return Bootstrapped(self.value - other.value, self.replicates - other.replicates)

    def estimate(self, tries: int = 1) -> Estimate:
        """The figure with the 2.5 % and 97.5 % percentiles of its replicates, undefined ones left out.

        With ``tries`` above 1 the interval covers the best of so many figures together (Bonferroni): 2.5 %
        are divided by them.

        Raises:
            ValueError: if no replicate is defined.
        """
        defined = self.replicates[~np.isnan(self.replicates)]
        if defined.size == 0:
            raise ValueError("the figure is undefined in every bootstrap resample")
        low, high = np.percentile(defined, [2.5 / tries, 100 - 2.5 / tries])
        return Estimate(float(self.value), float(low), float(high))


class IdentityBootstrap:
    """The same resamples of people for every figure, so that differences are paired.

    Args:
        identity: ``(N,)`` person of each picture; any integers.
        resamples: ``B``, at least 1.
        seed: resamples depend on it, on ``resamples`` and on the number of people only.

    Attributes:
        people: how many there are, ``P``.
        group: ``(N,)``, the place of each picture's person among them.
        weights: ``(B, P)``, how often each person was drawn.

    Raises:
        ValueError: without pictures or without resamples.
    """

    def __init__(self, identity: ArrayLike, resamples: int = 1000, seed: int = 0) -> None:
        """Draw the resamples."""
        people, self.group = np.unique(np.asarray(identity), return_inverse=True)
        if people.size == 0 or resamples < 1:
            raise ValueError(f"a bootstrap needs people and resamples, got {people.size} and {resamples}")
        self.people = int(people.size)
        shares = np.full(self.people, 1 / self.people)
        draws = np.random.default_rng(seed).multinomial(self.people, shares, resamples)
        self.weights: Floats = draws.astype(np.float64)

    def part(self, mask: NDArray[np.bool_]) -> IdentityBootstrap:
        """The same resamples of the same people, of the pictures in ``mask`` ``(N,)`` alone.

        Figures of several parts are paired. A resample that holds no picture of the part has no figure.
        """
        part = copy.copy(self)
        part.group = self.group[mask]
        return part

    def mean(self, values: ArrayLike) -> Bootstrapped:
        """Mean of per-picture values ``(N,)``."""
        values = np.asarray(values, dtype=np.float64)
        total = np.bincount(self.group, weights=values, minlength=self.people)
        drawn = self.weights @ np.bincount(self.group, minlength=self.people)
        empty = np.full(len(drawn), np.nan)
        return Bootstrapped(
            float(values.mean()), np.divide(self.weights @ total, drawn, out=empty, where=drawn > 0)
        )

    def figure(self, of: Callable[[Floats], Floats]) -> Bootstrapped:
        """A figure that is no mean over pictures.

        Args:
            of: from how often each picture counts, in several weightings ``(B, N)``, to the figure, ``(B,)``.
        """
        step = max(1, CHUNK // max(self.group.size, 1))
        parts = (self.weights[start : start + step] for start in range(0, len(self.weights), step))
        replicates = np.concatenate([of(part[:, self.group]) for part in parts])
        return Bootstrapped(float(of(np.ones((1, self.group.size)))[0]), replicates)

    def auc(self, scores: ArrayLike, targets: ArrayLike) -> list[Bootstrapped]:
        """AUC of each attribute, see `attribute_auc`; NaN where there is one class only.

        Args:
            scores: ``(N, A)``.
            targets: ``(N, A)`` 0 or 1.
        """
        values, step = attribute_auc(scores, targets), max(1, CHUNK // max(self.group.size, 1))
        parts = (self.weights[start : start + step] for start in range(0, len(self.weights), step))
        found = np.concatenate([attribute_auc(scores, targets, part[:, self.group]) for part in parts])
        return [Bootstrapped(float(value), own) for value, own in zip(values, found.T, strict=True)]

    def tar(
        self, scores: ArrayLike, far: float = FAR, enrolled: ArrayLike | None = None
    ) -> Bootstrapped | None:
        """True accept rate at a fixed false accept rate, see `tar_at_far`.

        Args:
            scores: ``(N, N)``, or ``(N, M)``.
            far: the false accept rate.
            enrolled: ``(M,)``, places among the people, as in ``group``, of the columns; less than 0: nobody.
        """
        return self._of(lambda weights: tar_at_far(scores, self.group, far, weights, enrolled))

    def eer(self, scores: ArrayLike) -> Bootstrapped | None:
        """Equal error rate of scores ``(N, N)``, see `equal_error_rate`."""
        return self._of(lambda weights: equal_error_rate(scores, self.group, weights))

    def _of(self, rates: Callable[[Floats], Floats | None]) -> Bootstrapped | None:
        found = rates(np.concatenate([np.ones((1, self.people)), self.weights]))
        return None if found is None else Bootstrapped(float(found[0]), found[1:])


def mean_of(parts: list[Bootstrapped]) -> Bootstrapped:
    """The mean of figures; in each resample over those that are defined in it."""
    replicates = np.stack([part.replicates for part in parts])
    count = (~np.isnan(replicates)).sum(axis=0)
    means = np.divide(np.nansum(replicates, axis=0), count, out=np.full(len(count), np.nan), where=count > 0)
    return Bootstrapped(sum(part.value for part in parts) / len(parts), means)
