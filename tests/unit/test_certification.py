"""Who reads the messages of a certified defence, and who reads more than there is in them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import binom

from crafter_pl.answers import ATTRIBUTES
from crafter_pl.attacks.message import message_attackers
from crafter_pl.audit.certification import Messages, certify
from crafter_pl.audit.schema import DefenseResult
from crafter_pl.audit.show import proof
from crafter_pl.audit.show.sentences import beyond, percent
from crafter_pl.audit.yardstick import Yardstick
from crafter_pl.certificate import Certificate, ceiling, chance_beyond
from crafter_pl.crafting.channel import Channel
from crafter_pl.crafting.codebook import learn_codebook
from crafter_pl.metrics import IdentityBootstrap

PEOPLE, PICTURES, NEEDS = 20, 10, 4


@pytest.fixture
def world():
    """Answers of people who differ, of their pictures and of a gallery; a channel of 3 bits."""
    torch.manual_seed(0)
    own = torch.randn(PEOPLE, NEEDS).double() * 2
    identity = torch.arange(PEOPLE).repeat_interleave(PICTURES)
    draw = lambda: own[identity] + 0.5 * torch.randn(len(identity), NEEDS).double()  # noqa: E731
    public = (torch.randn(2000, NEEDS).double() * 2).sigmoid()
    return identity, draw(), draw(), learn_codebook(public, 8)


def attackers(world, epsilon=None):
    identity, answers, gallery, codebook = world
    channel = Channel(codebook, epsilon)
    shares = torch.full((channel.size,), 1 / channel.size).double()
    sent = channel(answers, torch.rand(len(answers)).double())
    return channel, sent, message_attackers(channel, gallery, identity, shares)


@pytest.mark.parametrize("epsilon", [None, 2.0])
def test_message_attackers_name_people_and_stay_below_the_ceiling(world, epsilon):
    channel, sent, scores = attackers(world, epsilon)
    identity, top = world[0], ceiling(sent, world[0])
    for name, score in scores.items():
        named = score(sent).argmax(1)
        rate = float((named == identity).double().mean())
        assert 1.5 / PEOPLE < rate <= top, name
        assert len(torch.unique(named)) <= channel.size, "a message names one person at most"


def test_the_channel_that_tells_nothing_is_read_by_nobody(world):
    _, sent, scores = attackers(world, 1e-6)
    for name, score in scores.items():
        assert float((score(sent).argmax(1) == world[0]).double().mean()) < 3 / PEOPLE, name


@pytest.mark.parametrize(
    ("hits", "tries", "rate"), [(0, 10, 0.1), (5, 40, 0.1), (40, 40, 0.5), (9, 400, 0.02)]
)
def test_the_binomial_tail(hits, tries, rate):
    assert chance_beyond(hits, tries, rate) == pytest.approx(binom.sf(hits - 1, tries, rate), rel=1e-9)


def test_its_ends():
    assert chance_beyond(1, 10, 0) == 0 and chance_beyond(10, 10, 1) == 1


def certified(world, named):
    identity, answers, _, codebook = world
    channel, sent, scores = attackers(world)
    defense = SimpleNamespace(
        columns=[0, 1, 2, 3],
        answered=["a", "b", "c", "d"],
        codewords=codebook.codewords,
        shares=torch.full((channel.size,), 1 / channel.size),
    )
    made = {name: score(sent) for name, score in scores.items()}
    messages = Messages(defense, Certificate(channel.bits), sent, made, torch.arange(PEOPLE))
    rows = {"identity": identity, "attributes": (answers > 0).double()}
    boot, yard = IdentityBootstrap(identity, 50), Yardstick(ATTRIBUTES, defense.answered, rows["attributes"])
    return certify(messages, rows, defense.answered, boot, answers, answers, yard, named, ["a"])


def test_who_names_more_than_the_ceiling_is_an_error(world):
    identity = world[0]
    fair = certified(world, {"guess": torch.zeros_like(identity)})
    assert not fair.exceeded and fair.guesses == 5 and fair.needs_kept.value == 1
    assert fair.albums["2"].named.value >= fair.albums["1"].named.value, "two pictures tell more"
    assert fair.albums["10"].bits == pytest.approx(30) and fair.albums["10"].bound == 1
    assert fair.groups["a"].keys() == {"present", "absent"} and fair.rare
    more = certified(world, {"reads the picture": identity})
    assert "reads the picture" in more.exceeded and "guess" not in more.exceeded
    text = beyond(SimpleNamespace(certificate=more, title="certified"))
    assert "reads the picture" in text
    assert beyond(SimpleNamespace(certificate=fair)) is None
    assert DefenseResult.untested.fget(SimpleNamespace(plain=False, learnt=[], certificate=fair)) is False


def test_what_holds_of_one_message_is_said(world):
    known = replace(certified(world, {}), epsilon=1.0)
    said = " ".join(proof.sentences([("features", known)], PEOPLE))
    certificate = Certificate(known.bits, 1.0)
    for bound in (
        certificate.accepting(0.01),
        certificate.linking(0.01),
        certificate.pointwise(1 / PEOPLE, known.rare[0].share),
    ):
        assert percent(bound) in said
