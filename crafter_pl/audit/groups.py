"""Protection and utility by group: faces that have an attribute beside those that have not.

It needs no attack of its own: every figure is a mean over some of the pictures that are judged already. Both
sides use the audit's resamples of people, so that their difference is paired, also where a person has
pictures on both sides (an attribute such as CelebA's `Young` is a label of the picture).
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from crafter_pl.audit.judge import Judge, Judged
from crafter_pl.audit.panel import any_of
from crafter_pl.audit.sides import MIN_PEOPLE, SIDES, Group, SideResult
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError
from crafter_pl.metrics import Bootstrapped, Estimate, mean_of

_COMPARED = (*SIDES, "difference")


def known_names(data: FacesDataModule) -> list[str]:
    """The attributes or classes that faces have or have not; values make no groups."""
    return [] if data.labels_kind == "regression" else list(data.attribute_names)


def known_groups(wanted: Sequence[str], attributes: Sequence[str]) -> tuple[list[str], list[str]]:
    """The groups that the data can tell apart, and a line for the report about those that they cannot.

    Raises:
        UserError: a name is there twice.
    """
    if len(set(wanted)) < len(wanted):
        raise UserError(f"--groups {', '.join(wanted)}: name each attribute once")
    known = [name for name in wanted if name in attributes]
    missing = [name for name in wanted if name not in attributes]
    note = (
        f"No figures by {', '.join(missing)} (--groups): the data have no such attribute. They have "
        f"{', '.join(attributes) or 'none'}."
    )
    return known, [note] if missing else []


def by_group(name: str, judged: Sequence[Judged], judge: Judge) -> Group:
    """A group's figures for every set of features.

    The mean AUC of both sides is over the same attributes: all but the group's own that have both classes on
    every side that is reported; of other answers than labelled attributes there is none. A side of fewer than
    `MIN_PEOPLE` people has no figures.

    Args:
        name: the attribute that makes the group.
        judged: the sets of features.
        judge: the pictures and who judged them.
    """
    rows, attributes, panel, boot = judge.rows, judge.attributes, judge.panel, judge.boot
    has = rows["attributes"][:, attributes.index(name)] > 0.5
    yard = judge.yardstick
    truth, by_attribute = yard.truth, yard.answers.kind == "multilabel" and not yard.agreement
    masks = dict(zip(SIDES, (has, ~has), strict=True))
    counts = {
        side: {"images": int(mask.sum()), "identities": len(rows["identity"][mask].unique())}
        for side, mask in masks.items()
    }
    shown = {side: mask for side, mask in masks.items() if counts[side]["identities"] >= MIN_PEOPLE}
    kept = [
        column
        for column, known in enumerate(yard.names)
        if by_attribute
        and known != name
        and all(0 < float(truth[mask, column].mean()) < 1 for mask in shown.values())
    ]

    def share(hits: Tensor) -> dict[str, Estimate]:
        return _estimates({side: boot.part(mask.numpy()).mean(hits[mask]) for side, mask in shown.items()})

    def auc(scores: Tensor) -> dict[str, Estimate]:
        scores = scores if yard.columns is None else scores[:, yard.columns]
        parts = {
            side: boot.part(mask.numpy()).auc(scores[mask][:, kept], truth[mask][:, kept])
            for side, mask in shown.items()
        }
        return _estimates({side: mean_of(part) for side, part in parts.items() if part})

    def sides(one: Judged) -> dict[str, SideResult | None]:
        joint = any_of(list(one.verdicts.values()), panel)
        worst, utility = share(joint.hits), auc(one.inference.scores)
        attacks = {attack: share(judgement.hits[0]) for attack, judgement in one.verdicts.items()}
        chance = {side: float(joint.chance[mask].mean()) for side, mask in shown.items()}
        found: dict[str, SideResult | None] = dict.fromkeys(_COMPARED)
        for side in worst:
            rates = {attack: own[side] for attack, own in attacks.items()}
            found[side] = SideResult(utility.get(side), worst[side], rates, chance.get(side))
        return found

    known = share(panel.originals.hits.any(dim=0))
    return Group(
        attributes=[yard.names[column] for column in kept],
        **counts,
        defenses={one.result.label: sides(one) for one in judged},
        originals={side: known.get(side) for side in _COMPARED},
    )


def _estimates(sides: Mapping[str, Bootstrapped]) -> dict[str, Estimate]:
    """The figures of the sides that are shown, and present less absent if both are."""
    found = {side: figure.estimate() for side, figure in sides.items()}
    if len(sides) == 2:
        found["difference"] = (sides["present"] - sides["absent"]).estimate()
    return found
