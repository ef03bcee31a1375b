"""TAR at a fixed FAR against loops over pairs, and on scores whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from crafter_pl.audit import verification
from crafter_pl.audit.bootstrap import IdentityBootstrap
from crafter_pl.audit.verification import tar_at_far


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
def test_tar_is_that_of_loops_over_pairs_in_every_resample(
    noise: float, far: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, originals, identity = embeddings(3, noise)
    boot = IdentityBootstrap(identity, 40, seed=1)
    kept = []
    monkeypatch.setattr(
        verification,
        "figure",
        lambda value, replicates: kept.append((value, replicates)) or {"value": value, "ci95": [0, 0]},
    )
    tar_at_far(made, originals, boot, far)
    ((value, replicates),) = kept
    scores = (made @ originals.T).double().numpy()
    assert value == pytest.approx(by_loops(scores, boot.group, np.ones(7), far))
    expected = [by_loops(scores, boot.group, drawn, far) for drawn in boot.weights]
    np.testing.assert_allclose(replicates, expected)


def test_known_rates() -> None:
    made, originals, identity = embeddings(0, 0.01, people=30)
    boot = IdentityBootstrap(identity, 50)
    assert tar_at_far(made, originals, boot) == {"value": 1.0, "ci95": [1.0, 1.0]}
    blind = normalize(torch.randn(len(identity), 5, generator=torch.Generator().manual_seed(0)))
    found = tar_at_far(blind, originals, boot)
    assert found is not None and found["value"] < 0.08, "a matcher that sees nothing is at about the FAR"


def test_a_reconstruction_is_not_matched_with_its_own_original() -> None:
    """Of random embeddings each equals its own original alone: no other picture of the person is near."""
    blind = normalize(torch.randn(60, 8, generator=torch.Generator().manual_seed(1)))
    boot = IdentityBootstrap(torch.arange(20).repeat_interleave(3), 20)
    found = tar_at_far(blind, blind, boot)
    assert found is not None and found["value"] < 0.1


def test_without_pairs_there_is_no_rate() -> None:
    made, originals, _ = embeddings(0, 1.0)
    assert tar_at_far(made, originals, IdentityBootstrap(torch.arange(21), 10)) is None
    assert tar_at_far(made, originals, IdentityBootstrap(torch.zeros(21), 10)) is None


def test_a_resample_of_one_person_is_left_out() -> None:
    made, originals, identity = embeddings(5, 0.5, people=2)
    boot = IdentityBootstrap(identity, 60)
    assert (boot.weights == 2).any(), "some resamples draw one of the two people twice"
    found = tar_at_far(made, originals, boot, far=0.2)
    assert found is not None and np.isfinite(found["ci95"]).all()
