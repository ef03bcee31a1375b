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
) -> None:
    """Put into every entry its worst cases, the change against unprotected features, and `false_security`.

    Args:
        entries: the sets of features with their "verdicts", the unprotected ones first.
        attacks: in the order of the verdicts.
        panel: its oracles.
        boot: resamples of people, the same for every figure: differences are paired.
        utility: the mean AUC's replicates `(B,)` of each entry.
    """
    first = None
    for entry, means in zip(entries, utility, strict=True):
        judgements = entry["verdicts"]
        pairs = list(zip(attacks, judgements, strict=True))
        basic = [judgement for attack, judgement in pairs if not attack.adaptive]
        worst = any_of(judgements, panel)
        entry["worst_case"] = _case(worst, boot)
        entry["worst_case_basic"] = _case(any_of(basic, panel), boot) if basic else None
        if first is None:
            first, rate = entry, boot.mean_replicates(worst.hits)
            continue
        auc = entry["utility"]["mean_auc"]["value"] - first["utility"]["mean_auc"]["value"]
        change = entry["worst_case"]["eval_acc"]["value"] - first["worst_case"]["eval_acc"]["value"]
        entry["change"] = {
            "mean_auc": figure(auc, means - utility[0]),
            "worst_case_eval_acc": figure(change, boot.mean_replicates(worst.hits) - rate),
        }
        adaptive = {attack.name: judgement for attack, judgement in pairs if attack.adaptive}
        entry["false_security"] = _false_security(basic, adaptive, panel, boot)


def _case(worst: Joint, boot: IdentityBootstrap) -> dict[str, Any]:
    return {"eval_acc": boot.mean(worst.hits), "chance": float(worst.chance.mean())}


def _false_security(
    basic: list[Judgement], adaptive: dict[str, Judgement], panel: Panel, boot: IdentityBootstrap
) -> dict[str, Any] | None:
    """Whether attacks that know the defence identify more faces than those that do not; None without both.

    The difference is paired over the resamples of people. More attacks have more guesses, so it must hold
    after each side's chance level is taken off, too.
    """
    if not basic or not adaptive:
        return None
    before, after = any_of(basic, panel), any_of(list(adaptive.values()), panel)
    more = after.hits.double() - before.hits.double()
    gain, beyond = boot.mean(more), boot.mean(more - (after.chance - before.chance))
    strongest = max(adaptive, key=lambda name: float(adaptive[name].hits.any(dim=0).double().mean()))
    return {
        "flag": gain["ci95"][0] > 0 and beyond["ci95"][0] > 0,
        "basic": boot.mean(before.hits),
        "adaptive": boot.mean(after.hits),
        "gain": gain,
        "gain_beyond_chance": beyond,
        "strongest": strongest,
    }
