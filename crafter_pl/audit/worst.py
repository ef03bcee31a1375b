"""The worst case over attacks and oracles, and whether it is an attack that knows the defence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from crafter_pl.audit.panel import Judgement, Panel
from crafter_pl.audit.schema import (
    FalseSecurity,
    WorstCase,
)
from crafter_pl.metrics import IdentityBootstrap, worst_case_chance


class Joint(NamedTuple):
    """What several attacks together make of each picture."""

    hits: Tensor  # (N,) bool: any attack's reconstruction is named by any oracle
    chance: Tensor  # (N,) float64: how often that would be so by chance, see `worst_case_chance`

    @property
    def rate(self) -> float:
        """Of the pictures that are hit."""
        return float(self.hits.double().mean())


def any_of(judgements: Sequence[Judgement], panel: Panel) -> Joint:
    """Join what the panel says of several attacks."""
    hits = torch.cat([judgement.hits for judgement in judgements]).any(dim=0)
    named = torch.cat([judgement.named for judgement in judgements])
    return Joint(hits, worst_case_chance(named, panel.truth, len(panel.people)))


def worst_case(joint: Joint, boot: IdentityBootstrap) -> WorstCase:
    """Of the pictures that are hit, with the level by chance."""
    return WorstCase(boot.mean(joint.hits).estimate(), float(joint.chance.mean()))


def false_security(
    basic: Sequence[Judgement], adaptive: Mapping[str, Judgement], panel: Panel, boot: IdentityBootstrap
) -> FalseSecurity | None:
    """Whether an attack that knows the defence identifies more faces than any that does not.

    One attack against one, the strongest of either side, so that both have as many guesses; the difference is
    paired over the resamples of people and must hold after each one's chance level is taken off. The adaptive
    one is the best of several: its interval is as wide as so many tries ask for (Bonferroni).

    Returns:
        The flag and its figures; None without both kinds of attacks.
    """
    if not basic or not adaptive:
        return None
    joints = {name: any_of([one], panel) for name, one in adaptive.items()}
    strongest = max(joints, key=lambda name: joints[name].rate)
    after, before = joints[strongest], max((any_of([one], panel) for one in basic), key=lambda own: own.rate)
    more = after.hits.double() - before.hits.double()
    gain, beyond = (
        boot.mean(one).estimate(len(adaptive)) for one in (more, more - (after.chance - before.chance))
    )
    return FalseSecurity(
        flag=gain.low > 0 and beyond.low > 0,
        basic=boot.mean(before.hits).estimate(),
        adaptive=boot.mean(after.hits).estimate(),
        gain=gain,
        gain_beyond_chance=beyond,
        strongest=strongest,
    )
