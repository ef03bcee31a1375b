"""95 % percentile bootstrap over identities.

Pictures of one person are not independent: a face that is easy to invert is easy in all its pictures. So
whole people are drawn with replacement, and all pictures of a drawn person come along.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Figure = dict[str, Any]  # {"value": float, "ci95": [low, high]}
_CHUNK = 4_000_000  # weights held at once: resamples x pictures, about 32 MB in float64


class IdentityBootstrap:
    """The same resamples of people for every figure of an audit, so that differences are paired.

    Args:
        identity: `(N,)` person of each picture; any integers.
        resamples: number of bootstrap resamples, at least 1.
        seed: resamples depend on it, on `resamples` and on the number of people only.

    Raises:
        ValueError: without pictures or without resamples.
    """

    def __init__(self, identity: ArrayLike, resamples: int = 1000, seed: int = 0) -> None:
        """Draw the resamples."""
        people, self.group = np.unique(np.asarray(identity), return_inverse=True)
        if people.size == 0 or resamples < 1:
            raise ValueError(f"a bootstrap needs people and resamples, got {people.size} and {resamples}")
        self.people = int(people.size)
        draws = np.random.default_rng(seed).multinomial(
            self.people, np.full(self.people, 1 / self.people), resamples
        )
        self.weights: NDArray[np.float64] = draws.astype(
            np.float64
        )  # (B, P): how often each person was drawn

    def part(self, mask: NDArray[np.bool_]) -> IdentityBootstrap:
        """The same resamples of the same people, of the pictures in `mask` `(N,)` alone.

        Figures of several parts are paired. A resample that holds no picture of the part has no figure.
        """
        part = copy.copy(self)
        part.group = self.group[mask]
        return part

    def mean_replicates(self, values: ArrayLike) -> NDArray[np.float64]:
        """Mean of per-picture `values` `(N,)` in every resample: `(B,)`, NaN in one without a picture."""
        values = np.asarray(values, dtype=np.float64)
        total = np.bincount(self.group, weights=values, minlength=self.people)
        count = np.bincount(self.group, minlength=self.people)
        drawn = self.weights @ count
        with np.errstate(invalid="ignore"):
            means: NDArray[np.float64] = np.where(drawn > 0, (self.weights @ total) / drawn, np.nan)
        return means

    def auc_replicates(self, scores: ArrayLike, targets: ArrayLike) -> NDArray[np.float64]:
        """AUC of each attribute in every resample: `(B, A)`, NaN where a resample has one class only.

        The AUC is the weighted share of (positive, negative) pairs in the right order, ties counting half.
        After one sort an attribute, a cumulative sum of the negatives' weights gives it for all resamples at
        once.

        Args:
            scores: `(N, A)`.
            targets: `(N, A)` 0 or 1.
        """
        scores, targets = np.asarray(scores), np.asarray(targets) > 0.5
        resamples, pictures = self.weights.shape[0], self.group.size
        result = np.empty((resamples, scores.shape[1]))
        step = max(1, _CHUNK // max(pictures, 1))
        for column in range(scores.shape[1]):
            order = np.argsort(scores[:, column], kind="stable")
            ranked, positive = scores[order, column], targets[order, column]
            negatives, positives = order[~positive], order[positive]
            # among the sorted negatives: how many lie below each positive, and how many not above it
            below = np.searchsorted(ranked[~positive], ranked[positive], side="left")
            upto = np.searchsorted(ranked[~positive], ranked[positive], side="right")
            for start in range(0, resamples, step):
                rows = self.weights[start : start + step]
                mass = np.zeros((rows.shape[0], negatives.size + 1))
                np.cumsum(rows[:, self.group[negatives]], axis=1, out=mass[:, 1:])
                weight = rows[:, self.group[positives]]
                pairs = np.einsum("bi,bi->b", weight, mass[:, below] + mass[:, upto]) / 2
                total = weight.sum(axis=1) * mass[:, -1]
                with np.errstate(invalid="ignore", divide="ignore"):
                    result[start : start + step, column] = np.where(total > 0, pairs / total, np.nan)
        return result

    def mean(self, values: ArrayLike, tries: int = 1) -> Figure:
        """Mean of per-picture `values` `(N,)` with its interval, see `figure`."""
        return figure(float(np.asarray(values, dtype=np.float64).mean()), self.mean_replicates(values), tries)


def figure(value: float, replicates: NDArray[np.float64], tries: int = 1) -> Figure:
    """A value with the 2.5 % and 97.5 % percentiles of its replicates `(B,)`, the undefined ones left out.

    With `tries` above 1 the interval covers the best of so many figures together (Bonferroni): 2.5 % are
    divided by them.

    Raises:
        ValueError: if no replicate is defined.
    """
    defined = replicates[~np.isnan(replicates)]
    if defined.size == 0:
        raise ValueError("the figure is undefined in every bootstrap resample")
    low, high = np.percentile(defined, [2.5 / tries, 100 - 2.5 / tries])
    return {"value": float(value), "ci95": [float(low), float(high)]}


def row_means(replicates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over attributes `(B, A) -> (B,)`, in each resample over the attributes that are defined in it."""
    defined = ~np.isnan(replicates)
    count = defined.sum(axis=1)
    total = np.where(defined, replicates, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
