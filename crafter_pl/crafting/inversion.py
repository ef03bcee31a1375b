"""The attacker's best response z*(F): invert features through the prior (the paper, Algorithm 1).

For every sample on its own, ``L_i(z_i) = c * ||F_i - e(z_i)||^2 + rho * ||z_i||^2`` with ``e =
encoder(generator(.))``. Gradients are taken of the *sum* over samples, so a sample's iterates do not depend
on its neighbours in the batch, and `crafter_pl.crafting.implicit` differentiates this very objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Render = Callable[[Tensor], Tensor]
Scale = Literal["sum", "mean"] | float
"""Factor c of the data term: 1 ("sum"), 1/d with d entries a sample ("mean"), or the number given."""
Objective = Callable[[Tensor], Tensor]
"""A data term of one's own: ``e(z)`` ``(N, ...)`` -> ``(N,)``, of each sample alone."""


def data_weight(scale: Scale, target: Tensor) -> float:
    """Return the factor c of ``||F - e(z)||^2`` for features ``target`` of shape ``(N, ...)``.

    Raises:
        ValueError: if ``scale`` is neither "sum", "mean" nor a number.
    """
    if scale == "sum":
        return 1.0
    if scale == "mean":
        return 1.0 / target[0].numel() if len(target) else 1.0
    if isinstance(scale, str):
        raise ValueError(f"scale is {scale!r}; expected 'sum', 'mean' or a number.")
    return float(scale)


def inner_loss(
    rendered: Tensor,
    target: Tensor | Objective,
    z: Tensor,
    prior_weight: float = 0.0,
    scale: Scale = "sum",
) -> Tensor:
    """Return the inner objective a sample, ``(N,)``: ``c * ||F - e(z)||^2 + prior_weight * ||z||^2``.

    Args:
        rendered: ``e(z)``, ``(N, ...)``.
        target: features F of that shape; or a data term in place of that one.
        z: latents, ``(N, Z)``.
        prior_weight: rho.
        scale: see `Scale`.
    """
    if isinstance(target, Tensor):
        loss = data_weight(scale, target) * (target - rendered).flatten(1).square().sum(1)
    else:
        loss = target(rendered)
    return loss + prior_weight * z.square().sum(1) if prior_weight else loss


@dataclass(frozen=True)
class Recorded:
    """A pass through ``render`` with its graph: gradients at ``z`` need no other.

    Attributes:
        z: ``(N, Z)``, a leaf that requires a gradient.
        rendered: ``e(z)``, ``(N, ...)``.
    """

    z: Tensor
    rendered: Tensor


def record(render: Render, z: Tensor | Recorded) -> Recorded:
    """Return the pass at ``z``, a new one unless it is recorded already."""
    if isinstance(z, Recorded):
        return z
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        return Recorded(leaf, render(leaf))


@dataclass(frozen=True)
class InversionState:
    """Moments of the inner optimizer, handed from one outer step's inversion to the next."""

    step: int
    first: Tensor
    second: Tensor | None


@dataclass(frozen=True)
class InversionResult:
    """Outcome of `invert`.

    Attributes:
        z: ``(N, Z)``, detached.
        loss: ``(N,)``, the inner objective at ``z`` exactly; NaN where it was not asked for.
        steps: gradient steps taken.
        state: the optimizer's moments, to go on from.
    """

    z: Tensor
    loss: Tensor
    steps: int
    state: InversionState


def _fresh_state(z0: Tensor, optimizer: str) -> InversionState:
    return InversionState(0, torch.zeros_like(z0), torch.zeros_like(z0) if optimizer == "adam" else None)


def _step(
    z: Tensor,
    gradient: Tensor,
    state: InversionState,
    *,
    optimizer: str,
    lr: float,
    momentum: float,
    beta2: float,
) -> tuple[Tensor, InversionState]:
    """One elementwise optimizer step; samples cannot meet in it."""
    step = state.step + 1
    if state.second is None:
        velocity = momentum * state.first + gradient
        return z - lr * velocity, InversionState(step, velocity, None)
    first = torch.lerp(gradient, state.first, momentum)
    second = torch.lerp(gradient.square(), state.second, beta2)
    denominator = (second / (1 - beta2**step)).sqrt() + 1e-8
    return z - lr / (1 - momentum**step) * first / denominator, InversionState(step, first, second)


