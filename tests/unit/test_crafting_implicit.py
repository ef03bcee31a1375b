"""Hypergradients: closed forms, dense solves, finite differences, torchopt, and samples that do not meet."""

from __future__ import annotations

import functools

import pytest
import torch
import torchopt
from torch import Tensor, nn
from torch.func import hessian, jacrev

from crafter_pl.crafting import implicit
from crafter_pl.crafting.implicit import Hypergradient, cg, gauss_newton, hypergradient, neumann, unroll
from crafter_pl.crafting.inversion import Render, data_weight, inner_loss, invert

F64 = torch.float64


def smooth_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 12)).double().requires_grad_(False)


def conv_net() -> nn.Sequential:
    """Return a small frozen generator and encoder: transposed convolution, BatchNorm, ReLU, sigmoid."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(6, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Unflatten(1, (4, 4, 4))),
        *(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Sigmoid()),
        *(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)),
    ).double()
    with torch.no_grad():
        net.train()(2 * torch.randn(256, 6, dtype=F64))
        net[-1].weight.mul_(120)  # the Hessian's eigenvalues: 1 to 25
    return net.eval().requires_grad_(False)


NETS = {"smooth": (smooth_net, 5), "conv": (conv_net, 6)}


def problem(name: str, count: int = 5) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """Return a net, features that it can only nearly reach, latents near their inversions, and dL_p/dz."""
    make, dim = NETS[name]
    net = make()
    torch.manual_seed(1)
    z = torch.randn(count, dim, dtype=F64)
    target = net(z)
    target = target + 0.3 * target.std() * torch.randn_like(target)
    return net, target, z + 0.05 * torch.randn_like(z), torch.randn_like(z)


def dense_matrix(
    net: Render, target: Tensor, z: Tensor, *, rho: float, damping: float, scale: str, gauss: bool
) -> Tensor:
    """Return the solver's matrix of one sample, ``(Z, Z)``, by torch.func."""
    if gauss:
        jacobian = jacrev(lambda q: net(q[None])[0].flatten())(z)
        matrix = 2 * data_weight(scale, target[None]) * jacobian.T @ jacobian
        matrix = matrix + 2 * rho * torch.eye(len(z), dtype=F64)
    else:
        matrix = hessian(lambda q: inner_loss(net(q[None]), target[None], q[None], rho, scale)[0])(z)
    return matrix + damping * torch.eye(len(z), dtype=F64)


def dense(
    net: Render, target: Tensor, z: Tensor, v: Tensor, *, rho: float, damping: float, scale: str, gauss: bool
) -> tuple[Tensor, Tensor]:
    """Return the exact hypergradient and the matrices, the mixed derivative by torch.func as well."""
    grads, matrices = [], []
    for f, q, w in zip(target, z, v, strict=True):
        a = dense_matrix(net, f, q, rho=rho, damping=damping, scale=scale, gauss=gauss)

        def gradient(f_: Tensor, q: Tensor = q) -> Tensor:
            return torch.func.grad(lambda x: inner_loss(net(x[None]), f_[None], x[None], rho, scale)[0])(q)

        mixed = jacrev(gradient)(f)
        grads.append(-torch.tensordot(torch.linalg.solve(a, w), mixed, dims=1))
        matrices.append(a)
    return torch.stack(grads), torch.stack(matrices)


