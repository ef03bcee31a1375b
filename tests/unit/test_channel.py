"""Channels against brute force, and the bounds against simulated attackers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from crafter_pl.certificate import Certificate, ceiling
from crafter_pl.crafting.channel import Channel
from crafter_pl.crafting.codebook import Codebook, divergence, learn_codebook, learn_quantiser, merged
from crafter_pl.errors import UserError


def answers(count=400, attributes=4, seed=0):
    return 3 * torch.randn(count, attributes, generator=torch.Generator().manual_seed(seed)).double()


def channels():
    public = answers().sigmoid()
    for messages in (learn_codebook(public, 16), learn_codebook(public, 5), learn_quantiser(public, 2)):
        for epsilon in (None, 0.5, 2.0, 6.0):
            yield Channel(messages, epsilon)


@pytest.mark.parametrize("channel", list(channels()))
def test_the_factor_is_the_sum_of_the_largest_probabilities(channel):
    """Brute force over many answers, each codeword's own among them."""
    words = torch.logit(channel.messages.codewords)
    made = channel.probabilities(torch.cat([answers(4000, seed=1), words]))
    assert torch.allclose(made.sum(1), torch.ones(len(made)).double())
    assert float(made.max(0).values.sum()) == pytest.approx(channel.factor)
    m, eps = channel.size, channel.epsilon
    closed = m if eps is None else m * math.exp(eps) / (math.exp(eps) + m - 1)
    assert channel.factor == pytest.approx(closed)
    assert channel.bits == pytest.approx(math.log2(closed)) and (eps is None or closed <= math.exp(eps))
    if eps is not None:
        ratios = made.max(0).values / made.min(0).values
        assert float(ratios.max()) == pytest.approx(math.exp(eps)), "local differential privacy"


@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_messages_are_as_frequent_as_their_probabilities(epsilon):
    channel = Channel(learn_codebook(answers().sigmoid(), 8), epsilon)
    one = answers(1, seed=5)
    coins = torch.from_numpy(np.random.default_rng(0).random(40_000))
    sent = channel(one.expand(len(coins), -1), coins)
    expected = channel.probabilities(one)[0] * len(coins)
    assert chisquare(torch.bincount(sent, minlength=8), expected).pvalue > 1e-3


def test_without_randomised_response_coins_do_nothing():
    channel = Channel(learn_codebook(answers().sigmoid(), 8))
    faces = answers(50, seed=2)
    sent = channel(faces, torch.zeros(50).double())
    assert torch.equal(sent, channel(faces, torch.full((50,), 0.999).double()))
    assert torch.equal(sent, channel.messages(faces)) and channel.bits == 3


def test_the_message_is_of_the_nearest_codeword_whoever_stands_beside():
    codebook, faces = learn_codebook(answers().sigmoid(), 32), answers(60, seed=3)
    found = codebook(faces)
    assert torch.equal(found, divergence(faces.sigmoid(), codebook.codewords).argmin(1))
    alone = torch.cat([codebook(face[None]) for face in faces])
    assert torch.equal(found, alone) and torch.equal(codebook(faces.flip(0)), found.flip(0))


def test_more_words_serve_the_answers_better():
    public = answers(800).sigmoid()
    served = [
        float(divergence(public, learn_codebook(public, size).codewords).min(1).values.mean())
        for size in (1, 2, 4, 16, 64)
    ]
    assert all(after < before for before, after in pairwise(served))
    one = learn_codebook(public, 1).codewords
    assert torch.allclose(one[0], public.mean(0)), "of one cell the mean serves best"
    assert torch.equal(learn_codebook(public, 16).codewords, learn_codebook(public, 16).codewords)
    with pytest.raises(UserError, match="public faces"):
        learn_codebook(public[:3], 4)


