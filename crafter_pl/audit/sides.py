"""Faces that have an attribute beside those that have not: a part of `schema`."""

from dataclasses import dataclass

from crafter_pl.metrics import Estimate

MIN_PEOPLE = 5  # a side of a group with fewer people is left out: an interval over so few says nothing
SIDES = {"present": "with", "absent": "without"}


@dataclass(frozen=True)
class SideResult:
    """One side's figures, or their difference, which has no level by chance."""

    mean_auc: Estimate | None
    worst_case: Estimate
    attacks: dict[str, Estimate]
    chance: float | None = None


@dataclass(frozen=True)
class Group:
    """Faces that have an attribute beside those that have not.

    Attributes:
        attributes: those in the mean AUC.
        present, absent: how many `images` and `identities` there are on either side.
        defenses: by the label of the features, then by side: `present`, `absent`, and as `difference` the one
            less the other; None for a side of too few people.
        originals: how many of the faces themselves some oracle names, by side likewise.
    """

    attributes: list[str]
    present: dict[str, int]
    absent: dict[str, int]
    defenses: dict[str, dict[str, SideResult | None]]
    originals: dict[str, Estimate | None] | None = None
