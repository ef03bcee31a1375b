"""Hypergradients: closed forms, dense solves, finite differences, torchopt, and samples that do not meet."""

from __future__ import annotations

import functools

import pytest
import torch
import torchopt
from implicit_lab import F64, NETS, SETTINGS, dense, dense_matrix, problem, relative
from torch import Tensor, nn
from torch.func import jacrev

from crafter_pl.crafting import implicit
from crafter_pl.crafting.implicit import cg, gauss_newton, hypergradient, neumann, unroll
from crafter_pl.crafting.inversion import Render, inner_loss, invert


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scale", [1.0, 0.02])
@pytest.mark.parametrize("solver", ["cg", "gauss_newton"])
def test_iterative_solvers_equal_the_dense_solve(name: str, scale: str, solver: str) -> None:
    net, target, z, v = problem(name)
    damping, rho = (2.0, 0.1) if scale == 1 else (0.1, 0.01)
    expected, a = dense(
        net, target, z, v, rho=rho, damping=damping, scale=scale, gauss=solver == "gauss_newton"
    )
    assert torch.linalg.eigvalsh(a).min() > 0, "the test needs a positive definite system"
    result = hypergradient(solver, net, target, z, v, damping=damping, iterations=12, rho=rho, scale=scale)
    assert result.grad.shape == target.shape
    assert relative(result.grad, expected) < 1e-8  # asked for: 1e-3
    single = hypergradient(
        solver,
        net.float(),
        *(x.float() for x in (target, z, v)),
        damping=damping,
        iterations=12,
        rho=rho,
        scale=scale,
    )
    assert single.grad.dtype == torch.float32
    assert relative(single.grad.double(), expected) < 1e-4


@pytest.mark.parametrize("name", NETS)
def test_neumann_converges_to_the_dense_solve(name: str) -> None:
    net, target, z, v = problem(name)
    rho = 2.0
    expected, a = dense(net, target, z, v, rho=rho, damping=0.0, scale=1.0, gauss=False)
    eigenvalues = torch.linalg.eigvalsh(a)
    assert eigenvalues.min() > 0
    alpha = 1 / eigenvalues.max().item()
    result = neumann(net, target, z, v, alpha=alpha, terms=400, rho=rho)
    assert relative(result.grad, expected) < 1e-8
    short = neumann(net, target, z, v, alpha=alpha, terms=3, rho=rho)
    series = alpha * sum(torch.linalg.matrix_power(torch.eye(len(a[0])) - alpha * a, j) for j in range(4))
    torch.testing.assert_close(short.y, (series @ v[..., None])[..., 0])


@pytest.mark.parametrize("scale", [1.0, 0.7, 1 / 9])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_quadratic_bilevel_problem_has_a_closed_form(scale: float, rho: float) -> None:
    torch.manual_seed(3)
    net = nn.Linear(4, 9).double().requires_grad_(False)
    target, anchor = torch.randn(6, 9, dtype=F64), torch.randn(6, 4, dtype=F64)
    w, c = net.weight, scale
    normal = c * w.T @ w + rho * torch.eye(4, dtype=F64)
    z = torch.linalg.solve(normal, c * (target - net.bias) @ w, left=False)
    v = z - anchor  # L_p = ||z* - anchor||^2 / 2
    expected = c * torch.linalg.solve(normal, v, left=False) @ w.T
    shared = {"rho": rho, "scale": scale}
    lr = 0.9 / (2 * torch.linalg.eigvalsh(normal).max().item())
    results = {
        "cg": cg(net, target, z, v, damping=0.0, iterations=4, **shared),
        "gauss_newton": gauss_newton(net, target, z, v, damping=0.0, iterations=4, **shared),
        "neumann": neumann(net, target, z, v, alpha=lr, terms=600, **shared),
        "unroll": hypergradient("unroll", net, target, z, v, steps=600, lr=lr, **shared),
    }
    for solver, result in results.items():
        assert relative(result.grad, expected) < 1e-8, solver


