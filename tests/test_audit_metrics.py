"""Each metric against an independent implementation in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from crafter_pl.audit import metrics
from crafter_pl.errors import UserError


def _pictures(size: int, count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    original = torch.rand(count, 3, size, size, generator=generator)
    noise = torch.randn(original.shape, generator=generator) * 0.1
    return (original + noise).clamp(0, 1), original


def _numpy_ssim(a: np.ndarray, b: np.ndarray, window: int, sigma: float) -> float:
    """SSIM (Wang et al. 2004) with explicit loops over pixels; reflected borders."""
    half = window // 2
    line = np.exp(-((np.arange(window) - half) ** 2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    c1, c2, total = 0.01**2, 0.03**2, []
    for x, y in zip(a, b, strict=True):
        xp, yp = np.pad(x, half, mode="reflect"), np.pad(y, half, mode="reflect")
        for i, j in itertools.product(range(x.shape[0]), range(x.shape[1])):
            u, v = xp[i : i + window, j : j + window], yp[i : i + window, j : j + window]
            mu, mv = (kernel * u).sum(), (kernel * v).sum()
            var_u, var_v = (kernel * (u - mu) ** 2).sum(), (kernel * (v - mv) ** 2).sum()
            cov = (kernel * (u - mu) * (v - mv)).sum()
            total.append((2 * mu * mv + c1) * (2 * cov + c2) / ((mu**2 + mv**2 + c1) * (var_u + var_v + c2)))
    return float(np.mean(total))


@pytest.mark.parametrize(("size", "window", "sigma"), [(16, 11, 1.5), (8, 7, 6 / 7), (3, 3, 2 / 7)])
def test_ssim(size: int, window: int, sigma: float) -> None:
    images, originals = _pictures(size)
    value = metrics.ssim(images, originals)
    expected = [
        _numpy_ssim(a.double().numpy(), b.double().numpy(), window, sigma)
        for a, b in zip(images, originals, strict=True)
    ]
    np.testing.assert_allclose(value.numpy(), expected, atol=2e-4)
    assert metrics.ssim(originals, originals).tolist() == pytest.approx([1.0] * 3)


def test_ssim_refuses_tiny_pictures() -> None:
    with pytest.raises(ValueError, match="3 pixels"):
        metrics.ssim(*_pictures(2))


def test_psnr_uses_range_one_per_picture_and_is_capped() -> None:
    images, originals = _pictures(9)
    error = ((images - originals) ** 2).numpy().reshape(3, -1).mean(1)
    np.testing.assert_allclose(metrics.psnr(images, originals).numpy(), -10 * np.log10(error), rtol=1e-5)
    assert metrics.psnr(originals, originals).tolist() == [100.0] * 3


def test_topk_hits() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(50, 12)), rng.integers(0, 12, 50)
    rank = (logits > logits[np.arange(50), labels][:, None]).sum(1)
    for k in (1, 5, 12, 40):
        hits = metrics.topk_hits(torch.tensor(logits), torch.tensor(labels), k)
        np.testing.assert_array_equal(hits.numpy(), rank < k)
    with pytest.raises(ValueError, match="not finite"):
        metrics.topk_hits(torch.full((1, 3), float("nan")), torch.zeros(1, dtype=torch.long))


def test_panel_hits_is_any() -> None:
    hits = [torch.tensor([True, False, False]), torch.tensor([False, False, True])]
    assert metrics.panel_hits(hits).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="at least one"):
        metrics.panel_hits([])


def test_worst_case_chance_equals_the_mean_over_all_shifts() -> None:
    rng = np.random.default_rng(2)
    people, labels = 7, rng.integers(0, 7, 40)
    named = rng.integers(0, 7, (4, 40))
    shifted = [(named == (labels + shift) % people).any(0).mean() for shift in range(1, people)]
    chance = metrics.worst_case_chance(torch.tensor(named), torch.tensor(labels), people)
    assert chance.mean() == pytest.approx(float(np.mean(shifted)))
    by_picture = np.mean([(named == (labels + shift) % people).any(0) for shift in range(1, people)], axis=0)
    np.testing.assert_allclose(chance.numpy(), by_picture)
    assert chance.mean() > 1 / people, "four guesses have a higher chance level than one"
    with pytest.raises(ValueError, match="2 people"):
        metrics.worst_case_chance(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long), 1)


def test_identity_similarity_is_the_cosine() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 6, 5))
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    value = metrics.identity_similarity(torch.tensor(a), torch.tensor(b))
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-9)


def test_attribute_auc_leaves_out_and_names_single_class_attributes() -> None:
    rng = np.random.default_rng(4)
    scores, targets = np.round(rng.normal(size=(60, 3)) * 4, 0), rng.integers(0, 2, (60, 3))
    targets[:, 1] = 1
    result = metrics.attribute_auc(torch.tensor(scores), torch.tensor(targets), ["Male", "Young", "Smiling"])
    assert result.left_out == ["Young"]
    for column, name in ((0, "Male"), (2, "Smiling")):
        positive, negative = scores[targets[:, column] == 1, column], scores[targets[:, column] == 0, column]
        gap = positive[:, None] - negative[None]
        assert result.per_attribute[name] == pytest.approx(
            float(((gap > 0) + 0.5 * (gap == 0)).mean()), abs=1e-6
        )
    assert result.mean == pytest.approx(sum(result.per_attribute.values()) / 2)
    with pytest.raises(UserError, match="both classes"):
        metrics.attribute_auc(torch.zeros(3, 1), torch.ones(3, 1), ["Male"])


def test_auc_of_large_logits_keeps_their_order() -> None:
    """Sigmoid saturates: logits of 40 and 50 must not become ties."""
    scores = torch.tensor([[40.0], [50.0], [45.0], [60.0]])
    targets = torch.tensor([[0], [1], [0], [1]])
    assert metrics.attribute_auc(scores, targets, ["Male"]).mean == 1.0


def test_lpips_without_weights_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchmetrics.functional.image as library

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(library, "learned_perceptual_image_patch_similarity", refuse)
    with pytest.raises(UserError, match="--lpips false"):
        metrics.lpips(*_pictures(8))
