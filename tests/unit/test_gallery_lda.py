"""The closed form by a gallery, and the rates of readers, against scikit-learn and loops."""

import numpy as np
import pytest
import torch
from closeness import near
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_curve

from crafter_pl.attacks import Gallery, GalleryLDA, LinkLDA
from crafter_pl.attacks.gallery_lda import Discriminant
from crafter_pl.errors import UserError
from crafter_pl.metrics import IdentityBootstrap, equal_error_rate, log_odds, tar_at_far


def people(count=8, pictures=6, dims=5, spread=1.0, seed=0):
    """Points of some people, each scattered about their own place."""
    generator = torch.Generator().manual_seed(seed)
    identity = torch.randperm(100, generator=generator)[:count].repeat_interleave(pictures)
    places = torch.randn(count, dims, generator=generator).double().repeat_interleave(pictures, 0)
    return places + spread * torch.randn(len(identity), dims, generator=generator).double(), identity


def test_it_is_scikit_learns_with_the_covariance_hardly_shrunk():
    values, identity = people()
    probes, _ = people(seed=1)
    mine = Discriminant(values, identity, 5, 1e-9)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(8, 1 / 8)).fit(values, identity)
    assert mine.people.tolist() == theirs.classes_.tolist()
    expected = theirs.predict_log_proba(probes.numpy())
    assert np.allclose(mine(probes).log_softmax(1).numpy(), expected, atol=1e-5)


def test_with_fewer_pictures_than_numbers_it_still_names():
    values, identity = people(dims=300, spread=0.3)
    lda = Discriminant(values[::2], identity[::2], 200, 0.1)
    assert (lda.people[lda(values[1::2]).argmax(1)] == identity[1::2]).double().mean() > 0.9


