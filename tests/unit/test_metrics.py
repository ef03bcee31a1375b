"""Metrics of pictures and attributes against scikit-learn and loops in numpy; their torchmetrics forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from crafter_pl import metrics
from crafter_pl.errors import UserError
from crafter_pl.metrics import attribute_auc, attribute_loss


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


def test_attribute_auc_is_scikit_learns_with_weights_and_ties() -> None:
    rng = np.random.default_rng(4)
    scores, targets = np.round(rng.normal(size=(60, 3)) * 4, 0), rng.integers(0, 2, (60, 3))
    targets[:, 1] = 1
    found = metrics.attribute_auc(torch.tensor(scores), torch.tensor(targets))
    assert np.isnan(found[1]), "one class alone has no AUC"
    weights = rng.integers(0, 4, (5, 60))
    weighted = metrics.attribute_auc(scores, targets, weights)
    assert weighted.shape == (5, 3) and np.isnan(weighted[:, 1]).all()
    for column in (0, 2):
        expected = roc_auc_score(targets[:, column], scores[:, column])
        assert found[column] == pytest.approx(expected, rel=1e-12)
        for own, row in zip(weighted, weights, strict=True):
            expected = roc_auc_score(targets[:, column], scores[:, column], sample_weight=row)
            assert own[column] == pytest.approx(expected, rel=1e-12)


def test_auc_of_large_logits_keeps_their_order() -> None:
    """Sigmoid saturates: logits of 40 and 50 must not become ties."""
    scores, targets = torch.tensor([[40.0], [50.0], [45.0], [60.0]]), torch.tensor([[0], [1], [0], [1]])
    assert metrics.attribute_auc(scores, targets).tolist() == [1.0]


def test_the_mean_auc_as_a_metric_is_that_of_all_batches() -> None:
    rng, metric = torch.Generator().manual_seed(0), metrics.AttributeAUC()
    scores, targets = torch.randn(50, 4, generator=rng), torch.rand(50, 4, generator=rng) < 0.4
    targets[:, 3] = True
    for part in torch.arange(50).split(7):
        metric.update(scores[part], targets[part].float())
    expected = np.mean([roc_auc_score(targets[:, column], scores[:, column]) for column in range(3)])
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-6)
    metric.reset()
    metric.update(scores[:, 3:], targets[:, 3:])
    assert float(metric.compute()) == 0.5, "no attribute has both classes"


def test_lpips_without_weights_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    name = "crafter_pl.metrics.image.learned_perceptual_image_patch_similarity"
    monkeypatch.setattr(name, refuse)
    with pytest.raises(UserError, match="--lpips false"):
        metrics.lpips(*_pictures(8))


def test_unknown_attributes_are_left_out() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(40, 3)), (rng.random((40, 3)) > 0.5).astype(float)
    gone = rng.random((40, 3)) < 0.4
    masked = np.where(gone, np.nan, targets)
    found = attribute_auc(scores, masked)
    for column in range(3):
        kept = ~gone[:, column]
        assert found[column] == pytest.approx(attribute_auc(scores[kept], targets[kept])[column])
    logits, labels = torch.tensor(scores), torch.tensor(masked)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[~gone], torch.tensor(targets)[~gone]
    )
    logits.requires_grad_(True)
    loss = attribute_loss(logits, labels)
    assert loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert logits.grad is not None and bool((logits.grad[gone] == 0).all())
    assert bool(logits.grad[~gone].abs().min() > 0)
    assert attribute_loss(logits, labels * float("nan")).item() == 0
