"""Conjugate gradients for a batch of systems at once, each sample its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product a sample, ``(N,)``."""
    return (a * b).flatten(1).sum(1)


def along(step: Tensor, x: Tensor) -> Tensor:
    """Multiply every sample of ``x (N, ...)`` by its own scalar ``step (N,)``."""
    return step.view(-1, *[1] * (x.ndim - 1)) * x


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a / b``, and 0 where ``b`` is 0."""
    return torch.where(b == 0, torch.zeros_like(a), a / torch.where(b == 0, torch.ones_like(b), b))


def conjugate_gradients(
    matrix: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    v: Tensor,
    y0: Tensor | None,
    iterations: int,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Solve ``A y = v`` for every sample on its own.

    One that meets a direction of non-positive curvature stops at its last iterate.

    Args:
        matrix: ``p -> (A p, B p, p . A p)``, with any linear image B.
        v: right sides ``(N, Z)``.
        y0: start, ``(N, Z)``; zeros by default.
        iterations: this many products, and one more with ``y0``.

    Returns:
        ``y``; ``B y``, accumulated on the way (None if no product was taken); the relative residual ``(N,)``,
        at least the dtype's epsilon: a recurrence knows no better.
    """
    norm = dot(v, v)
    y, r, image = torch.zeros_like(v), v, None
    if y0 is not None:
        y = torch.where((norm > 0)[:, None], y0.detach(), 0.0)
        product, image, _ = matrix(y)
        r = v - product
    p, rr = r, dot(r, r)
    active = rr > 0
    for _ in range(iterations):
        product, ahead, bend = matrix(p)
        active = active & (bend > 0)
        step = torch.where(active, divide(rr, bend), 0.0)
        y = y + along(step, p)
        image = along(step, ahead) if image is None else image + along(step, ahead)
        r = r - along(step, product)
        after = torch.where(active, dot(r, r), rr)
        p = torch.where(active[:, None], r + along(divide(after, rr), p), p)
        rr = after
        active = active & (rr > 0)
    residual = divide(rr.sqrt(), norm.sqrt()).clamp(min=torch.finfo(norm.dtype).eps)
    return y, image, torch.where(norm > 0, residual, 0.0)
