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


def relative_norm(rr: Tensor, norm: Tensor) -> Tensor:
    """Return the relative residual, at least the dtype's epsilon: a recurrence knows no better."""
    residual = divide(rr.sqrt(), norm.sqrt())
    return torch.where(norm > 0, residual.clamp(min=torch.finfo(residual.dtype).eps), 0.0)


def conjugate_gradients(
    matrix: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    v: Tensor,
    y0: Tensor | None,
    iterations: int,
    tol: float,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Solve ``A y = v`` for every sample on its own.

    Args:
        matrix: ``p -> (A p, B p, p . A p)``, with any linear image B.
        v: right sides ``(N, Z)``.
        y0: start, ``(N, Z)``; zeros by default.
        iterations: at most this many products, and one more with ``y0``.
        tol: a sample is frozen once its relative residual is at most this.

    Returns:
        ``y``; ``B y``, accumulated on the way (None if no product was taken); the relative residual ``(N,)``;
        which samples were stopped by non-positive curvature.
    """
    norm = dot(v, v)
    y, r, image = torch.zeros_like(v), v, None
    if y0 is not None:
        y = torch.where((norm > 0)[:, None], y0.detach(), 0.0)
        product, image, _ = matrix(y)
        r = v - product
    p, rr = r, dot(r, r)
    active = rr > tol**2 * norm
    negative = torch.zeros_like(active)
    for _ in range(iterations):
        if tol > 0 and not active.any():  # asking costs a wait for the device
            break
        product, ahead, bend = matrix(p)
        negative = negative | (active & (bend <= 0))
        active = active & (bend > 0)
        step = torch.where(active, divide(rr, bend), 0.0)
        y = y + along(step, p)
        image = along(step, ahead) if image is None else image + along(step, ahead)
        r = r - along(step, product)
        after = torch.where(active, dot(r, r), rr)
        p = torch.where(active[:, None], r + along(divide(after, rr), p), p)
        rr = after
        active = active & (rr > tol**2 * norm)
    return y, image, relative_norm(rr, norm), negative
