"""Who is named and how alike: TAR at a fixed FAR against scikit-learn and loops over pairs; hits; chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve, top_k_accuracy_score
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics import CosineSimilarity

from crafter_pl import metrics
from crafter_pl.metrics import IdentityBootstrap, accepted, tar_at_far


def embeddings(seed: int, noise: float, people: int = 7, pictures: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Unit embeddings of reconstructions and originals around their people's centres, and the people."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(people * pictures, generator=generator)
    identity = torch.arange(people).repeat_interleave(pictures)[order]
    centre = torch.randn(people, 5, generator=generator)[identity]
    made = [normalize(centre + noise * torch.randn(centre.shape, generator=generator)) for _ in range(2)]
    return made[0], made[1], identity * 10


def by_loops(scores: np.ndarray, group: np.ndarray, drawn: np.ndarray, far: float) -> float:
    """Every pair as often as its people were drawn, in a list."""
    genuine, impostor = [], []
    for i, j in np.ndindex(scores.shape):
        if i != j and group[i] == group[j]:
            genuine += [scores[i, j]] * int(drawn[group[i]])
        elif group[i] != group[j]:
            impostor += [scores[i, j]] * int(drawn[group[i]] * drawn[group[j]])
    if not impostor:
        return float("nan")
    fits = [t for t in sorted(set(impostor)) if np.mean(np.array(impostor) > t) <= far]
    return float(np.mean(np.array(genuine) > fits[0]))


@pytest.mark.parametrize(("noise", "far"), [(0.5, 0.1), (1.0, 0.05), (2.0, 0.3)])
def test_tar_is_that_of_loops_over_pairs_in_every_weighting(noise: float, far: float) -> None:
    made, originals, identity = embeddings(3, noise)
    boot = IdentityBootstrap(identity, 40, seed=1)
    scores = (made @ originals.T).double().numpy()
    found = tar_at_far(scores, identity, far, boot.weights)
    expected = [by_loops(scores, boot.group, drawn, far) for drawn in boot.weights]
    np.testing.assert_allclose(found, expected)
    plain = tar_at_far(scores, identity, far)
    assert plain is not None and plain[0] == pytest.approx(by_loops(scores, boot.group, np.ones(7), far))


def test_tar_is_on_scikit_learns_curve() -> None:
    made, originals, identity = embeddings(7, 1.0, people=12)
    same = identity[:, None] == identity[None]
    pairs = (~same | ~torch.eye(len(identity), dtype=torch.bool)).numpy()
    scores = (made @ originals.T).double().numpy()
    far, tar, _ = roc_curve(same.numpy()[pairs], scores[pairs], drop_intermediate=False)
    found = tar_at_far(scores, identity, 0.05)
    assert found is not None and found[0] == pytest.approx(tar[far <= 0.05].max())
    metric = metrics.TarAtFar()
    for rows in torch.arange(len(identity)).split(10):
        metric.update(made[rows], originals[rows], identity[rows])
    assert float(metric.compute()) == pytest.approx(float(tar_at_far(scores, identity)[0]))


def test_known_rates() -> None:
    made, originals, identity = embeddings(0, 0.01, people=30)
    boot = IdentityBootstrap(identity, 50)
    assert boot.tar(made @ originals.T).estimate() == metrics.Estimate(1.0, 1.0, 1.0)
    blind = normalize(torch.randn(len(identity), 5, generator=torch.Generator().manual_seed(0)))
    assert boot.tar(blind @ originals.T).value < 0.08, "a matcher that sees nothing is at about the FAR"


def test_a_reconstruction_is_not_matched_with_its_own_original() -> None:
    """Of random embeddings each equals its own original alone: no other picture of the person is near."""
    blind = normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(1)))
    found = tar_at_far(blind @ blind.T, torch.arange(20).repeat_interleave(3))
    assert found is not None and found[0] < 0.1


def test_without_pairs_there_is_no_rate() -> None:
    made, originals, _ = embeddings(0, 1.0)
    assert tar_at_far(made @ originals.T, torch.arange(21)) is None
    assert tar_at_far(made @ originals.T, torch.zeros(21)) is None
    assert IdentityBootstrap(torch.arange(21), 10).tar(made @ originals.T) is None


def test_a_resample_of_one_person_is_left_out() -> None:
    made, originals, identity = embeddings(5, 0.5, people=2)
    boot = IdentityBootstrap(identity, 60)
    assert (boot.weights == 2).any(), "some resamples draw one of the two people twice"
    found = boot.tar(made @ originals.T)
    assert found is not None and np.isnan(found.replicates).any()
    assert np.isfinite([found.estimate().low, found.estimate().high]).all()


def test_a_matcher_with_a_threshold_of_its_own() -> None:
    made, originals, identity = embeddings(2, 1.0)
    scores = (made @ originals.T).double().numpy()
    genuine, impostor = accepted(scores, identity, 0.3)
    for row, person in enumerate(identity.tolist()):
        others = [column for column in range(21) if column != row and identity[column] == person]
        assert genuine[row] == np.mean([scores[row, column] > 0.3 for column in others])
        strangers = [column for column in range(21) if identity[column] != person]
        assert impostor[row] == np.mean([scores[row, column] > 0.3 for column in strangers])
    assert np.isnan(accepted(scores, torch.arange(21), 0.3)[0]).all(), "nobody has another picture"


def test_topk_hits() -> None:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(50, 12)), rng.integers(0, 12, 50)
    rank = (logits > logits[np.arange(50), labels][:, None]).sum(1)
    for k in (1, 5, 12, 40):
        hits = metrics.topk_hits(torch.tensor(logits), torch.tensor(labels), k)
        np.testing.assert_array_equal(hits.numpy(), rank < k)
        if k < 12:
            theirs = top_k_accuracy_score(labels, logits, k=k, labels=np.arange(12))
            assert float(hits.double().mean()) == pytest.approx(theirs)
    with pytest.raises(ValueError, match="not finite"):
        metrics.topk_hits(torch.full((1, 3), float("nan")), torch.zeros(1, dtype=torch.long))


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
    metric = CosineSimilarity(reduction="mean")
    for rows in ([0, 1], [2, 3, 4, 5]):
        metric.update(torch.tensor(a[rows]), torch.tensor(b[rows]))
    assert float(metric.compute()) == pytest.approx(expected.mean(), rel=1e-6)
