"""Verification: would a face matcher take a reconstruction for another picture of the same person?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crafter_pl.audit.bootstrap import Figure, IdentityBootstrap, figure

FAR = 0.01
_FIRST_TRY = 4  # times the false accepts: how many of the most similar impostor pairs are looked at first
_CHUNK = 4_000_000  # weights held at once: resamples x pairs, about 32 MB in float64


def tar_at_far(
    reconstructions: Tensor, originals: Tensor, boot: IdentityBootstrap, far: float = FAR
) -> Figure | None:
    """True accept rate at a fixed false accept rate, over all pairs of a reconstruction and an original.

    A pair is genuine if the original is *another* picture of the same person, as a matcher would have it on
    file, and an impostor pair if it shows somebody else; a reconstruction with its own original is neither.
    The threshold is the lowest score above which at most ``far`` of the impostor pairs lie, so a matcher that
    sees nothing has a rate of about ``far``. In each resample of people the threshold is set anew; a pair
    weighs as often as its people were drawn.

    Args:
        reconstructions: unit embeddings ``(N, E)``.
        originals: unit embeddings ``(N, E)`` of the same pictures in the same order.
        boot: the resamples of the ``N`` pictures' people.
        far: the false accept rate, in (0, 1).

    Returns:
        The rate with its interval; None if nobody has two pictures or there is but one person.
    """
    scores = (reconstructions @ originals.T).double().numpy()
    group = boot.group
    same = group[:, None] == group[None, :]
    genuine = same & ~np.eye(len(group), dtype=bool)
    if not genuine.any() or same.all():
        return None
    weights = np.concatenate([np.ones((1, boot.people)), boot.weights])
    first, second = np.nonzero(~same)
    thresholds = _thresholds(
        scores[first, second], group[first], group[second], weights, np.bincount(group), far
    )
    first, second = np.nonzero(genuine)
    accepted = np.sort(scores[first, second])  # a person's pairs are counted by ranks, not pair by pair
    order, person = np.argsort(scores[first, second]), group[first]
    step = max(1, _CHUNK // len(accepted))
    rates = np.empty(len(weights))
    for start in range(0, len(weights), step):
        rows = weights[start : start + step]
        mass = np.zeros((len(rows), len(accepted) + 1))
        np.cumsum(rows[:, person[order]], axis=1, out=mass[:, 1:])
        below = np.searchsorted(accepted, thresholds[start : start + step], side="right")
        with np.errstate(invalid="ignore", divide="ignore"):
            rates[start : start + step] = 1 - mass[np.arange(len(rows)), below] / mass[:, -1]
    rates[np.isnan(thresholds)] = np.nan
    return figure(rates[0], rates[1:])


def _thresholds(
    scores: NDArray[np.float64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    weights: NDArray[np.float64],
    pictures: NDArray[np.int64],
    far: float,
) -> NDArray[np.float64]:
    """The threshold of every resample ``(B,)``; NaN where one person alone was drawn.

    Only the most similar pairs decide: so few are looked at first, and more where those do not reach.
    """
    drawn = weights @ pictures
    allowed = far * (drawn**2 - weights**2 @ pictures.astype(float) ** 2)
    kept, found = min(len(scores), int(_FIRST_TRY * far * len(scores)) + 1), np.empty(len(weights))
    todo = np.arange(len(weights))
    while len(todo):
        top = np.argpartition(-scores, kept - 1)[:kept]
        top = top[np.argsort(-scores[top], kind="stable")]
        step, late = max(1, _CHUNK // kept), []
        for start in range(0, len(todo), step):
            rows = todo[start : start + step]
            mass = np.cumsum(weights[rows][:, first[top]] * weights[rows][:, second[top]], axis=1)
            above = (mass <= allowed[rows, None] * (1 + 1e-9)).sum(axis=1)
            reached = above < kept
            found[rows[reached]] = scores[top][above[reached]]
            late.append(rows[~reached])
        todo = np.concatenate(late)
        if kept == len(scores):
            found[todo] = np.nan  # no impostor pair has any weight
            break
        kept = min(len(scores), 4 * kept)
    return found
