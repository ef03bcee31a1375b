"""The bootstrap against written-out resamples and scikit-learn, against scipy, and its coverage."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from crafter_pl.metrics import Bootstrapped, IdentityBootstrap
from crafter_pl.metrics.bootstrap import mean_of


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
    found = boot.mean(scores[:, 0])
    np.testing.assert_allclose(found.replicates, brute, rtol=1e-12)
    assert found.value == scores[:, 0].mean()


def test_auc_is_scikit_learns_in_written_out_resamples(sample: tuple[np.ndarray, ...]) -> None:
    identity, scores, targets = sample
    boot = IdentityBootstrap(identity, 30, seed=2)
    found = boot.auc(scores, targets)
    for a, own in enumerate(found):
        assert own.value == pytest.approx(roc_auc_score(targets[:, a], scores[:, a]), rel=1e-12)
        for b, value in enumerate(own.replicates):
            rows = _brute_rows(boot, b)
            both = 0 < targets[rows, a].sum() < len(rows)
            expected = roc_auc_score(targets[rows, a], scores[rows, a]) if both else np.nan
            np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert np.isnan(found[2].replicates).any(), "the rare attribute should be missing from some resample"
    mean = mean_of(found)
    assert not np.isnan(mean.replicates).any()
    assert mean.value == pytest.approx(np.mean([own.value for own in found]), rel=1e-12)
    np.testing.assert_allclose(
        mean.replicates, np.nanmean([own.replicates for own in found], axis=0), rtol=1e-12
    )


def test_chunks_do_not_change_the_auc(
    sample: tuple[np.ndarray, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    identity, scores, targets = sample
    boot = IdentityBootstrap(identity, 25)
    whole = boot.auc(scores, targets)
    monkeypatch.setattr("crafter_pl.metrics.bootstrap.CHUNK", 200)
    for one, other in zip(boot.auc(scores, targets), whole, strict=True):
        np.testing.assert_array_equal(one.replicates, other.replicates)


def test_an_interval_is_scipys_percentile_bootstrap() -> None:
    """Of people with one picture each, up to the luck of the draws."""
    values = np.random.default_rng(0).normal(size=50)
    found = IdentityBootstrap(np.arange(50), 20_000, seed=1).mean(values).estimate()
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    few = Bootstrapped(found.value, IdentityBootstrap(np.arange(50), 20_000).mean(values).replicates)
    assert few.estimate(tries=5).low < found.low and few.estimate(tries=5).high > found.high, "Bonferroni"


def test_differences_are_paired() -> None:
    values = np.random.default_rng(0).random(36)
    boot = IdentityBootstrap(np.repeat(np.arange(12), 3), 50)
    gap = (boot.mean(values + 1) - boot.mean(values)).estimate()
    assert (gap.value, gap.low, gap.high) == pytest.approx((1, 1, 1))


def test_same_seed_same_interval_other_seed_other() -> None:
    identity = np.repeat(np.arange(12), 3)
    values = np.random.default_rng(0).random(36)
    first, same, other = (
        IdentityBootstrap(identity, 200, seed).mean(values).estimate() for seed in (5, 5, 6)
    )
    assert first == same != other and first.low < first.value < first.high


def test_coverage_is_that_of_people_not_pictures() -> None:
    """Pictures of a person are all alike here: the interval must cover the true mean 95 % of the time."""
    rng, covered, naive = np.random.default_rng(0), 0, 0
    identity = np.repeat(np.arange(40), 5)
    for _ in range(300):
        person = rng.normal(size=40)
        found = IdentityBootstrap(identity, 300, seed=0).mean(person[identity]).estimate()
        covered += found.low <= 0 <= found.high
        found = IdentityBootstrap(np.arange(200), 300, seed=0).mean(person[identity]).estimate()
        naive += found.low <= 0 <= found.high
    assert 0.89 <= covered / 300 <= 0.98
    assert naive / 300 < 0.75, "a bootstrap over pictures would be far too narrow"


def test_a_full_size_auc_interval_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    boot = IdentityBootstrap(rng.integers(0, 60, 500), 1000)
    start = time.process_time()  # others may keep the machine busy
    found = boot.auc(rng.normal(size=(500, 40)), rng.random((500, 40)) < 0.3)
    assert len(found) == 40 and found[0].replicates.shape == (1000,)
    assert time.process_time() - start < 10


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="people and resamples"):
        IdentityBootstrap([], 10)
    with pytest.raises(ValueError, match="people and resamples"):
        IdentityBootstrap([1, 2], 0)
    with pytest.raises(ValueError, match="undefined"):
        Bootstrapped(0.5, np.array([np.nan])).estimate()
