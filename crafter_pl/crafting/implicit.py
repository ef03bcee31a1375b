"""Hypergradient dL_p/dF through the best response z*(F) (the paper, Algorithm 1).

With the inner objective ``L(F, z) = c * ||F - e(z)||^2 + rho * ||z||^2`` of each sample and ``v = dL_p/dz``
at ``z*``, the implicit function theorem gives ``dL_p/dF = -v . [d2L/dz2 + damping * I]^-1 . d2L/dzdF``. The
mixed derivative of a squared loss is exactly ``-2c * J^T`` (J the Jacobian of e), so ``dL_p/dF = 2c * J y``
with ``y`` the solution of ``(d2L/dz2 + damping * I) y = v``; the solvers differ in that linear system only.

Every sample is solved on its own: no reduction runs over samples, and a sample that has converged is frozen
while the others go on, so a result equals the single-sample one up to rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crafter_pl.crafting.curvature import Curvature
from crafter_pl.crafting.inversion import Recorded, Render, inner_loss


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


@dataclass(frozen=True)
class Hypergradient:
    """A hypergradient with its diagnostics.

    Attributes:
        grad: dL_p/dF, the shape of F.
        loss: ``(N,)``, the inner objective at ``z``.
        y: ``(N, Z)``, the solution of the linear system (to start the next one from); zeros for `unroll`,
            which has none.
        residual: ``(N,)``, ``||v - A y|| / ||v||`` with A the solver's own matrix, 0 where v is 0; for
            `unroll` the norm of the inner gradient after the last step over that before the first; NaN where
            not asked for.
        products: exact count of Hessian products (`neumann`, `cg`, `unroll`) or ``J^T J`` products
            (`gauss_newton`) of the whole batch; the final ``J y`` (one half of a ``J^T J`` product) is not in
            it.
    """

    grad: Tensor
    loss: Tensor
    y: Tensor
    residual: Tensor
    products: int


def neumann(
    render: Render,
    target: Tensor,
    z: Tensor | Recorded,
    v: Tensor,
    *,
    alpha: float,
    terms: int,
    rho: float = 0.0,
    scale: float = 1.0,
) -> Hypergradient:
    """Hypergradient with ``alpha * sum_{j<=terms} (I - alpha * H)^j`` for the inverse Hessian (the paper's).

    Args:
        render: ``z (N, Z) -> features (N, ...)``, frozen, in eval mode.
        target: features F, ``(N, ...)``.
        z: best response at F, ``(N, Z)``, or the pass recorded there.
        v: ``dL_p/dz`` at ``z``, ``(N, Z)``.
        alpha: step of the series; it converges where ``0 < alpha * H < 2``.
        terms: K, the Hessian products of the series.
        rho: prior weight of the inner objective.
        scale: c, factor of its data term.
    """
    v, curvature = v.detach(), Curvature(render, target, z, rho, scale)
    power = total = v
    for _ in range(terms):
        power = power - alpha * curvature.hessian(power)
        total = total + power
    remainder = power - alpha * curvature.hessian(power)
    residual = divide(dot(remainder, remainder).sqrt(), dot(v, v).sqrt())
    y = alpha * total
    return Hypergradient(curvature.mixed(y), curvature.loss.detach(), y, residual, curvature.products)


def cg(
    render: Render,
    target: Tensor,
    z: Tensor | Recorded,
    v: Tensor,
    *,
    damping: float,
    iterations: int,
    rho: float = 0.0,
    scale: float = 1.0,
    y0: Tensor | None = None,
) -> Hypergradient:
    """Hypergradient by conjugate gradients, a sample each, on the damped Hessian ``d2L/dz2 + damping * I``.

    A sample that meets a direction of non-positive curvature stops at its last iterate (its start, if that
    happens at the first one: its hypergradient is then 0 without ``y0``).

    Args:
        render: ``z (N, Z) -> features (N, ...)``, frozen, in eval mode.
        target: features F, ``(N, ...)``.
        z: best response at F, ``(N, Z)``, or the pass recorded there.
        v: ``dL_p/dz`` at ``z``, ``(N, Z)``.
        damping: added to the Hessian's diagonal.
        iterations: one product each, and one more with ``y0``.
        rho: prior weight of the inner objective.
        scale: c, factor of its data term.
        y0: start, ``(N, Z)``; zeros by default.
    """
    v, curvature = v.detach(), Curvature(render, target, z, rho, scale)

    def matrix(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        product = curvature.hessian(p) + damping * p
        return product, p, dot(p, product)

    y, _, residual = conjugate_gradients(matrix, v, y0, iterations)
    return Hypergradient(curvature.mixed(y), curvature.loss.detach(), y, residual, curvature.products)


def gauss_newton(
    render: Render,
    target: Tensor,
    z: Tensor | Recorded,
    v: Tensor,
    *,
    damping: float,
    iterations: int,
    rho: float = 0.0,
    scale: float = 1.0,
    y0: Tensor | None = None,
) -> Hypergradient:
    """Hypergradient by conjugate gradients on ``2c * J^T J + (2 * rho + damping) * I``, a sample each.

    This is the Hessian without the residual's own curvature: positive definite always, and exact where the
    inversion reproduces the feature. ``J y`` is accumulated along the iterations, so that the hypergradient
    ``2c * J y`` costs no further product.

    Args:
        render: ``z (N, Z) -> features (N, ...)``, frozen, in eval mode.
        target: features F, ``(N, ...)``.
        z: best response at F, ``(N, Z)``, or the pass recorded there.
        v: ``dL_p/dz`` at ``z``, ``(N, Z)``.
        damping: added to the diagonal.
        iterations: one product each, and one more with ``y0``.
        rho: prior weight of the inner objective.
        scale: c, factor of its data term.
        y0: start, ``(N, Z)``, e.g. the last outer step's ``y``; zeros by default.
    """
    v, curvature = v.detach(), Curvature(render, target, z, rho, scale)
    weight, ridge = 2 * scale, 2 * rho + damping

    def matrix(p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        curvature.products += 1
        ahead = curvature.forward(p)
        product = weight * curvature.transposed(ahead) + ridge * p
        return product, ahead, weight * dot(ahead, ahead) + ridge * dot(p, p)

    y, image, residual = conjugate_gradients(matrix, v, y0, iterations)
    image = torch.zeros_like(target) if image is None else image
    return Hypergradient(weight * image, curvature.loss.detach(), y, residual, curvature.products)


def unroll(
    render: Render,
    target: Tensor,
    z: Tensor | Recorded,
    v: Tensor,
    *,
    steps: int,
    lr: float,
    rho: float = 0.0,
    scale: float = 1.0,
) -> Hypergradient:
    """Hypergradient by differentiating through ``steps`` inner steps from ``z``, which is held constant.

    L_p is taken as linear, ``<v, z>``.

    Args:
        render: ``z (N, Z) -> features (N, ...)``, frozen, in eval mode.
        target: features F, ``(N, ...)``.
        z: start of the unrolled steps, ``(N, Z)``: z*, or an iterate on the way to it.
        v: ``dL_p/dz`` at ``z``, ``(N, Z)``.
        steps: gradient steps ``z = z - lr * dL/dz``, at least 1; a Hessian product each, but for the first.
        lr: their size.
        rho: prior weight of the inner objective.
        scale: c, factor of its data term.
    """
    start = (z.z if isinstance(z, Recorded) else z).detach()
    losses, gradients = [], []
    with torch.enable_grad():
        feature = target.detach().clone().requires_grad_()
        latent = start.clone().requires_grad_()
        for _ in range(steps):
            losses.append(inner_loss(render(latent), feature, latent, rho, scale))
            gradients.append(torch.autograd.grad(losses[-1].sum(), latent, create_graph=True)[0])
            latent = latent - lr * gradients[-1]
        (grad,) = torch.autograd.grad(dot(v.detach(), latent).sum(), feature)
        end = latent.detach().requires_grad_()
        (after,) = torch.autograd.grad(inner_loss(render(end), feature, end, rho, scale).sum(), end)
    residual = divide(*(dot(one, one).sqrt() for one in (after, gradients[0].detach())))
    return Hypergradient(grad, losses[0].detach(), torch.zeros_like(start), residual, steps - 1)


SOLVERS: dict[str, Callable[..., Hypergradient]] = {
    "neumann": neumann,
    "cg": cg,
    "gauss_newton": gauss_newton,
    "unroll": unroll,
}


def hypergradient(
    solver: str, render: Render, target: Tensor, z: Tensor | Recorded, v: Tensor, **settings: object
) -> Hypergradient:
    """Return dL_p/dF by the named solver.

    Args:
        solver: one of `SOLVERS`.
        render: ``z (N, Z) -> features (N, ...)``, frozen, in eval mode.
        target: features F, ``(N, ...)``.
        z: best response at F, ``(N, Z)``, or the pass recorded there.
        v: ``dL_p/dz`` at ``z``, ``(N, Z)``.
        settings: the solver's own keyword arguments.

    Raises:
        ValueError: on an unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}; expected one of {', '.join(SOLVERS)}.")
    return SOLVERS[solver](render, target, z, v, **settings)
