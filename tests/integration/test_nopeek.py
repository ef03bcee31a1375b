"""NoPeek: the distance correlation, and a training that lowers it."""

import pytest
import torch

from crafter_pl.defenses.baselines.nopeek import NoPeek, distance_correlation
from crafter_pl.errors import UserError


def naive(x, y):
    """Szekely's definition, pair by pair."""
    n = len(x)

    def centred(v):
        d = [[float((v[i] - v[j]).norm()) for j in range(n)] for i in range(n)]
        rows = [sum(row) / n for row in d]
        mean = sum(rows) / n
        return [[d[i][j] - rows[i] - rows[j] + mean for j in range(n)] for i in range(n)]

    def product(a, b):
        return sum(a[i][j] * b[i][j] for i in range(n) for j in range(n)) / n**2

    a, b = centred(x), centred(y)
    return (product(a, b) / (product(a, a) * product(b, b)) ** 0.5) ** 0.5


def test_distance_correlation_is_szekelys():
    x, y = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    y = y + x
    assert distance_correlation(x, y).item() == pytest.approx(naive(x, y), rel=1e-4)
    shaped = x.view(12, 1, 5, 1), y.view(12, 5, 1, 1)
    assert distance_correlation(*shaped).item() == pytest.approx(naive(x, y), rel=1e-4)


def test_distance_correlation_of_equal_and_of_independent_samples():
    x, y = torch.randn(2, 400, 1, generator=torch.Generator().manual_seed(0))
    assert distance_correlation(x, 3 * x + 1).item() == pytest.approx(1, abs=1e-4)
    assert distance_correlation(x, x.square()) > 0.3  # not linear, and still seen
    assert distance_correlation(x, y) < 0.15
    constant = torch.ones(400, 1, requires_grad=True)
    value = distance_correlation(x, constant)
    value.backward()
    assert value < 0.01 and torch.isfinite(constant.grad).all()


def test_mixed_precision_does_not_eat_the_correlation():
    """Distances are small beside the features themselves, in bfloat16 they would cancel."""
    x, y = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    y = (1 + 0.01 * (x + y)).requires_grad_()
    exact = distance_correlation(x, y)
    (gradient,) = torch.autograd.grad(exact, y)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = distance_correlation(x, y)
    assert mixed.item() == pytest.approx(exact.item(), rel=1e-4)
    assert torch.allclose(torch.autograd.grad(mixed, y)[0], gradient, rtol=1e-3, atol=1e-5)


def test_training_lowers_the_correlation(game):
    stage, logged = game(NoPeek, steps=20, lambda_=0.9, lr=1e-3)
    assert stage.adversary is None
    assert logged[-1]["train/correlation"] < 0.9 * logged[0]["train/correlation"]
    assert game(NoPeek, steps=20, lambda_=0.0, lr=1e-3)[1][-1]["train/task"] < logged[-1]["train/task"]


@pytest.mark.parametrize("bad", [1.0, -0.1])
def test_settings_out_of_range(bad, tiny):
    with pytest.raises(UserError, match=f"lambda_ {bad}"):
        NoPeek(tiny.ckpt("task"), lambda_=bad)
