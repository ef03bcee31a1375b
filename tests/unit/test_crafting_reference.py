"""The reference mode against the released formulas, computed anew from explicit dense derivatives."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev

from crafter_pl.crafting.craft import privacy_gradient
from crafter_pl.crafting.implicit import neumann
from crafter_pl.crafting.reference import (
    HYPERGRADIENT_WEIGHT,
    reference_craft,
    reference_critic_step,
    reference_hypergradient,
    reference_inversion,
)
from crafter_pl.crafting.settings import CraftNets


def make_critic() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, 2, 1), nn.InstanceNorm2d(4, affine=True), nn.LeakyReLU(0.2)),
        *(nn.Conv2d(4, 1, 4), nn.Flatten(0)),
    )


def nets(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, nn.Module]:
    """Return small random encoder, generator, amortizer (frozen, eval) and critic for 8x8 pictures."""
    torch.manual_seed(seed)
    generator = nn.Sequential(
        *(nn.Linear(4, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Unflatten(1, (4, 4, 4))),
        *(nn.ConvTranspose2d(4, 3, 4, 2, 1), nn.Sigmoid()),
    )
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3, 1, 1))
    amortizer = nn.Sequential(nn.Flatten(), nn.Linear(32, 4))
    with torch.no_grad():
        encoder(generator(2 * torch.randn(256, 4)))
        encoder[-1].weight.mul_(30)
    modules = {"encoder": encoder, "generator": generator, "amortizer": amortizer, "critic": make_critic()}
    return {name: module.to(dtype).eval().requires_grad_(False) for name, module in modules.items()}


def released_formula(
    modules: dict[str, nn.Module], features: Tensor, original: Tensor, z: Tensor, *, beta: float, terms: int
) -> Tensor:
    """Compute the released gradient from the dense Hessian and mixed derivative of the whole batch."""
    count, dim = z.shape
    render = nn.Sequential(modules["generator"], modules["encoder"])

    def mean_square(a: Tensor, b: Tensor) -> Tensor:
        return ((a.flatten(1) - b.flatten(1)).norm(dim=1) ** 2 / a[0].numel()).mean()

    def outer(features: Tensor, flat: Tensor) -> Tensor:
        privacy = -modules["critic"](modules["generator"](flat.view(count, dim))).mean()
        return 100 * privacy + 100 * beta * mean_square(features, original)

    def inner(flat: Tensor, features: Tensor) -> Tensor:
        return 2000 * (render(flat.view(count, dim)) - features).square().sum() / features.numel()

    flat = z.flatten()
    dense = hessian(inner)(flat, features)
    mixed = jacrev(torch.func.grad(inner), argnums=1)(flat, features)
    direct, v = torch.func.grad(outer, argnums=(0, 1))(features, flat)
    eigenvalues, basis = torch.linalg.eigh(dense)
    series = 1e-3 * sum((1 - 1e-3 * eigenvalues) ** j for j in range(terms + 1))
    series = basis @ torch.diag(series) @ basis.T
    return direct - torch.tensordot(v @ series, mixed, dims=1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_hypergradient_equals_the_released_formula(
    seed: int, count: int, dtype: torch.dtype, tolerance: float
) -> None:
    modules = nets(seed)
    z = torch.randn(count, 4, dtype=torch.float64)
    original = modules["encoder"](modules["generator"](z))
    original = original + 0.3 * original.std() * torch.randn_like(original)
    features = original + 0.1 * torch.randn_like(original)
    # beta so that privacy and utility have a part each, or the comparison says little about one of them
    privacy = released_formula(modules, features, original, z, beta=0.0, terms=120)
    utility = 200 * (features - original) / features.numel()
    beta = (privacy.norm() / utility.norm()).item()
    expected = released_formula(modules, features, original, z, beta=beta, terms=120)
    for module in modules.values():
        module.to(dtype)
    features, original, z = (x.to(dtype) for x in (features, original, z))
    parts = (modules["encoder"], modules["generator"], modules["critic"], features, original, z)
    result = reference_hypergradient(*parts, beta=beta)
    assert ((result.double() - expected).norm() / expected.norm()).item() < tolerance
    without = reference_hypergradient(*parts, beta=0.0)
    assert ((without.double() - privacy).norm() / privacy.norm()).item() < tolerance


def test_our_series_has_the_released_balance_at_alpha_over_the_scale() -> None:
    """configs/paper/crafter.yaml: alpha times 2000 / (n d) on sums is the release's alpha on its own loss."""
    modules, beta, alpha, terms = nets(3), 0.7, 1e-2, 20
    torch.manual_seed(4)
    z, original = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 2, 4, 4, dtype=torch.float64)
    features = original + 0.1 * torch.randn_like(original)
    parts = modules["encoder"], modules["generator"]
    released = reference_hypergradient(
        *parts, modules["critic"], features, original, z, beta=beta, alpha=alpha, terms=terms
    )
    craft_nets = CraftNets(*parts, modules["amortizer"], nn.Identity())
    leaf = z.clone().requires_grad_()
    _, v = privacy_gradient(modules["critic"], craft_nets.generator(leaf), leaf)
    scaled = alpha * HYPERGRADIENT_WEIGHT / features.numel()
    ours = neumann(craft_nets.render, features, z, v, alpha=scaled, terms=terms).grad
    assert ours.abs().max() > 0
    ours = ours + beta * 2 / features[0].numel() * (features - original)  # as in `craft_step`
    assert torch.allclose(100 / len(z) * ours, released, rtol=1e-8, atol=1e-12)