def relative(a: Tensor, b: Tensor) -> float:
    """Return the largest relative error over samples."""
    return ((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max().item()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("scale", ["sum", "mean"])
@pytest.mark.parametrize("solver", ["cg", "gauss_newton"])
def test_iterative_solvers_equal_the_dense_solve(name: str, scale: str, solver: str) -> None:
    net, target, z, v = problem(name)
    damping, rho = (2.0, 0.1) if scale == "sum" else (0.1, 0.01)
    expected, a = dense(
        net, target, z, v, rho=rho, damping=damping, scale=scale, gauss=solver == "gauss_newton"
    )
    assert torch.linalg.eigvalsh(a).min() > 0, "the test needs a positive definite system"
    result = hypergradient(solver, net, target, z, v, damping=damping, iterations=12, rho=rho, scale=scale)
    assert result.grad.shape == target.shape
    assert relative(result.grad, expected) < 1e-8  # asked for: 1e-3
    assert result.negative_curvature == 0
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
    expected, a = dense(net, target, z, v, rho=rho, damping=0.0, scale="sum", gauss=False)
    eigenvalues = torch.linalg.eigvalsh(a)
    assert eigenvalues.min() > 0
    alpha = 1 / eigenvalues.max().item()
    result = neumann(net, target, z, v, alpha=alpha, terms=400, rho=rho)
    assert relative(result.grad, expected) < 1e-8
    short = neumann(net, target, z, v, alpha=alpha, terms=3, rho=rho)
    series = alpha * sum(torch.linalg.matrix_power(torch.eye(len(a[0])) - alpha * a, j) for j in range(4))
    torch.testing.assert_close(short.y, (series @ v[..., None])[..., 0])


@pytest.mark.parametrize("scale", ["sum", "mean", 0.7])
@pytest.mark.parametrize("rho", [0.0, 0.4])
def test_quadratic_bilevel_problem_has_a_closed_form(scale: str | float, rho: float) -> None:
    torch.manual_seed(3)
    net = nn.Linear(4, 9).double().requires_grad_(False)
    target, anchor = torch.randn(6, 9, dtype=F64), torch.randn(6, 4, dtype=F64)
    w, c = net.weight, data_weight(scale, target)
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
            dense_matrix(net, f, q, rho=rho, damping=0.0, scale="sum", gauss=False)
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
    _, a = dense(net, target, z, v, rho=0.1, damping=0.5, scale="sum", gauss=True)
    for i in range(len(z)):
        y = torchopt.linear_solve.solve_cg(maxiter=100, rtol=1e-12, atol=1e-12)(lambda p, i=i: a[i] @ p, v[i])
        torch.testing.assert_close(result.y[i], y, rtol=1e-8, atol=1e-8)


def test_unroll_equals_implicit_on_a_converged_problem() -> None:
    net, target, z, v, rho = solved()
    exact = cg(net, target, z, v, damping=0.0, iterations=10, rho=rho)
    unrolled = unroll(privacy, net, target, z, steps=800, lr=0.03, momentum=0.9, rho=rho)
    assert relative(unrolled.grad, exact.grad) < 1e-6
    assert unrolled.products == 799
    short = [unroll(privacy, net, target, z, steps=k, lr=0.03, rho=rho).grad for k in (1, 10, 100)]
    errors = [relative(grad, exact.grad) for grad in short]
    assert errors[0] > errors[1] > errors[2]
    cold = unroll(privacy, net, target, z + 0.3, steps=800, lr=0.03, momentum=0.9, rho=rho)
    assert relative(cold.grad, exact.grad) < 1e-6 and cold.residual.max() < 1e-6


SETTINGS = {
    "neumann": {"alpha": 0.02, "terms": 30, "rho": 0.1},
    "cg": {"damping": 0.5, "iterations": 6, "tol": 1e-2, "rho": 0.1},
    "gauss_newton": {"damping": 0.05, "iterations": 6, "tol": 1e-2, "rho": 0.1},
    "unroll": {"steps": 12, "lr": 0.01, "momentum": 0.5, "rho": 0.1},
}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("solver", SETTINGS)
def test_samples_do_not_meet(solver: str, warm: bool) -> None:
    net, target, z, v = problem("conv", 8)
    v = v * torch.logspace(-6, 6, 8, dtype=F64)[:, None]  # neighbours of any size must not matter
    settings = dict(SETTINGS[solver])
    starts = (
        {"y0": v * torch.linspace(0, 1, 8, dtype=F64)[:, None]}
        if warm and solver in ("cg", "gauss_newton")
        else {}
    )
    batch = hypergradient(solver, net, target, z, v, **settings, **starts)
    for i in range(8):
        one = slice(i, i + 1)
        start = {key: value[one] for key, value in starts.items()}
        alone = hypergradient(solver, net, target[one], z[one], v[one], **settings, **start)
        size = v[i].norm()
        torch.testing.assert_close(alone.grad[0] / size, batch.grad[i] / size, rtol=0, atol=1e-10)
        torch.testing.assert_close(alone.y[0] / size, batch.y[i] / size, rtol=0, atol=1e-10)
        torch.testing.assert_close(alone.residual[0], batch.residual[i], rtol=0, atol=1e-10)


@pytest.mark.parametrize("solver", ["neumann", "cg", "gauss_newton"])
@pytest.mark.parametrize("warm", [False, True])
def test_residuals_are_the_true_ones(solver: str, warm: bool) -> None:
    net, target, z, v = problem("conv")
    settings = SETTINGS[solver] | ({} if solver == "neumann" else {"iterations": 3, "tol": 0.0})
    start = {"y0": 0.3 * v} if warm and solver != "neumann" else {}
    result = hypergradient(solver, net, target, z, v, **settings, **start)
    gauss, damping = solver == "gauss_newton", settings.get("damping", 0.0)
    _, a = dense(net, target, z, v, rho=0.1, damping=damping, scale="sum", gauss=gauss)
    true = (v - (a @ result.y[..., None])[..., 0]).norm(dim=1) / v.norm(dim=1)
    assert true.max() > 1e-4, "an unconverged solve is needed for the test to mean anything"
    torch.testing.assert_close(result.residual, true, rtol=1e-6, atol=1e-9)


def count_gradients(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count calls of torch.autograd.grad."""
    calls, original = [0], torch.autograd.grad

    def counted(*args: object, **kwargs: object) -> tuple[Tensor, ...]:
        calls[0] += 1
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return calls


def test_products_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    net, target, z, v = problem("conv")
    calls = count_gradients(monkeypatch)

    def run(solver: str, **settings: object) -> tuple[int, int]:
        calls[0] = 0
        return hypergradient(solver, net, target, z, v, **settings).products, calls[0]

    # three other passes: the recorded gradient, the recorded J^T w, and the closing J y
    assert run("neumann", alpha=0.01, terms=7, diagnose=False) == (7, 7 + 3)
    assert run("neumann", alpha=0.01, terms=7) == (8, 8 + 3)
    assert run("cg", damping=2.0, iterations=4) == (4, 4 + 3)
    assert run("cg", damping=2.0, iterations=4, y0=v) == (5, 5 + 3)
    # a J^T J product is two passes; one other: the recorded J^T w
    assert run("gauss_newton", damping=2.0, iterations=4) == (4, 2 * 4 + 1)
    assert run("gauss_newton", damping=2.0, iterations=4, y0=v) == (5, 2 * 5 + 1)
    assert run("gauss_newton", damping=1e9, iterations=9, tol=1e-3) == (1, 2 + 1), "all converged: stop"


@pytest.mark.parametrize("solver", ["cg", "gauss_newton"])
def test_warm_start_pays(solver: str) -> None:
    net, target, z, v = problem("conv")
    settings = {"damping": 2.0, "rho": 0.1}
    exact = hypergradient(solver, net, target, z, v, iterations=12, **settings)
    moved = v + 0.01 * torch.randn_like(v)
    truth = hypergradient(solver, net, target, z, moved, iterations=12, **settings)
    cold = hypergradient(solver, net, target, z, moved, iterations=2, **settings)
    warm = hypergradient(solver, net, target, z, moved, iterations=1, y0=exact.y, **settings)
    assert cold.products == warm.products == 2
    assert relative(warm.grad, truth.grad) < 0.3 * relative(cold.grad, truth.grad)


def test_negative_curvature_is_counted_and_stays_with_its_sample() -> None:
    def render(z: Tensor) -> Tensor:
        return z.square()  # d2L/dz2 = 12 z^2 - 4 F

    target = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 4.0]], dtype=F64)
    z = torch.tensor([[1.0, 1.2], [0.1, 0.2], [1.0, 0.1]], dtype=F64)
    v = torch.tensor([[1.0, 2.0], [1.0, 1.0], [1.0, 0.1]], dtype=F64)
    result = cg(render, target, z, v, damping=0.0, iterations=5)
    assert result.negative_curvature == 2
    torch.testing.assert_close(result.y[0], v[0] / (12 * z[0] ** 2 - 4 * target[0]))
    assert torch.equal(result.y[1], torch.zeros(2, dtype=F64)), "bent at once: its start"
    assert result.y[2].norm() > 0 and result.y.isfinite().all(), (
        "bent at the second direction: its last iterate"
    )
    hessian_2 = torch.diag(12 * z[2] ** 2 - 4 * target[2])
    true = (v[2] - hessian_2 @ result.y[2]).norm() / v[2].norm()
    torch.testing.assert_close(result.residual[2], true)
    damped = cg(render, target, z, v, damping=20.0, iterations=5)
    assert damped.negative_curvature == 0 and damped.residual.max() < 1e-8


@pytest.mark.parametrize("solver", SETTINGS)
def test_a_zero_privacy_gradient_gives_zero(solver: str) -> None:
    net, target, z, v = problem("conv")
    v[1] = 0
    starts = {"y0": torch.ones_like(v)} if solver in ("cg", "gauss_newton") else {}
    result = hypergradient(solver, net, target, z, v, **SETTINGS[solver], **starts)
    assert result.grad[1].abs().max() == 0 and result.grad.isfinite().all()
    assert solver == "unroll" or result.residual[1] == 0


@pytest.mark.parametrize("solver", SETTINGS)
def test_works_under_no_grad_and_leaves_no_gradients(solver: str) -> None:
    net, target, z, v = problem("conv")
    net.requires_grad_(True)
    z.requires_grad_(True)
    with torch.no_grad():
        result = hypergradient(solver, net, target, z, v, **SETTINGS[solver])
    assert isinstance(result, Hypergradient) and not result.grad.requires_grad and not result.y.requires_grad
    assert not result.residual.requires_grad
    torch.testing.assert_close(
        result.loss, inner_loss(net(z), target, z, SETTINGS[solver].get("rho", 0.0)).detach()
    )
    assert not result.loss.requires_grad
    assert z.grad is None and all(p.grad is None for p in net.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("solver", SETTINGS)
def test_cuda_equals_cpu(solver: str) -> None:
    net, target, z, v = problem("conv")
    expected = hypergradient(solver, net, target, z, v, **SETTINGS[solver]).grad
    net.cuda()
    result = hypergradient(solver, net, target.cuda(), z.cuda(), v.cuda(), **SETTINGS[solver]).grad
    assert relative(result.cpu(), expected) < 1e-9


def test_bad_settings_are_refused() -> None:
    net, target, z, v = problem("smooth")
    with pytest.raises(ValueError, match="'newton'; expected one of neumann, cg, gauss_newton, unroll"):
        hypergradient("newton", net, target, z, v)
    with pytest.raises(ValueError, match="at least one step"):
        unroll(privacy, net, target, z, steps=0, lr=0.1)
    assert implicit.SOLVERS == tuple(SETTINGS)
