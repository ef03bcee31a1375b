"""Comparing results that are computed in floating point, on any processor."""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor


def rounding(like: Tensor, steps: int = 1, at_least: float = 0.0) -> float:
    """What rounding may do to values as large as these after some steps, on any processor.

    A step (a net's forward pass, an optimiser's update) adds up hundreds of terms in some order, layer after
    layer: a hundred units in the last place of the largest value are allowed for it; a hundred thousand in
    float64, where there is room for sums that cancel. Where they do in float32, what they sum up is of a size
    of its own: ``at_least``.
    """
    scale = max(like.abs().max().item() if like.numel() else 0.0, at_least)
    units = 1e5 if like.dtype == torch.float64 else 100
    return units * steps * torch.finfo(like.dtype).eps * scale


def near(found: Tensor, expected: Tensor, steps: int = 1, at_least: float = 0.0) -> bool:
    """Whether two results differ by rounding alone; the coarser of their types counts."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    coarse = max((found.dtype, expected.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    size = expected.detach().to(coarse)
    return bool((found.double() - expected.double()).abs().max() <= rounding(size, steps, at_least))


def mean_auc(scores: Tensor, targets: Tensor) -> float:
    """Mean AUC over the attributes that have both classes, by scikit-learn; both ``(N, A)``."""
    both = [column for column in range(targets.shape[1]) if len(targets[:, column].unique()) == 2]
    return sum(roc_auc_score(targets[:, column], scores[:, column]) for column in both) / len(both)
