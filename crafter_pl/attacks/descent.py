"""What attacks that search by gradients share: a descent of every sample on its own, and the l1 ball."""

from collections.abc import Callable

import torch
from torch import Tensor


def descend(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    steps: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    project: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimises an objective of each sample by Adam, and keeps each sample's best iterate.

    Args:
        objective: ``(N, ...) -> (N,)``, each sample's value a function of that sample alone.
        start: ``(N, ...)``, the first iterate; not modified.
        steps: gradient steps; 0 evaluates the start.
        lr: Adam's.
        betas: Adam's.
        project: applied to the iterate after every step.

    Returns:
        The best iterate of each sample, the start included, and its objective ``(N,)``, detached.
    """
    variable = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=lr, betas=betas)
    best, best_loss = start.detach(), start.new_full((len(start),), torch.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            loss = objective(variable)
        better = loss.detach() < best_loss
        best = torch.where(better.view(-1, *[1] * (start.ndim - 1)), variable.detach(), best)
        best_loss = torch.where(better, loss.detach(), best_loss)
        if step == steps:
            break
        (variable.grad,) = torch.autograd.grad(loss, variable, torch.ones_like(loss))
        optimizer.step()
        if project is not None:
            variable.data = project(variable.data)
    return best, best_loss


def project_l1(x: Tensor, radius: float) -> Tensor:
    """The nearest points of the l1 ball, each sample's own: ``argmin_p |p - x|^2`` with ``|p|_1 <= radius``.

    Exact, by sorting: a soft threshold at the one height that leaves the norm ``radius`` (Duchi et al.,
    "Efficient Projections onto the l1-Ball for Learning in High Dimensions", ICML 2008).

    Args:
        x: ``(N, P)``.
        radius: at least 0.
    """
    size = x.abs()
    ordered = size.sort(dim=1, descending=True).values
    excess = ordered.cumsum(1) - radius
    count = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
    kept = (ordered * count > excess).sum(1, keepdim=True).clamp(min=1)
    height = (excess.gather(1, kept - 1) / kept).clamp(min=0)
    return x.sign() * (size - height).clamp(min=0)
