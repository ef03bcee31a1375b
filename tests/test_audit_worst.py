"""Worst cases and the flag of false security, on verdicts made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from crafter_pl.audit.bootstrap import IdentityBootstrap
from crafter_pl.audit.panel import Judgement
from crafter_pl.audit.worst import worst_cases

PEOPLE, PICTURES = 40, 2
TRUTH = torch.arange(PEOPLE).repeat_interleave(PICTURES)
PANEL: Any = SimpleNamespace(truth=TRUTH, people=torch.arange(PEOPLE))
BOOT = IdentityBootstrap(TRUTH, 200)


def judgement(named: Tensor) -> Judgement:
    """One oracle's verdict that names these people."""
    hits = (named == TRUTH)[None]
    return Judgement(hits, hits, named[None], torch.zeros(1, len(TRUTH)), [])


def naming(people: int) -> Judgement:
    """The first so many people are named rightly, all others as somebody else."""
    return judgement(torch.where(people > TRUTH, TRUTH, (TRUTH + 1) % PEOPLE))


def attack(name: str, adaptive: bool) -> Any:
    return SimpleNamespace(name=name, adaptive=adaptive)


def entry(*verdicts: Judgement) -> dict[str, Any]:
    return {"verdicts": list(verdicts), "utility": {"mean_auc": {"value": 0.9}}}


def run(attacks: list[Any], *entries: dict[str, Any]) -> None:
    worst_cases(list(entries), attacks, PANEL, BOOT, [np.full(200, 0.9) for _ in entries])


def test_an_adaptive_attack_that_recovers_more_is_flagged() -> None:
    none, crafted = entry(naming(40), naming(40), naming(40)), entry(naming(4), naming(20), naming(12))
    run([attack("black_box", False), attack("adapted", True), attack("weak", True)], none, crafted)
    assert none["worst_case"]["eval_acc"]["value"] == 1.0 and "false_security" not in none
    assert crafted["worst_case"]["eval_acc"]["value"] == pytest.approx(20 / 40)
    assert crafted["worst_case_basic"]["eval_acc"]["value"] == pytest.approx(4 / 40)
    found = crafted["false_security"]
    assert found["flag"] is True and found["strongest"] == "adapted"
    assert found["gain"]["value"] == pytest.approx(16 / 40) and found["gain"]["ci95"][0] > 0.2
    assert found["basic"]["value"] == pytest.approx(0.1) and found["adaptive"]["value"] == pytest.approx(0.5)
    assert crafted["change"]["worst_case_eval_acc"]["value"] == pytest.approx(-0.5)


def test_an_adaptive_attack_that_recovers_the_same_or_little_more_is_not_flagged() -> None:
    none, crafted = entry(naming(40), naming(40)), entry(naming(8), naming(9))
    run([attack("black_box", False), attack("adapted", True)], none, crafted)
    found = crafted["false_security"]
    assert found["gain"]["value"] > 0 and found["gain"]["ci95"][0] <= 0 and found["flag"] is False


def test_more_guesses_alone_are_no_false_security() -> None:
    """Six adaptive attacks that guess blindly together name more people than one attack does."""
    flags = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        blind = [judgement(torch.randint(PEOPLE, TRUTH.shape, generator=generator)) for _ in range(7)]
        attacks = [attack("black_box", False), *(attack(f"adapted {i}", True) for i in range(6))]
        crafted = entry(*blind)
        run(attacks, entry(*[naming(40)] * 7), crafted)
        assert crafted["worst_case"]["eval_acc"]["value"] > crafted["false_security"]["basic"]["value"] + 0.05
        flags.append(crafted["false_security"]["flag"])
    assert sum(flags) <= 1


def test_the_strongest_adaptive_attack_is_held_against_the_strongest_basic_one() -> None:
    """Two weak attacks that find different people do not hide that one adaptive attack finds more."""
    second = judgement(torch.where((TRUTH >= 8) & (TRUTH < 16), TRUTH, (TRUTH + 1) % PEOPLE))
    crafted = entry(naming(8), second, naming(18), naming(17))
    kinds = [("a", False), ("b", False), ("c", True), ("d", True)]
    run([attack(*kind) for kind in kinds], entry(*[naming(40)] * 4), crafted)
    found = crafted["false_security"]
    assert found["basic"]["value"] == pytest.approx(0.2) and found["adaptive"]["value"] == pytest.approx(0.45)
    assert found["flag"] is True and found["strongest"] == "c"


def test_without_both_kinds_there_is_no_flag() -> None:
    crafted = entry(naming(5))
    run([attack("black_box", False)], entry(naming(40)), crafted)
    assert crafted["false_security"] is None and crafted["worst_case_basic"] == crafted["worst_case"]
    crafted = entry(naming(5))
    run([attack("adapted", True)], entry(naming(40)), crafted)
    assert crafted["false_security"] is None and crafted["worst_case_basic"] is None
