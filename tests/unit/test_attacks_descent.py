"""The shared descent and the projection on the l1 ball, against references."""

import pytest
import torch
from closeness import near

from crafter_pl.attacks.descent import descend, project_l1


def reference_projection(x, radius):
    """One vector by bisection on the soft threshold's height."""
    if x.abs().sum() <= radius:
        return x.clone()
    low, high = 0.0, x.abs().max().item()
    for _ in range(200):
        middle = (low + high) / 2
        if (x.abs() - middle).clamp(min=0).sum() > radius:
            low = middle
        else:
            high = middle
    return x.sign() * (x.abs() - high).clamp(min=0)


@pytest.mark.parametrize("radius", [0.0, 0.01, 1.0, 7.0, 1e6])
def test_projection_against_bisection(radius):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 33, generator=generator, dtype=torch.float64)
    x *= torch.logspace(-3, 2, 8, dtype=torch.float64)[:, None]
    x[0] = 0
    x[1, 5:] = 0
    x[2] = x[2, 0]  # ties
    found = project_l1(x, radius)
    expected = torch.stack([reference_projection(row, radius) for row in x])
    assert torch.allclose(found, expected, atol=1e-10)
    assert (found.abs().sum(1) <= radius + 1e-9).all()
    inside = x.abs().sum(1) <= radius
    assert torch.equal(found[inside], x[inside])


def test_projection_is_the_nearest_point():
    """Optimality: no point of the ball makes an obtuse angle's complement: <x - p, q - p> <= 0."""
    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(5, 12, generator=generator, dtype=torch.float64)
    p = project_l1(x, 2.0)
    assert torch.allclose(p.abs().sum(1), torch.full((5,), 2.0, dtype=torch.float64))
    corners = 2.0 * torch.cat([torch.eye(12), -torch.eye(12)]).double()  # the ball is their convex hull
    for row, nearest in zip(x, p, strict=True):
        assert ((corners - nearest) @ (row - nearest) <= 1e-9).all()


def test_projection_of_each_sample_is_its_own():
    x = torch.randn(6, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = project_l1(x, 3.0)
    assert near(torch.cat([project_l1(row[None], 3.0) for row in x]), whole)


def test_descent_finds_the_minimum_and_keeps_the_best():
    goal = torch.tensor([[1.0, -2.0], [0.5, 3.0], [0.0, 0.0]])
    weight = torch.tensor([1.0, 100.0, 1.0])

    def objective(x):
        return weight * (x - goal).square().sum(1)

    start = torch.zeros(3, 2)
    best, loss = descend(objective, start, steps=400, lr=0.05)
    assert torch.allclose(best, goal, atol=1e-2) and torch.allclose(loss, objective(best))
    assert torch.equal(best[2], start[2]) and loss[2] == 0  # it began at its best
    assert torch.equal(start, torch.zeros(3, 2))
    assert torch.equal(descend(objective, start, steps=0, lr=1.0)[0], start)
    iterates = []

    def recorded(x):
        iterates.append(objective(x.detach()))
        return objective(x)

    _, loss = descend(recorded, start, steps=7, lr=3.0)  # far too long: it jumps about
    assert torch.equal(loss, torch.stack(iterates).min(0).values) and (loss < iterates[-1]).any()


def test_descent_stays_where_it_is_told_to():
    seen = []

    def objective(x):
        seen.append(x.detach().clone())
        return (x - 5).square().sum(1)

    best, _ = descend(objective, torch.zeros(2, 3), steps=20, lr=0.5, project=lambda x: x.clamp(0, 1))
    assert torch.equal(best, torch.ones(2, 3))
    assert all(x.min() >= 0 and x.max() <= 1 for x in seen) and len(seen) == 21


def test_descent_of_each_sample_is_its_own():
    goal = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = torch.zeros(4, 3, dtype=torch.float64)

    def of(rows):
        return descend(lambda x: (x - goal[rows]).pow(4).sum(1), start[rows], steps=13, lr=0.1)[0]

    whole = of(torch.arange(4))
    assert near(torch.cat([of(torch.tensor([row])) for row in range(4)]), whole, steps=13)
