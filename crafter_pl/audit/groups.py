"""Protection and utility by group: faces that have an attribute beside those that have not.

It needs no attack of its own: every figure is a mean over some of the pictures that are judged already. Both
sides use the audit's resamples of people, so that their difference is paired, also where a person has
pictures on both sides (an attribute such as CelebA's `Young` is a label of the picture).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.audit.bootstrap import Figure, IdentityBootstrap, figure, row_means
from crafter_pl.audit.inputs import Entry
from crafter_pl.audit.metrics import attribute_auc
from crafter_pl.audit.panel import Panel
from crafter_pl.audit.worst import any_of
from crafter_pl.errors import UserError

MIN_PEOPLE = 5  # a side with fewer people is left out: an interval over so few says nothing
SIDES = ("present", "absent")


class _Value(NamedTuple):
    """A figure in the making: its value and its replicates `(B,)`."""

    value: float
    replicates: NDArray[np.float64]


def known_groups(wanted: list[str] | None, attributes: list[str]) -> tuple[list[str], list[str]]:
    """The groups that the data can tell apart, and a line for the report about those that they cannot.

    Raises:
        UserError: a name is there twice.
    """
    wanted = wanted or []
    if len(set(wanted)) < len(wanted):
        raise UserError(f"--groups {', '.join(wanted)}: name each attribute once")
    known = [name for name in wanted if name in attributes]
    missing = [name for name in wanted if name not in attributes]
    if not missing:
        return known, []
    return known, [
        f"No figures by {', '.join(missing)} (--groups): the data have no such attribute. They have "
        f"{', '.join(attributes) or 'none'}."
    ]


def measure(
    names: list[str],
    entries: list[Entry],
    attacks: list[Attack],
    rows: dict[str, Tensor],
    attributes: list[str],
    panel: Panel,
    boot: IdentityBootstrap,
) -> dict[str, Any]:
    """Every group's figures for every set of features.

    The mean AUC of both sides is over the same attributes: all but the group's own that have both classes on
    every side that is reported.

    Args:
        names: attributes that make the groups, all of them known.
        entries: the sets of features with their "verdicts" and the cloud's answers, "scores".
        attacks: in the order of the verdicts.
        rows: the audited pictures: `identity` `(N,)`, `attributes` `(N, A)`.
        attributes: names of the `A` columns.
        panel: its oracles.
        boot: resamples of people.

    Returns:
        By attribute: `attributes`, those in the mean AUC; for `present` and `absent` how many `images` and
        `identities` there are; under `originals` by side and as `difference` how many of the faces themselves
        some oracle names; and under `defenses` by label, for either side `mean_auc` (None if no
        attribute is left), `attacks`, `worst_case` and its level by `chance` (None instead of all of it where
        there are fewer than 5 people), and under `difference` present less absent (None unless there are
        both).
    """
    groups = {}
    for name in names:
        masks, counts, shown, kept = _sides(attributes.index(name), rows)
        parts = {side: boot.part(masks[side].numpy()) for side in shown}
        known = {side: _share(panel.originals.hits.any(dim=0), masks[side], parts[side]) for side in shown}
        found = {}
        for entry in entries:
            sides = {
                side: _values(entry, attacks, masks[side], kept, rows["attributes"], panel, parts[side])
                for side in shown
            }
            result: dict[str, Any] = {
                side: _nested(_figures(sides[side])) if side in shown else None for side in SIDES
            }
            for side in shown:
                result[side]["chance"] = float(any_of(entry["verdicts"], panel).chance[masks[side]].mean())
            result["difference"] = _nested(_differences(*sides.values())) if len(shown) == 2 else None
            found[entry["label"]] = result
        groups[name] = {
            "attributes": [attributes[column] for column in kept],
            **counts,
            "originals": _compared(known),
            "defenses": found,
        }
    return groups


def _sides(
    own: int, rows: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, dict[str, int]], list[str], list[int]]:
    """An attribute's group: masks `(N,)` and counts by side, the sides reported, the columns scored."""
    has = rows["attributes"][:, own] > 0.5
    masks = dict(zip(SIDES, (has, ~has), strict=True))
    counts = {
        side: {"images": int(mask.sum()), "identities": len(rows["identity"][mask].unique())}
        for side, mask in masks.items()
    }
    shown = [side for side in SIDES if counts[side]["identities"] >= MIN_PEOPLE]
    labels = [rows["attributes"][masks[side]] for side in shown]
    kept = [
        column
        for column in range(rows["attributes"].shape[1])
        if column != own and all(0 < float(part[:, column].sum()) < len(part) for part in labels)
    ]
    return masks, counts, shown, kept


def _values(
    entry: Entry,
    attacks: list[Attack],
    mask: Tensor,
    kept: list[int],
    targets: Tensor,
    panel: Panel,
    part: IdentityBootstrap,
) -> dict[str, _Value]:
    """One side's figures: `worst_case`, `mean_auc`, and Eval Acc by the attack's name behind `attacks/`."""
    values = {"worst_case": _share(any_of(entry["verdicts"], panel).hits, mask, part)}
    for attack, judgement in zip(attacks, entry["verdicts"], strict=True):
        values[f"attacks/{attack.name}"] = _share(judgement.hits[0], mask, part)
    if kept:
        scores, labels = entry["scores"]["utility"][mask][:, kept], targets[mask][:, kept]
        auc = attribute_auc(scores, labels, [str(column) for column in kept]).mean
        values["mean_auc"] = _Value(auc, row_means(part.auc_replicates(scores, labels)))
    return values


def _share(hits: Tensor, mask: Tensor, part: IdentityBootstrap) -> _Value:
    """Of the pictures on one side, how many are hit."""
    return _Value(float(hits[mask].double().mean()), part.mean_replicates(hits[mask]))


def _compared(values: dict[str, _Value]) -> dict[str, Figure | None]:
    """One figure of the sides that are shown, and present less absent."""
    found: dict[str, Figure | None] = dict.fromkeys((*SIDES, "difference"))
    found |= {side: figure(*value) for side, value in values.items()}
    if len(values) == 2:
        found["difference"] = next(_differences(*({"": value} for value in values.values())))[1]
    return found


def _figures(values: dict[str, _Value]) -> Iterator[tuple[str, Figure]]:
    for name, own in values.items():
        yield name, figure(own.value, own.replicates)


def _differences(present: dict[str, _Value], absent: dict[str, _Value]) -> Iterator[tuple[str, Figure]]:
    for name, own in present.items():
        other = absent[name]
        yield name, figure(own.value - other.value, own.replicates - other.replicates)


def _nested(figures: Iterator[tuple[str, Figure]]) -> dict[str, Any]:
    """Figures by name, those of attacks in a dictionary of their own; `mean_auc` is None if undefined."""
    result: dict[str, Any] = {"mean_auc": None, "worst_case": None, "attacks": {}}
    for name, value in figures:
        if name.startswith("attacks/"):
            result["attacks"][name.removeprefix("attacks/")] = value
        else:
            result[name] = value
    return result