def test_inversion_is_momentum_on_the_batch_norm_with_a_prior() -> None:
    modules = nets(0)
    encoder, generator, amortizer, critic = modules.values()
    torch.manual_seed(1)
    features = encoder(generator(torch.randn(5, 4, dtype=torch.float64)))
    z = amortizer(features).requires_grad_()
    optimizer = torch.optim.SGD([z], lr=5e-3, momentum=0.9)
    for _ in range(80):
        images = generator(z)
        optimizer.zero_grad()
        (100 * torch.dist(encoder(images), features) - 100 * critic(images).mean()).backward()
        optimizer.step()
    found = reference_inversion(encoder, generator, amortizer, features, prior_critic=critic)
    torch.testing.assert_close(found, z.detach())
    plain = reference_inversion(encoder, generator, amortizer, features, prior_critic=None)
    assert not torch.allclose(plain, found)
    alone = reference_inversion(encoder, generator, amortizer, features[:1], prior_critic=None)
    assert not torch.allclose(alone[0], plain[0], rtol=1e-2), "the release couples the samples of a batch"


@pytest.mark.parametrize(("slope", "weight"), [(1.7, 20.0), (2.5, 40.0)])
def test_critic_step_weighs_the_penalty(slope: float, weight: float) -> None:
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False), nn.Flatten(0))
    w = nn.init.normal_(critic[1].weight.data)
    w *= slope / w.norm()
    real, fake = torch.rand(4, 3, 2, 2), torch.rand(4, 3, 2, 2)
    gradient = fake.flatten(1).mean(0) - real.flatten(1).mean(0) + weight * 2 * (slope - 1) * w[0] / slope
    expected = w - 0.01 * gradient
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.01)
    reference_critic_step(critic, optimizer, real, fake, torch.rand(4))
    torch.testing.assert_close(critic[1].weight.data, expected)


def craft(modules: dict[str, nn.Module], features: Tensor, **settings: object) -> Tensor:
    torch.manual_seed(11)  # the critic's initial weights
    few = {"beta": 0.5, "steps": 4, "inner_steps": 5, "critic_steps": 2, "critic_batch": 8, "terms": 6}
    return reference_craft(
        *(modules[name] for name in ("encoder", "generator", "amortizer")),
        features,
        critic=make_critic,
        prior_critic=modules["critic"],
        rng=torch.Generator().manual_seed(3),
        **(few | settings),
    )[0]


def test_craft_runs_and_repeats() -> None:
    modules = nets(2, torch.float32)
    features = modules["encoder"](modules["generator"](torch.randn(6, 4)))
    seen: list[int] = []
    made = craft(modules, features, on_step=lambda step, _: seen.append(step))
    assert seen == [0, 1, 2, 3]
    assert made.shape == features.shape and not made.requires_grad
    assert torch.equal(made, craft(modules, features))
    moved = (made - features).abs().max()
    assert 0 < moved <= 4 * 0.01 + 1e-4, "Adam moves an entry by at most lr a step"
    coupled = craft(modules, features[:3])
    assert not torch.allclose(coupled, made[:3]), "as released: a result depends on the batch"


def test_a_large_beta_keeps_the_features() -> None:
    modules = nets(2, torch.float32)
    features = modules["encoder"](modules["generator"](torch.randn(6, 4)))
    free, tied = (craft(modules, features, beta=beta, steps=25) - features for beta in (0.0, 1e4))
    assert tied.norm() < 0.5 * free.norm()


def test_defaults_are_the_released_constants() -> None:
    defaults = {name: p.default for name, p in inspect.signature(reference_craft).parameters.items()}
    released = {
        "steps": 450,
        "lr": 0.01,
        "inner_steps": 80,
        "inner_lr": 5e-3,
        "inner_momentum": 0.9,
        "critic_steps": 10,
        "critic_batch": 32,
        "critic_lr": 5e-4,
        "alpha": 1e-3,
        "terms": 120,
    }
    assert {name: defaults[name] for name in released} == released
