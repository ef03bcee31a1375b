"""The bootstrap against brute force, against torchmetrics, and its coverage."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from crafter_pl.audit.bootstrap import IdentityBootstrap, figure, row_means


def _pair_auc(scores: np.ndarray, targets: np.ndarray) -> float:
    """AUC by its definition: compare every positive with every negative."""
    positive, negative = scores[targets > 0.5], scores[targets < 0.5]
    if not positive.size or not negative.size:
        return float("nan")
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def _brute_rows(boot: IdentityBootstrap, resample: int) -> np.ndarray:
    """Rows of a resample written out: all pictures of each drawn person, as often as it was drawn."""
    counts = boot.weights[resample].astype(int)
    return np.concatenate([np.repeat(np.flatnonzero(boot.group == p), n) for p, n in enumerate(counts) if n])


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Identity, scores with many ties, targets; attribute 2 is rare, so that some resamples lack it."""
    rng = np.random.default_rng(3)
    identity = rng.integers(0, 9, 70) * 11
    targets = rng.random((70, 3)) < [0.5, 0.3, 0.02]
    targets[0, 2] = True
    scores = np.round(rng.normal(size=(70, 3)) + targets, 1)
    return identity, scores, targets.astype(np.float32)


def test_means_equal_written_out_resamples(sample: tuple[np.ndarray, ...]) -> None:
    identity, scores, _ = sample
    boot = IdentityBootstrap(identity, 20, seed=1)
    brute = [scores[_brute_rows(boot, b), 0].mean() for b in range(20)]
    np.testing.assert_allclose(boot.mean_replicates(scores[:, 0]), brute, rtol=1e-12)


def test_auc_equals_written_out_resamples_and_torchmetrics(sample: tuple[np.ndarray, ...]) -> None:
    identity, scores, targets = sample
    boot = IdentityBootstrap(identity, 30, seed=2)
    fast = boot.auc_replicates(scores, targets)
    for b in range(30):
        rows = _brute_rows(boot, b)
        for a in range(3):
            np.testing.assert_allclose(fast[b, a], _pair_auc(scores[rows, a], targets[rows, a]), rtol=1e-12)
        library = binary_auroc(torch.tensor(scores[rows, 0]).sigmoid(), torch.tensor(targets[rows, 0]).long())
        assert fast[b, 0] == pytest.approx(float(library), abs=1e-6)
    assert np.isnan(fast).any(), "the rare attribute should be missing from some resample"
    assert not np.isnan(row_means(fast)).any()


def test_chunks_do_not_change_the_auc(
    sample: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, scores, targets = sample
    boot = IdentityBootstrap(identity, 25)
    whole = boot.auc_replicates(scores, targets)
    monkeypatch.setattr("crafter_pl.audit.bootstrap._CHUNK", 200)
    np.testing.assert_array_equal(boot.auc_replicates(scores, targets), whole)


def test_same_seed_same_interval_other_seed_other() -> None:
    identity = np.repeat(np.arange(12), 3)
    values = np.random.default_rng(0).random(36)
    first = IdentityBootstrap(identity, 200, seed=5).mean(values)
    assert first == IdentityBootstrap(identity, 200, seed=5).mean(values)
    assert first != IdentityBootstrap(identity, 200, seed=6).mean(values)
    assert first["ci95"][0] < first["value"] < first["ci95"][1]


def test_coverage_is_that_of_people_not_pictures() -> None:
    """Pictures of a person are all alike here: the interval must cover the true mean 95 % of the time."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    identity = np.repeat(np.arange(40), 5)
    for _ in range(300):
        person = rng.normal(size=40)
        low, high = IdentityBootstrap(identity, 300, seed=0).mean(person[identity])["ci95"]
        covered += low <= 0 <= high
        low, high = IdentityBootstrap(np.arange(200), 300, seed=0).mean(person[identity])["ci95"]
        naive += low <= 0 <= high
    assert 0.89 <= covered / 300 <= 0.98
    assert naive / 300 < 0.75, "a bootstrap over pictures would be far too narrow"


def test_a_full_size_auc_interval_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    boot = IdentityBootstrap(rng.integers(0, 60, 500), 1000)
    start = time.process_time()  # others may keep the machine busy
    replicates = boot.auc_replicates(rng.normal(size=(500, 40)), rng.random((500, 40)) < 0.3)
    assert replicates.shape == (1000, 40)
    assert time.process_time() - start < 10


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="people and resamples"):
        IdentityBootstrap([], 10)
    with pytest.raises(ValueError, match="people and resamples"):
        IdentityBootstrap([1, 2], 0)
    with pytest.raises(ValueError, match="undefined"):
        figure(0.5, np.array([np.nan]))