def test_rare_words_are_merged():
    rare = torch.tensor([[4.0, -4.0, 4.0, -4.0]]).double().expand(3, -1)
    public = torch.cat([0.2 * answers(300) - 2, rare]).sigmoid()
    codebook = learn_codebook(public, 8)
    cells = torch.bincount(codebook(torch.logit(public)), minlength=8) / len(public)
    assert cells.min() < 0.05
    small = merged(codebook, public, 0.05)
    kept = torch.bincount(small(torch.logit(public)), minlength=len(small.codewords)) / len(public)
    assert 1 <= len(small.codewords) < 8 and kept.min() >= 0.05
    assert torch.equal(merged(codebook, public, 0).codewords, codebook.codewords)


def test_a_product_of_scalar_quantisers():
    public = answers(500, 3).sigmoid()
    quantiser = learn_quantiser(public, 3)
    found = quantiser(torch.logit(public))
    assert quantiser.codewords.shape == (27, 3) and int(found.max()) < 27
    for attribute in range(3):
        level = found // 3 ** (2 - attribute) % 3
        means = [float(public[level == one, attribute].mean()) for one in range(3)]
        assert means == sorted(means) and torch.bincount(level).min() > 150
        assert torch.allclose(quantiser.codewords[found, attribute], torch.tensor(means).double()[level])
    with pytest.raises(UserError, match="messages"):
        learn_quantiser(torch.rand(10, 40), 2)


@pytest.mark.parametrize("epsilon", [0, -1.0, math.inf])
def test_an_epsilon_that_is_none(epsilon):
    with pytest.raises(UserError, match="epsilon"):
        Channel(Codebook(torch.full((2, 1), 0.5)), epsilon)


def test_no_attacker_exceeds_the_bound():
    """The best attacker knows every person's answers, and the channel: Bayes."""
    for seed, channel in enumerate(channels()):
        people = answers(40, seed=10 + seed)
        likelihood = channel.probabilities(people)  # (S, M)
        best = float(likelihood.max(0).values.sum()) / 40  # sum_m max_s p(s) P(m | s)
        certificate = Certificate(channel.bits, channel.epsilon)
        assert best <= certificate.naming(40) + 1e-12
        top3 = float(likelihood.topk(3, 0).values.sum()) / 40
        assert top3 <= certificate.naming(40, guesses=3) + 1e-12
        twice = torch.einsum("sm,sn->smn", likelihood, likelihood).flatten(1)
        assert float(twice.max(0).values.sum()) / 40 <= certificate.naming(40, pictures=2) + 1e-12
        posterior = likelihood / likelihood.sum(0)
        if channel.epsilon is not None:
            assert float(posterior.max()) <= certificate.pointwise(1 / 40) + 1e-12


def test_bounds_by_hand():
    five = Certificate(5.0)
    assert five.naming(100) == pytest.approx(0.32) and five.naming(10**6) == pytest.approx(32e-6)
    assert five.naming(3) == 1.0 and five.naming(100, guesses=4) == 1.0
    assert five.naming(10**4, pictures=2) == pytest.approx(0.1024) and five.naming(100, pictures=400) == 1.0
    assert five.gained(0) == 0 and five.accepting(0.01) == 1.0 and five.linking(0.01) == 1.0
    two = Certificate(1.0, 2.0)
    assert two.accepting(0.01) == pytest.approx(0.01 * math.e**2)
    assert two.linking(0.01) == pytest.approx(0.01 * math.e**4)
    assert five.pointwise(0.01, 0.02) == pytest.approx(0.5) and five.pointwise(0.01, 0.001) == 1.0
    assert five.pointwise(0.01) == 1.0, "an average says nothing of one person"


def test_the_ceiling_of_a_sample():
    messages, identity = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([7, 7, 9, 9, 7, 9])
    assert ceiling(messages, identity) == pytest.approx((2 + 1 + 1) / 6)
    assert ceiling(messages, identity, 2) == 1.0
    assert ceiling(torch.arange(6), identity) == 1.0, "a message for each picture names everybody"
    assert ceiling(torch.zeros(6).long(), identity) == pytest.approx(0.5)
