"""Inversion: closed forms, torch's own optimizers as oracles, and samples that do not meet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from crafter_pl.crafting.inversion import inner_loss, invert, record


def conv_net() -> nn.Sequential:
    """Return a small frozen generator and encoder: transposed convolution, BatchNorm, ReLU, sigmoid."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Linear(6, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Unflatten(1, (4, 4, 4))),
        *(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Sigmoid()),
        *(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, 1, 1)),
    ).double()
    with torch.no_grad():
        net.train()(2 * torch.randn(256, 6, dtype=torch.float64))
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    return conv_net()


@pytest.fixture(scope="module")
def problem(net: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Return features and starts of 7 samples of very different difficulty."""
    torch.manual_seed(1)
    z = torch.randn(7, 6, dtype=torch.float64) * torch.linspace(0.2, 3, 7, dtype=torch.float64)[:, None]
    return net(z), torch.randn(7, 6, dtype=torch.float64)


def linear() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(2)
    render = nn.Linear(4, 9).double().requires_grad_(False)
    return render, torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)


def test_reaches_the_ridge_solution() -> None:
    render, target, z0 = linear()
    normal = render.weight.T @ render.weight + 0.2 * torch.eye(4, dtype=torch.float64)
    expected = torch.linalg.solve(normal, (target - render.bias) @ render.weight, left=False)
    result = invert(render, target, z0, steps=3000, lr=0.01, prior_weight=0.2)
    torch.testing.assert_close(result.z, expected, rtol=0, atol=1e-5)
    by_hand = (target - render(expected)).square().sum(1) + 0.2 * expected.square().sum(1)
    torch.testing.assert_close(result.loss, by_hand)


def test_equals_torch_optim(net: nn.Sequential, problem: tuple[Tensor, Tensor]) -> None:
    target, z0 = problem
    z = z0.clone().requires_grad_()
    reference = torch.optim.Adam([z], lr=0.05)
    for _ in range(25):
        reference.zero_grad()
        inner_loss(net(z), target, z, 0.1).sum().backward()
        reference.step()
    result = invert(net, target, z0, steps=25, lr=0.05, prior_weight=0.1)
    torch.testing.assert_close(result.z, z.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("keep_best", [False, True])
def test_samples_do_not_meet(net: nn.Sequential, problem: tuple[Tensor, Tensor], keep_best: bool) -> None:
    target, z0 = problem
    settings = {"steps": 30, "lr": 0.02, "keep_best": keep_best, "prior_weight": 0.01}
    batch = invert(net, target, z0, **settings)
    for i in range(7):
        alone = invert(net, target[i : i + 1], z0[i : i + 1], **settings)
        torch.testing.assert_close(alone.z[0], batch.z[i], rtol=0, atol=1e-10)
        torch.testing.assert_close(alone.loss[0], batch.loss[i], rtol=0, atol=1e-10)


def test_keep_best_is_per_sample_and_never_worse(net: nn.Sequential, problem: tuple[Tensor, Tensor]) -> None:
    target, z0 = problem
    lasts = [invert(net, target, z0, steps=k, lr=0.3) for k in range(13)]
    losses = torch.stack([last.loss for last in lasts])
    best = invert(net, target, z0, steps=12, lr=0.3, keep_best=True)
    torch.testing.assert_close(best.loss, losses.min(0).values)
    assert len(set(losses.argmin(0).tolist())) > 1
    torch.testing.assert_close(best.loss, inner_loss(net(best.z), target, best.z))
    assert torch.equal(lasts[0].z, z0)
    silent = invert(net, target, z0, steps=12, lr=0.3, evaluate=False)
    assert torch.equal(silent.z, lasts[12].z) and silent.loss.isnan().all()


def test_a_recorded_pass_saves_one(net: nn.Sequential, problem: tuple[Tensor, Tensor]) -> None:
    target, z0 = problem
    calls: list[int] = []

    def render(z: Tensor) -> Tensor:
        calls.append(len(z))
        return net(z)

    fresh = invert(render, target, z0, steps=5, lr=0.05, evaluate=False)
    assert len(calls) == 5
    recorded = record(render, z0)
    calls.clear()
    shared = invert(render, target, recorded, steps=5, lr=0.05, evaluate=False)
    assert len(calls) == 4 and torch.equal(shared.z, fresh.z)
    assert torch.equal(recorded.z, z0), "the start is not modified"
    assert torch.equal(invert(render, target, recorded, steps=0, lr=0.05).z, z0)


def test_state_carries_the_moments_on(net: nn.Sequential, problem: tuple[Tensor, Tensor]) -> None:
    target, z0 = problem
    straight = invert(net, target, z0, steps=20, lr=0.02)
    first = invert(net, target, z0, steps=8, lr=0.02)
    second = invert(net, target, first.z, steps=12, lr=0.02, state=first.state)
    assert torch.equal(straight.z, second.z)
    again = invert(net, target, first.z, steps=12, lr=0.02, state=first.state)
    assert torch.equal(again.z, second.z), "a state handed in is not modified"


def test_works_under_no_grad_in_float32_and_leaves_its_inputs(problem: tuple[Tensor, Tensor]) -> None:
    target, z0 = (x.float() for x in problem)
    module, before = conv_net().float().requires_grad_(True), z0.clone()
    with torch.no_grad():
        result = invert(module, target, z0, steps=10, lr=0.05)
    assert result.z.dtype == torch.float32 and not result.z.requires_grad and torch.equal(z0, before)
    assert (result.loss < inner_loss(module(z0), target, z0)).all()
    assert all(p.grad is None for p in module.parameters())


def test_one_latent_a_feature(net: nn.Sequential, problem: tuple[Tensor, Tensor]) -> None:
    target, z0 = problem
    with pytest.raises(ValueError, match="3 samples, target 7"):
        invert(net, target, z0[:3], steps=1, lr=0.1)
