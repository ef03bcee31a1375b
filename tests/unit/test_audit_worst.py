"""Worst cases and the flag of false security, on verdicts made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forty_people import PEOPLE, TRUTH, judgement

from crafter_pl.audit.panel import Judgement, any_of, false_security, worst_case
from crafter_pl.audit.schema import FalseSecurity
from crafter_pl.metrics import IdentityBootstrap

PANEL: Any = SimpleNamespace(truth=TRUTH, people=torch.arange(PEOPLE))
BOOT = IdentityBootstrap(TRUTH, 200)


def naming(people: int) -> Judgement:
    """The first so many people are named rightly, all others as somebody else."""
    return judgement(torch.where(people > TRUTH, TRUTH, (TRUTH + 1) % PEOPLE))


def flagged(basic: list[Judgement], **adaptive: Judgement) -> FalseSecurity | None:
    return false_security(basic, adaptive, PANEL, BOOT)


def test_an_adaptive_attack_that_recovers_more_is_flagged() -> None:
    worst = worst_case(any_of([naming(4), naming(20), naming(12)], PANEL), BOOT)
    assert worst.eval_acc.value == pytest.approx(20 / 40)
    found = flagged([naming(4)], adapted=naming(20), weak=naming(12))
    assert found is not None and found.flag is True and found.strongest == "adapted"
    assert found.gain.value == pytest.approx(16 / 40) and found.gain.low > 0.2
    assert found.basic.value == pytest.approx(0.1) and found.adaptive.value == pytest.approx(0.5)


def test_an_adaptive_attack_that_recovers_the_same_or_little_more_is_not_flagged() -> None:
    found = flagged([naming(8)], adapted=naming(9))
    assert found is not None and found.gain.value > 0 and found.gain.low <= 0 and found.flag is False


def test_more_guesses_alone_are_no_false_security() -> None:
    """Six adaptive attacks that guess blindly together name more people than one attack does."""
    flags = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        blind = [judgement(torch.randint(PEOPLE, TRUTH.shape, generator=generator)) for _ in range(7)]
        found = flagged(blind[:1], **{f"adapted {i}": one for i, one in enumerate(blind[1:])})
        assert found is not None and any_of(blind, PANEL).rate > found.basic.value + 0.05
        flags.append(found.flag)
    assert sum(flags) <= 1


def test_the_strongest_adaptive_attack_is_held_against_the_strongest_basic_one() -> None:
    """Two weak attacks that find different people do not hide that one adaptive attack finds more."""
    second = judgement(torch.where((TRUTH >= 8) & (TRUTH < 16), TRUTH, (TRUTH + 1) % PEOPLE))
    found = flagged([naming(8), second], c=naming(18), d=naming(17))
    assert found is not None and found.flag is True and found.strongest == "c"
    assert found.basic.value == pytest.approx(0.2) and found.adaptive.value == pytest.approx(0.45)


def test_without_both_kinds_there_is_no_flag() -> None:
    assert flagged([naming(5)]) is None and flagged([], adapted=naming(5)) is None