def test_what_does_not_vary_in_the_gallery_does_not_count():
    """Features of a pool come again: rounding would choose the directions beyond their span."""
    pool = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gallery, identity = pool.repeat(4, 1), torch.arange(20) // 4
    rounded = gallery * (1 + 1e-15 * torch.randn(20, 40, generator=torch.Generator().manual_seed(1)).sign())
    seen = torch.randn(7, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact, other = (Discriminant(values, identity, 40, 0.1) for values in (gallery, rounded))
    assert exact.axes.shape == (40, 4)
    assert near(other(seen), exact(seen))


def test_the_reader_knows_the_gallery():
    values, identity = people(dims=27, spread=0.2)
    features = values.float().view(-1, 3, 3, 3)
    reader = GalleryLDA(components=20)
    reader.prepare("cpu")
    reader.enrol(Gallery(torch.empty(0), identity[::2], features[::2]))
    found = reader.identities[reader.identify(features[1::2]).argmax(1)]
    assert (found == identity[1::2]).double().mean() > 0.9
    assert reader.name == "gallery_lda" and GalleryLDA("answers").name == "gallery_lda_answers"


def test_links_are_found_by_what_differs_within_other_people():
    """Of 27 numbers 20 are loud and say nothing of the person."""

    def seen(count, seed):
        values, identity = people(count, 6, 27, 0.3, seed)
        loud = torch.randn(len(values), 20, generator=torch.Generator().manual_seed(seed)).double()
        return torch.cat([30 * loud, values[:, 20:]], 1).float().view(-1, 3, 3, 3), identity

    reader = LinkLDA(components=27, shrinkage=1e-6)
    reader.enrol(Gallery(torch.empty(0), *seen(30, 2)[::-1]))
    features, whose = seen(8, 3)
    boot, plain = IdentityBootstrap(whose, 20), torch.nn.functional.normalize(features.flatten(1))
    found = reader.similarity(features)
    assert found.diagonal().allclose(torch.ones(len(whose)))
    assert boot.eer(found).estimate().value < 0.2 < 0.4 < boot.eer(plain @ plain.T).estimate().value


def test_links_need_people_with_two_pictures():
    with pytest.raises(UserError, match="link_lda"):
        LinkLDA().enrol(Gallery(torch.empty(0), torch.arange(5), torch.randn(5, 3, 2, 2)))


@pytest.mark.parametrize("options", [{"components": 0}, {"shrinkage": 0}, {"shrinkage": 1.5}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(UserError, match="components"):
        GalleryLDA(**options)


def test_the_equal_error_rate_is_scikit_learns():
    values, identity = people(12, 5, 4, 1.5)
    scores = -torch.cdist(values, values)
    same = identity[:, None] == identity[None]
    pairs = (~same | ~torch.eye(len(same), dtype=torch.bool)).numpy()
    far, tar, _ = roc_curve(same.numpy()[pairs], scores.numpy()[pairs], drop_intermediate=False)
    place = np.nanargmin(np.abs(1 - tar - far))
    found = equal_error_rate(scores, identity)
    assert found[0] == pytest.approx((1 - tar[place] + far[place]) / 2, abs=2 / len(identity) / 4)


def test_a_weighting_is_the_rate_of_people_drawn_so_often():
    """Of somebody drawn twice each pair counts twice, and with others so; nobody is paired with himself."""
    values, identity = people(6, 4, 3)
    scores = (-torch.cdist(values, values)).numpy()
    boot = IdentityBootstrap(identity, 10, seed=3)
    found = equal_error_rate(scores, identity, boot.weights)
    for drawn, rate in zip(boot.weights, found, strict=True):
        own, other = [], []
        for i, j in np.ndindex(scores.shape):
            first, second = boot.group[i], boot.group[j]
            if i != j and first == second:
                own += [scores[i, j]] * int(drawn[first])
            elif first != second:
                other += [scores[i, j]] * int(drawn[first] * drawn[second])
        edges = np.unique(scores[(identity[:, None] == identity[None]).numpy() & ~np.eye(24, dtype=bool)])
        edges = [edges[0] - 1e-12, *edges]
        errors = [(np.mean(np.array(own) <= t), np.mean(np.array(other) > t)) for t in edges]
        frr, far = min(errors, key=lambda pair: abs(pair[0] - pair[1]))
        assert rate == pytest.approx((frr + far) / 2)


def test_rates_without_pairs():
    assert equal_error_rate(np.eye(3), [1, 2, 3]) is None and equal_error_rate(np.eye(3), [1, 1, 1]) is None
    blind = np.random.default_rng(0).normal(size=(200, 200))
    assert equal_error_rate(blind, np.arange(200) // 4)[0] == pytest.approx(0.5, abs=0.05)


def test_tar_against_people_on_a_list():
    """The columns are people, in any order, some of whom are not audited."""
    rng = np.random.default_rng(1)
    identity, enrolled = np.repeat([3, 5, 9], 4), np.array([9, 7, 3, 5])
    scores = rng.normal(size=(12, 4)) + 2 * (identity[:, None] == enrolled[None])
    impostors = scores[(identity[:, None] != enrolled[None]) & (enrolled != 7)[None]]
    threshold = min(t for t in impostors if np.mean(impostors > t) <= 0.1)
    genuine = scores[identity[:, None] == enrolled[None]]
    assert tar_at_far(scores, identity, 0.1, enrolled=enrolled)[0] == np.mean(genuine > threshold)
    twice = tar_at_far(scores, identity, 0.1, [[2, 0, 1]], enrolled)
    kept = np.isin(identity, [3, 9])
    weight = {3: 2, 5: 0, 9: 1}
    loose = [
        (scores[i, j], weight[a] * weight[b])
        for i, a in enumerate(identity)
        for j, b in enumerate(enrolled)
        if b in weight and a != b
    ]
    total = sum(w for _, w in loose)
    threshold = min(t for t, _ in loose if sum(w for s, w in loose if s > t) <= 0.1 * total + 1e-9)
    own = [(scores[i, list(enrolled).index(a)], weight[a]) for i, a in enumerate(identity) if kept[i]]
    assert twice[0] == pytest.approx(sum(w for s, w in own if s > threshold) / sum(w for _, w in own))


def test_a_perfect_matcher_never_errs():
    same = np.arange(10)[:, None] // 2 == np.arange(10)[None] // 2
    assert equal_error_rate(same.astype(float), np.arange(10) // 2)[0] == 0


def test_one_picture_of_each_person_is_enough():
    values, identity = people(dims=6, pictures=1)
    lda = Discriminant(values, identity, 5, 0.1)
    assert torch.equal(lda.people[lda(values).argmax(1)], identity)


def test_log_odds_against_all_others():
    scores = torch.tensor([[0.0, 1.0, 2.0], [-500.0, -900.0, 800.0], [3.0, 3.0, 3.0]]).double()
    for row, found in zip(scores, log_odds(scores), strict=True):
        for column in range(3):
            others = torch.cat([row[:column], row[column + 1 :]])
            assert found[column] == pytest.approx(float(row[column] - others.logsumexp(0)))
