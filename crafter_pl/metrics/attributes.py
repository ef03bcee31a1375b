"""Utility: the area under the ROC curve of each attribute."""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from crafter_pl.metrics.collected import Collected


def attribute_auc(
    scores: ArrayLike, targets: ArrayLike, weights: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Area under the ROC curve of each attribute; NaN for one that has a single class.

    It is the weighted share of (positive, negative) pairs that are in the right order, ties counting half.
    After one sort an attribute, a cumulative sum of the negatives' weights gives it for all weightings.

    Args:
        scores: ``(N, A)``, such as logits: only their order counts.
        targets: ``(N, A)`` 0 or 1.
        weights: ``(B, N)``, at least 0: how often each sample counts, in each of ``B`` weightings.

    Returns:
        ``(A,)`` in [0, 1]; with weights ``(B, A)``.
    """
    scores, positive = np.asarray(scores), np.asarray(targets) > 0.5
    drawn = np.ones((1, len(scores))) if weights is None else np.asarray(weights, dtype=np.float64)
    found = np.stack([_auc(scores[:, a], positive[:, a], drawn) for a in range(scores.shape[1])], axis=1)
    return found[0] if weights is None else found


def _auc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """One attribute's, ``(B,)``."""
    order = np.argsort(scores[~positive], kind="stable")
    ranked = scores[~positive][order]
    # Among the sorted negatives: how many lie below each positive, and how many not above it.
    below, upto = (np.searchsorted(ranked, scores[positive], side=side) for side in ("left", "right"))
    mass = np.zeros((len(weights), len(ranked) + 1))
    np.cumsum(weights[:, ~positive][:, order], axis=1, out=mass[:, 1:])
    own = weights[:, positive]
    pairs = np.einsum("bi,bi->b", own, mass[:, below] + mass[:, upto]) / 2
    total = own.sum(axis=1) * mass[:, -1]
    return np.divide(pairs, total, out=np.full(len(weights), np.nan), where=total > 0)


class AttributeAUC(Collected):
    """Mean AUC over the attributes that have both classes among what was seen; 0.5 where none has."""

    parts = ("scores", "targets")  # both (N, A)

    def compute(self) -> Tensor:
        """Scalar in [0, 1], float32."""
        found = attribute_auc(*(part.numpy() for part in self.seen))
        return torch.tensor(np.nanmean(found) if np.isfinite(found).any() else 0.5, dtype=torch.float32)