def newton(net: Render, target: Tensor, z: Tensor, rho: float) -> Tensor:
    """Converge the inner problem to rounding by dense Newton steps."""
    for _ in range(6):
        gradient = jacrev(lambda q: inner_loss(net(q), target, q, rho).sum())(z)
        blocks = [
            dense_matrix(net, f, q, rho=rho, damping=0.0, scale=1.0, gauss=False)
            for f, q in zip(target, z, strict=True)
        ]
        z = z - torch.linalg.solve(torch.stack(blocks), gradient)
    assert gradient.norm() < 1e-10
    return z


def privacy(z: Tensor) -> Tensor:
    """Return some smooth L_p a sample."""
    return torch.sin(z).sum(1) + 0.3 * z.square().sum(1)


@functools.cache
def solved() -> tuple[nn.Sequential, Tensor, Tensor, Tensor, float]:
    net, target, z, _ = problem("smooth")
    rho = 0.05
    z = newton(net, target, invert(net, target, z, steps=400, lr=0.02, prior_weight=rho).z, rho)
    return net, target, z, torch.cos(z) + 0.6 * z, rho


def test_finite_differences_through_a_converged_inner_solve() -> None:
    net, target, z, v, rho = solved()
    result = cg(net, target, z, v, damping=0.0, iterations=10, rho=rho)
    torch.manual_seed(5)
    for _ in range(2):
        direction, h = torch.randn_like(target), 1e-5
        ahead = privacy(newton(net, target + h * direction, z, rho))
        behind = privacy(newton(net, target - h * direction, z, rho))
        difference = (ahead - behind) / (2 * h)
        torch.testing.assert_close((result.grad * direction).sum(1), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.filterwarnings("ignore:We've integrated functorch")  # torchopt 0.7.3 calls the old name
def test_torchopt_gives_the_same_implicit_gradient() -> None:
    net, target, z, v, rho = solved()

    def optimality(z: Tensor, target: Tensor) -> Tensor:
        return torch.func.grad(lambda q: inner_loss(net(q), target, q, rho).sum())(z)

    solve = torchopt.linear_solve.solve_normal_cg(maxiter=300, rtol=1e-12, atol=1e-13)

    @torchopt.diff.implicit.custom_root(optimality, argnums=1, solve=solve)
    def solver(z: Tensor, target: Tensor) -> Tensor:
        return z

    feature = target.clone().requires_grad_()
    (expected,) = torch.autograd.grad(privacy(solver(z, feature)).sum(), feature)
    assert relative(cg(net, target, z, v, damping=0.0, iterations=10, rho=rho).grad, expected) < 1e-6


def test_torchopt_solves_the_gauss_newton_system_alike() -> None:
    net, target, z, v = problem("conv")
    result = gauss_newton(net, target, z, v, damping=0.5, iterations=10, rho=0.1)
    _, a = dense(net, target, z, v, rho=0.1, damping=0.5, scale=1.0, gauss=True)
    for i in range(len(z)):
        y = torchopt.linear_solve.solve_cg(maxiter=100, rtol=1e-12, atol=1e-12)(lambda p, i=i: a[i] @ p, v[i])
        torch.testing.assert_close(result.y[i], y, rtol=1e-8, atol=1e-8)


def test_unroll_equals_implicit_on_a_converged_problem() -> None:
    net, target, z, v, rho = solved()
    exact = cg(net, target, z, v, damping=0.0, iterations=10, rho=rho)
    unrolled = unroll(net, target, z, v, steps=3000, lr=0.05, rho=rho)
    assert relative(unrolled.grad, exact.grad) < 1e-6
    assert unrolled.products == 2999
    short = [unroll(net, target, z, v, steps=k, lr=0.03, rho=rho).grad for k in (1, 10, 100)]
    errors = [relative(grad, exact.grad) for grad in short]
    assert errors[0] > errors[1] > errors[2]
    cold = unroll(net, target, z + 0.3, v, steps=3000, lr=0.05, rho=rho)
    assert relative(cold.grad, exact.grad) < 1e-6 and cold.residual.max() < 1e-6


def test_bad_settings_are_refused() -> None:
    net, target, z, v = problem("smooth")
    with pytest.raises(ValueError, match="'newton'"):
        hypergradient("newton", net, target, z, v)
    assert list(implicit.SOLVERS) == list(SETTINGS)
