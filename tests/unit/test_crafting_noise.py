"""Keyed noise: normal by its moments, and a function of its key alone."""

from __future__ import annotations

import math

import pytest
import torch

from crafter_pl.crafting.noise import keyed_bits, keyed_normal, natural_log, sin_cos

INDEX = torch.arange(2000)


def test_moments_and_quantiles_are_normal() -> None:
    x = keyed_normal(3, INDEX, 301, dtype=torch.float64).flatten()
    n = len(x)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean().item() - expected) < 4 * math.sqrt(variance / n), power
    edges = torch.linspace(-3, 3, 25, dtype=torch.float64)
    empirical = torch.searchsorted(x.sort().values, edges).double() / n
    assert (empirical - torch.special.ndtr(edges)).abs().max() < 2 / math.sqrt(n)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((0, INDEX, 0), (1, INDEX, 0)),
        ((0, INDEX, 0), (0, INDEX, 1)),
        ((0, INDEX, 0), (0, INDEX + 1, 0)),
        ((0, INDEX, 1), (1, INDEX, 0)),
    ],
    ids=["seed", "stream", "neighbour", "seed-against-stream"],
)
def test_different_keys_are_uncorrelated(left: tuple, right: tuple) -> None:
    a = keyed_normal(left[0], left[1], 64, left[2], dtype=torch.float64).flatten()
    b = keyed_normal(right[0], right[1], 64, right[2], dtype=torch.float64).flatten()
    assert not torch.equal(a, b)
    for f, g in ((a, b), (a.square(), b.square())):
        assert abs(torch.corrcoef(torch.stack((f, g)))[0, 1].item()) < 4 / math.sqrt(len(a))


def test_columns_are_uncorrelated() -> None:
    x = keyed_normal(0, torch.arange(20000), 16, dtype=torch.float64)
    off_diagonal = torch.corrcoef(x.T) - torch.eye(16, dtype=torch.float64)
    assert off_diagonal.abs().max() < 5 / math.sqrt(20000)


def test_rows_do_not_depend_on_batch_order_or_dim() -> None:
    whole = keyed_normal(7, INDEX, 37)
    some = torch.tensor([1999, 0, 12, 12, 513])
    assert torch.equal(keyed_normal(7, some, 37), whole[some])
    assert all(torch.equal(keyed_normal(7, INDEX[i : i + 1], 37)[0], whole[i]) for i in (0, 1, 1000))
    assert torch.equal(keyed_normal(7, some, 8), whole[some, :8])


def test_bytes_are_those_of_version_1() -> None:
    """A change of these would change every crafted feature."""
    assert keyed_bits(0, torch.tensor([0]), 2).tolist() == [[285019885785139693, -6170827708979292394]]
    x = keyed_normal(42, torch.tensor([7]), 3, stream=1, dtype=torch.float64)
    assert [value.hex() for value in x[0].tolist()] == [
        "0x1.056058e584c49p-5",
        "-0x1.1888fb4b0ea12p-1",
        "0x1.26cd3b759cdc2p-1",
    ]


def test_extreme_keys() -> None:
    words = keyed_bits(0, torch.tensor([0]), 2)
    assert words.tolist() == keyed_bits(2**64, torch.tensor([0]), 2).tolist()
    extreme = torch.tensor([-1, 0, 2**63 - 1, -(2**63)])
    x = keyed_normal(-5, extreme, 1000, stream=2**40, dtype=torch.float32)
    assert x.shape == (4, 1000) and x.dtype == torch.float32 and x.isfinite().all()
    assert keyed_normal(0, torch.empty(0, dtype=torch.int64), 3).shape == (0, 3)
    if torch.cuda.is_available():
        assert torch.equal(keyed_normal(0, INDEX.cuda(), 9).cpu(), keyed_normal(0, INDEX, 9))


def test_elementary_functions_match_the_library() -> None:
    u = torch.cat(
        (torch.rand(10000, dtype=torch.float64), torch.tensor([2.0**-53, 1.0], dtype=torch.float64))
    )
    torch.testing.assert_close(natural_log(u), u.log(), rtol=4e-15, atol=1e-16)
    angle = (u - 0.5) * (math.pi / 2)
    sine, cosine = sin_cos(angle)
    torch.testing.assert_close(sine, angle.sin(), rtol=0, atol=4e-16)
    torch.testing.assert_close(cosine, angle.cos(), rtol=0, atol=4e-16)


def test_bad_index_is_refused() -> None:
    with pytest.raises(ValueError, match=r"int64 \(N,\)"):
        keyed_normal(0, torch.zeros(3), 2)
    with pytest.raises(ValueError, match=r"int64 \(N,\)"):
        keyed_normal(0, torch.zeros(3, 1, dtype=torch.int64), 2)