def invert(
    render: Render,
    target: Tensor | Objective,
    z0: Tensor | Recorded,
    *,
    steps: int,
    lr: float,
    optimizer: Literal["adam", "momentum"] = "adam",
    momentum: float = 0.9,
    beta2: float = 0.999,
    prior_weight: float = 0.0,
    scale: Scale = "sum",
    keep_best: bool = False,
    evaluate: bool = True,
    state: InversionState | None = None,
) -> InversionResult:
    """Minimise the inner objective of every sample from ``z0`` (Algorithm 1, line "z*(F)").

    The start is the caller's: keyed noise (cold), an amortizer's ``A(F)``, or the last outer step's solution
    (warm).

    Args:
        render: ``z (N, Z) -> features (N, ...)``, frozen and in eval mode, so that it treats samples
            separately.
        target: features F to invert, ``(N, ...)``; or a data term of one's own, see `Objective`.
        z0: start, ``(N, Z)``, not modified; or the pass recorded there, which the first step uses up.
        steps: gradient steps; 0 evaluates ``z0``.
        lr: step size. With "momentum" it multiplies the gradient of the objective, so its meaning moves with
            ``scale`` (the paper's 5e-3 is for its own objective, see `crafter_pl.crafting.reference`); with
            "adam" it is about the distance moved an entry and step, whatever the scale.
        optimizer: "adam", or "momentum" (``v = momentum * v + g; z = z - lr * v``) as in the paper.
        momentum: of "momentum"; the first moment's decay of "adam".
        beta2: the second moment's decay of "adam".
        prior_weight: rho of ``rho * ||z||^2``.
        scale: factor of the data term: "sum" 1, "mean" 1/d (so that lr means the same for any feature size),
            or a number.
        keep_best: return each sample's iterate of lowest objective (``z0`` included) instead of the last one.
        evaluate: compute the objective at the solution; without it, and without ``keep_best``, a pass through
            ``render`` less.
        state: moments returned by an earlier call for the same samples; fresh ones by default.

    Returns:
        The solution, its objective, and the optimizer's state.

    Raises:
        ValueError: on an unknown optimizer, or shapes that do not fit.
    """
    if optimizer not in ("adam", "momentum"):
        raise ValueError(f"optimizer is {optimizer!r}; expected 'adam' or 'momentum'.")
    here = z0
    z = (z0.z if isinstance(z0, Recorded) else z0).detach()
    if isinstance(target, Tensor):
        target = target.detach()
        if len(z) != len(target):
            raise ValueError(f"z0 has {len(z)} samples, target {len(target)}: one latent a feature.")
    state = state or _fresh_state(z, optimizer)
    if state.first.shape != z.shape or (state.second is None) != (optimizer == "momentum"):
        raise ValueError("state belongs to another optimizer or batch; pass state=None to start afresh.")
    best_z, best_loss = z, torch.full((len(z),), torch.inf, dtype=z.dtype, device=z.device)
    for _ in range(steps):
        drawn = record(render, here)
        with torch.enable_grad():
            loss = inner_loss(drawn.rendered, target, drawn.z, prior_weight, scale)
            (gradient,) = torch.autograd.grad(loss.sum(), drawn.z)
        if keep_best:
            better = loss.detach() < best_loss
            best_z = torch.where(better[:, None], z, best_z)
            best_loss = torch.where(better, loss.detach(), best_loss)
        z, state = _step(z, gradient, state, optimizer=optimizer, lr=lr, momentum=momentum, beta2=beta2)
        here = z
    if not (evaluate or keep_best):
        return InversionResult(z, torch.full_like(best_loss, torch.nan), steps, state)
    with torch.no_grad():
        loss = inner_loss(render(z), target, z, prior_weight, scale)
    if keep_best:
        better = loss < best_loss
        z, loss = torch.where(better[:, None], z, best_z), torch.where(better, loss, best_loss)
    return InversionResult(z, loss, steps, state)
