"""What features keep, as a report has it: a part of `schema`."""

from dataclasses import dataclass, field

from crafter_pl.metrics import Estimate

AUC = "mean_auc"
TITLES = {
    AUC: "mean AUC",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "r2": "R²",
    "mae": "MAE",
    "cosine": "cosine",
}
AGREEMENT = "agreement with the unprotected model"
NOUNS = {
    AUC: "attributes",
    "accuracy": "classes",
    "r2": "values",
    "cosine": "numbers",
}  # what is answered, by main


def head(figure: str | None, agreement: bool | None) -> str:
    """A main figure's short name, for the head of a column."""
    return f"agreement, {TITLES[figure or AUC]}" if agreement else TITLES[figure or AUC]


def title(figure: str | None, agreement: bool | None) -> str:
    """A main figure's whole name."""
    return f"{AGREEMENT} ({TITLES[figure or AUC]})" if agreement else TITLES[figure or AUC]


def needs_key(figure: str | None, more: str = "") -> str:
    """What a report's JSON calls the main figure of what a certified defence was to answer for."""
    return f"needs_{(figure or AUC).removeprefix('mean_')}{more}"


@dataclass(frozen=True)
class AttributeEstimate(Estimate):
    """An attribute's or class's AUC, and how many pictures have it."""

    positives: int = 0


@dataclass(frozen=True)
class Utility:
    """What features keep.

    Attributes:
        figures: by their keys, see `TITLES`; in the JSON they stand beside the others.
        per_attribute: the AUC of every attribute or class that some pictures have and some have not.
        main: key of the figure that stands for all; None: the mean AUC.
        agreement: the truth is what the unprotected model answers, since the faces have no labels.
        blind: the main figure of who answers without looking; None: 0.5, or that of a cosine, which has none.
    """

    figures: dict[str, Estimate]
    per_attribute: dict[str, AttributeEstimate] = field(default_factory=dict)
    main: str | None = None
    agreement: bool | None = None
    blind: float | None = None

    @property
    def key(self) -> str:
        """Of the main figure."""
        return self.main or AUC

    @property
    def kept(self) -> Estimate:
        """The main figure."""
        return self.figures[self.key]

    @property
    def head(self) -> str:
        """The main figure's short name, for the head of a column."""
        return head(self.main, self.agreement)

    @property
    def title(self) -> str:
        """The main figure's whole name."""
        return title(self.main, self.agreement)

    @property
    def by_chance(self) -> str:
        """`blind`, for a table."""
        known = 0.5 if self.blind is None and self.key == AUC else self.blind
        return "-" if known is None else f"{known:.3f}"
