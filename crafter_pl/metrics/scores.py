"""How good classes and values are: figures that are no mean over pictures, for many weightings at once."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def macro_f1(said: NDArray[np.int64], true: NDArray[np.int64], weights: Floats) -> Floats:
    """Mean over classes of ``2 tp / (said + true)``; classes that are neither said nor true do not count.

    Args:
        said: class of each sample ``(N,)``.
        true: likewise.
        weights: how often each sample counts, in each of ``B`` weightings ``(B, N)``.

    Returns:
        ``(B,)`` in [0, 1]; NaN where nothing counts.
    """
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for one in np.union1d(said, true):
        right = weights @ ((said == one) & (true == one))
        both = weights @ (said == one) + weights @ (true == one)
        total += np.divide(2 * right, both, out=np.zeros_like(both), where=both > 0)
        classes += both > 0
    return np.divide(total, classes, out=np.full(len(weights), np.nan), where=classes > 0)


def r2(said: Floats, true: Floats, weights: Floats) -> Floats:
    """``1 - squared error / squared distance from the mean``, the mean over the values.

    Args:
        said: ``(N, K)``.
        true: likewise.
        weights: how often each sample counts, in each of ``B`` weightings ``(B, N)``.

    Returns:
        ``(B,)``, at most 1; NaN where some value never differs.
    """
    error = weights @ np.square(said - true)
    centre = true.mean(0)  # squares of large values would cancel
    count, off = weights.sum(1, keepdims=True), weights @ (true - centre)
    nothing = np.full_like(off, np.nan)
    means = np.divide(off, count, out=nothing.copy(), where=count > 0)
    spread = weights @ np.square(true - centre) - off * means
    tiny = 1e-12 * np.maximum(1.0, np.square(true - centre).sum(0))
    return (1 - np.divide(error, spread, out=nothing, where=spread > tiny)).mean(1)
