"""The worst case over attacks and oracles, and whether attackers who know the defence get more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.audit import metrics
from crafter_pl.audit.bootstrap import IdentityBootstrap, figure
from crafter_pl.audit.inputs import Entry
from crafter_pl.audit.panel import Judgement, Panel


class Joint(NamedTuple):
    """What several attacks together make of each picture."""

    hits: Tensor  # (N,) bool: any attack's reconstruction is named by any oracle
    chance: Tensor  # (N,) float64: how often that would be so by chance, see `metrics.worst_case_chance`


def any_of(judgements: Sequence[Judgement], panel: Panel) -> Joint:
    """Join what the panel says of several attacks."""
    hits = metrics.panel_hits([judgement.hits.any(dim=0) for judgement in judgements])
    named = torch.cat([judgement.named for judgement in judgements])
    return Joint(hits, metrics.worst_case_chance(named, panel.truth, len(panel.people)))


def worst_cases(
    entries: list[Entry],
    attacks: list[Attack],
    panel: Panel,
    boot: IdentityBootstrap,
    utility: list[NDArray[np.float64]],
) -> list[NDArray[np.float64]]:
    """Put into every entry its worst cases, the change against unprotected features, and `false_security`.

    Args:
        entries: the sets of features with their "verdicts", the unprotected ones first.
        attacks: in the order of the verdicts.
        panel: its oracles.
        boot: resamples of people, the same for every figure: differences are paired.
        utility: the mean AUC's replicates `(B,)` of each entry.

    Returns:
        The worst case's replicates `(B,)` of each entry.
    """
    first, rates = None, []
    for entry, means in zip(entries, utility, strict=True):
        judgements = entry["verdicts"]
        pairs = list(zip(attacks, judgements, strict=True))
        basic = [judgement for attack, judgement in pairs if not attack.adaptive]
        worst = any_of(judgements, panel)
        entry["worst_case"] = _case(worst, boot)
        entry["worst_case_basic"] = _case(any_of(basic, panel), boot) if basic else None
        rates.append(boot.mean_replicates(worst.hits))
        if first is None:
            first = entry
            continue
        auc = entry["utility"]["mean_auc"]["value"] - first["utility"]["mean_auc"]["value"]
        change = entry["worst_case"]["eval_acc"]["value"] - first["worst_case"]["eval_acc"]["value"]
        entry["change"] = {
            "mean_auc": figure(auc, means - utility[0]),
            "worst_case_eval_acc": figure(change, rates[-1] - rates[0]),
        }
        adaptive = {attack.name: judgement for attack, judgement in pairs if attack.adaptive}
        entry["false_security"] = _false_security(basic, adaptive, panel, boot)
    return rates


def _case(worst: Joint, boot: IdentityBootstrap) -> dict[str, Any]:
    return {"eval_acc": boot.mean(worst.hits), "chance": float(worst.chance.mean())}


def _false_security(
    basic: list[Judgement], adaptive: dict[str, Judgement], panel: Panel, boot: IdentityBootstrap
) -> dict[str, Any] | None:
    """Whether an attack that knows the defence identifies more faces than any that does not.

    One attack against one, the strongest of either side, so that both have as many guesses; the difference is
    paired over the resamples of people and must hold after each one's chance level is taken off. The adaptive
    one is the best of several: its interval is as wide as so many tries ask for (Bonferroni).

    Returns:
        The flag and its figures; None without both kinds of attacks.
    """
    if not basic or not adaptive:
        return None
    strongest = max(adaptive, key=lambda name: float(any_of([adaptive[name]], panel).hits.double().mean()))
    after = any_of([adaptive[strongest]], panel)
    before = max((any_of([one], panel) for one in basic), key=lambda joint: float(joint.hits.double().mean()))
    more = after.hits.double() - before.hits.double()
    tries = len(adaptive)
    gain, beyond = boot.mean(more, tries), boot.mean(more - (after.chance - before.chance), tries)
    return {
        "flag": gain["ci95"][0] > 0 and beyond["ci95"][0] > 0,
        "basic": boot.mean(before.hits),
        "adaptive": boot.mean(after.hits),
        "gain": gain,
        "gain_beyond_chance": beyond,
        "strongest": strongest,
    }
