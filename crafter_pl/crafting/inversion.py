"""The attacker's best response z*(F): invert features through the prior (the paper, Algorithm 1).

For every sample on its own, ``L_i(z_i) = c * ||F_i - e(z_i)||^2 + rho * ||z_i||^2`` with ``e =
encoder(generator(.))``. Gradients are taken of the *sum* over samples, so a sample's iterates do not depend
on its neighbours in the batch, and `crafter_pl.crafting.implicit` differentiates this very objective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Render = Callable[[Tensor], Tensor]
Objective = Callable[[Tensor], Tensor]
"""A data term of one's own: ``e(z)`` ``(N, ...)`` -> ``(N,)``, of each sample alone."""


def inner_loss(
    rendered: Tensor,
    target: Tensor | Objective,
    z: Tensor,
    prior_weight: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """Return the inner objective a sample, ``(N,)``: ``c * ||F - e(z)||^2 + prior_weight * ||z||^2``.

    Args:
        rendered: ``e(z)``, ``(N, ...)``.
        target: features F of that shape; or a data term in place of that one.
        z: latents, ``(N, Z)``.
        prior_weight: rho.
        scale: c.
    """
    if isinstance(target, Tensor):
        loss = scale * (target - rendered).flatten(1).square().sum(1)
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
    """Adam's moments, handed from one outer step's inversion to the next."""

    step: int
    first: Tensor
    second: Tensor

    @classmethod
    def fresh(cls, z: Tensor) -> InversionState:
        """Before the first step."""
        return cls(0, torch.zeros_like(z), torch.zeros_like(z))

    def to(self, dtype: torch.dtype) -> InversionState:
        """The same in another precision."""
        return InversionState(self.step, self.first.to(dtype), self.second.to(dtype))


@dataclass(frozen=True)
class InversionResult:
    """Outcome of `invert`.

    Attributes:
        z: ``(N, Z)``, detached.
        loss: ``(N,)``, the inner objective at ``z`` exactly; NaN where it was not asked for.
        state: the optimizer's moments, to go on from.
    """

    z: Tensor
    loss: Tensor
    state: InversionState


def adam_step(z: Tensor, gradient: Tensor, state: InversionState, lr: float) -> tuple[Tensor, InversionState]:
    """One elementwise step of Adam; samples cannot meet in it."""
    beta1, beta2, step = 0.9, 0.999, state.step + 1
    first = torch.lerp(gradient, state.first, beta1)
    second = torch.lerp(gradient.square(), state.second, beta2)
    denominator = (second / (1 - beta2**step)).sqrt() + 1e-8
    return z - lr / (1 - beta1**step) * first / denominator, InversionState(step, first, second)


def invert(
    render: Render,
    target: Tensor | Objective,
    z0: Tensor | Recorded,
    *,
    steps: int,
    lr: float,
    prior_weight: float = 0.0,
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
        lr: Adam's step size, about the distance moved an entry and step.
        prior_weight: rho of ``rho * ||z||^2``.
        keep_best: return each sample's iterate of lowest objective (``z0`` included) instead of the last one.
        evaluate: compute the objective at the solution; without it, and without ``keep_best``, a pass through
            ``render`` less.
        state: moments returned by an earlier call for the same samples; fresh ones by default.

    Returns:
        The solution, its objective, and the optimizer's state.

    Raises:
        ValueError: on shapes that do not fit.
    """
    here = z0
    z = (z0.z if isinstance(z0, Recorded) else z0).detach()
    if isinstance(target, Tensor):
        target = target.detach()
        if len(z) != len(target):
            raise ValueError(f"z0 has {len(z)} samples, target {len(target)}: one latent a feature.")
    state = state or InversionState.fresh(z)
    best_z, best_loss = z, torch.full((len(z),), torch.inf, dtype=z.dtype, device=z.device)
    for _ in range(steps):
        drawn = record(render, here)
        with torch.enable_grad():
            loss = inner_loss(drawn.rendered, target, drawn.z, prior_weight)
            (gradient,) = torch.autograd.grad(loss.sum(), drawn.z)
        if keep_best:
            better = loss.detach() < best_loss
            best_z = torch.where(better[:, None], z, best_z)
            best_loss = torch.where(better, loss.detach(), best_loss)
        z, state = adam_step(z, gradient, state, lr)
        here = z
    if not (evaluate or keep_best):
        return InversionResult(z, torch.full_like(best_loss, torch.nan), state)
    with torch.no_grad():
        loss = inner_loss(render(z), target, z, prior_weight)
    if keep_best:
        better = loss < best_loss
        z, loss = torch.where(better[:, None], z, best_z), torch.where(better, loss, best_loss)
    return InversionResult(z, loss, state)
