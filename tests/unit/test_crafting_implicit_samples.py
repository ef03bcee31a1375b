from __future__ import annotations

import pytest
import torch
from implicit_lab import F64, SETTINGS, dense, problem, relative
from torch import Tensor

from crafter_pl.crafting.implicit import Hypergradient, cg, hypergradient
from crafter_pl.crafting.inversion import inner_loss


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
    settings = SETTINGS[solver] | ({} if solver == "neumann" else {"iterations": 3})
    start = {"y0": 0.3 * v} if warm and solver != "neumann" else {}
    result = hypergradient(solver, net, target, z, v, **settings, **start)
    gauss, damping = solver == "gauss_newton", settings.get("damping", 0.0)
    _, a = dense(net, target, z, v, rho=0.1, damping=damping, scale=1.0, gauss=gauss)
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
    assert run("neumann", alpha=0.01, terms=7) == (8, 8 + 3)
    assert run("cg", damping=2.0, iterations=4) == (4, 4 + 3)
    assert run("cg", damping=2.0, iterations=4, y0=v) == (5, 5 + 3)
    # a J^T J product is two passes; one other: the recorded J^T w
    assert run("gauss_newton", damping=2.0, iterations=4) == (4, 2 * 4 + 1)
    assert run("gauss_newton", damping=2.0, iterations=4, y0=v) == (5, 2 * 5 + 1)


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


def test_negative_curvature_stays_with_its_sample() -> None:
    def render(z: Tensor) -> Tensor:
        return z.square()  # d2L/dz2 = 12 z^2 - 4 F

    target = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 4.0]], dtype=F64)
    z = torch.tensor([[1.0, 1.2], [0.1, 0.2], [1.0, 0.1]], dtype=F64)
    v = torch.tensor([[1.0, 2.0], [1.0, 1.0], [1.0, 0.1]], dtype=F64)
    result = cg(render, target, z, v, damping=0.0, iterations=5)
    torch.testing.assert_close(result.y[0], v[0] / (12 * z[0] ** 2 - 4 * target[0]))
    assert torch.equal(result.y[1], torch.zeros(2, dtype=F64)), "bent at once: its start"
    assert result.y[2].norm() > 0 and result.y.isfinite().all(), (
        "bent at the second direction: its last iterate"
    )
    hessian_2 = torch.diag(12 * z[2] ** 2 - 4 * target[2])
    true = (v[2] - hessian_2 @ result.y[2]).norm() / v[2].norm()
    torch.testing.assert_close(result.residual[2], true)
    damped = cg(render, target, z, v, damping=20.0, iterations=5)
    assert damped.residual.max() < 1e-8


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
