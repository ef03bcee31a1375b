"""What a benchmark found, over all seeds, as dataclasses."""

from dataclasses import dataclass, field

from crafter_pl.audit.schema import Data
from crafter_pl.audit.utility import AUC, head, needs_key
from crafter_pl.metrics import Estimate


@dataclass(frozen=True)
class OverSeeds(Estimate):
    """The mean of several seeds' figures, the interval that holds all of theirs, and their values."""

    seeds: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One defence with one setting, over all seeds.

    Attributes:
        worst_case_gallery: over the readers that have other pictures of the people.
        false_security: in how many of the seeds it was found.
        learnt: whether in every seed some attack has learnt from the defence, or it is proved.
        bound: of naming somebody, on average, among the audited people; None: there is none.
        kept: the utility; kept_training that of the training scenario; in the JSON under their names.
        needs_kept: utility of what a certified defence was to answer for; likewise.
        figure: key of the utility; None: the mean AUC.
        agreement: it is the agreement with the unprotected model.
        on_front: by a key of `SCENARIOS`.
    """

    defence: str
    curve: str
    retrains: list[str]
    figure: str | None = None
    agreement: bool | None = None
    kept: OverSeeds
    kept_training: OverSeeds | None = None
    attacks: dict[str, OverSeeds]
    worst_case: OverSeeds
    worst_case_gallery: OverSeeds | None = None
    by_chance: float
    bound: float | None = None
    needs_kept: OverSeeds | None = None
    false_security: int
    learnt: bool
    on_front: dict[str, bool] = field(default_factory=dict)
    seconds_per_image: float | None

    def utility(self, scenario: str) -> OverSeeds | None:
        """That of a scenario."""
        return self.kept if scenario == "utility" else self.kept_training

    @property
    def title(self) -> str:
        """The utility's name."""
        return head(self.figure, self.agreement)

    def json_names(self) -> dict[str, str]:
        """What JSON and CSV call the utility."""
        key = self.figure or AUC
        return {"kept": key, "kept_training": f"{key}_training", "needs_kept": needs_key(self.figure)}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A benchmark: the content of benchmark.json."""

    data: Data
    budget: str | None
    attacks: list[str]
    oracles: dict[str, float]
    seeds: list[int]
    rows: list[Row]
    areas: dict[str, dict[str, OverSeeds]]
    seconds: dict[str, float]


def over_seeds(figures: list[Estimate]) -> OverSeeds:
    """One figure of several seeds' figures."""
    values = [one.value for one in figures]
    low, high = min(one.low for one in figures), max(one.high for one in figures)
    return OverSeeds(sum(values) / len(values), low, high, values)
