"""What is kept in docs/reports, and what stands in a cell of the tables that `figures.py` makes of it."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from crafter_pl.audit.record import from_json
from crafter_pl.audit.schema import DefenseResult, Report, WorstCase
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import number, rate
from crafter_pl.metrics import Estimate

PLACE = "docs/reports"
FEATURES: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {  # rows: the defence, and which setting
    "unprotected": ("none", lambda own: True),
    "Crafter, β 0.25": ("crafter", lambda own: own.get("beta") == 0.25 and own.get("task_weight") != 0),
    "adversarial learning, λ 0.5": ("adversarial_learning", lambda own: own.get("lambda") == 0.5),
    "`answers`, β 0": ("answers", lambda own: own.get("beta") == 0),
    "certified, 5 bits": ("certified", lambda own: own.get("bits") == 5 and own.get("epsilon") is None),
}
Found = tuple[str, Report, DefenseResult]  # a report's name, the report, one set of features of it


class Kept:
    """All that is kept in a repository.

    Attributes:
        reports: of audits, by name.
        rows: lists of rows that scripts wrote, by name.
    """

    def __init__(self, root: Path) -> None:
        plain = {path.stem: json.loads(path.read_text()) for path in sorted((root / PLACE).glob("*.json"))}
        self.reports = {name: from_json(Report, own) for name, own in plain.items() if isinstance(own, dict)}
        self.rows = {name: own for name, own in plain.items() if isinstance(own, list)}

    def entries(self, data: str) -> Iterator[Found]:
        """Every set of features of the reports about some data, or whose names begin so: ``lfw-shift``."""
        for name, report in self.reports.items():
            if name.startswith(data) if "-" in data else report.data.source == data:
                yield from ((name, report, entry) for entry in report.defenses)

    def measured(self, title: str, data: str = "celeba") -> Found | None:
        """The features of a row, from the report that attacks them hardest."""
        name, fits = FEATURES[title]
        found = [one for one in self.entries(data) if one[2].name == name and fits(one[2].settings)]
        return max(found, key=hardness, default=None)

    def hardest(self, data: str = "celeba") -> dict[str, Found]:
        """Every set of features on some data once, by its label, from the report that attacks it hardest."""
        return {short(one[2]): one for one in sorted(self.entries(data), key=hardness)}


def short(entry: DefenseResult) -> str:
    """How a row is called: a certified defence by its bits; one that is false security is marked."""
    if entry.certificate is not None:
        return f"certified, {entry.settings['bits']} bits"
    return entry.title.replace("_", " ") + " (!)" * entry.flagged


def utility(entry: DefenseResult) -> tuple[Estimate, str]:
    """Mean AUC; a certified defence's over what the service needs, with the same unprotected."""
    if (known := entry.certificate) is None:
        return entry.utility.kept, ""
    clean = known.needs_kept_unprotected.value
    return known.needs_kept, f" on {len(known.needs)} attributes, unprotected {clean:.3f}"


def hardness(one: Found) -> tuple[bool, int, int, str]:
    """Last come reports with attacks that adapt, with more attacks, more readers, the newest."""
    return adapted(one) is not None, len(one[1].attacks), len(one[2].rulers), one[1].created


def adapted(one: Found) -> Estimate | None:
    """Named by any attack, those that adapt among them; None where there were none."""
    _, report, entry = one
    knowing = any(report.attacks[name]["adaptive"] and own.learnt for name, own in entry.attacks.items())
    return entry.worst_case.eval_acc if knowing else None


def figures(one: Found) -> list[Any]:
    """Utility, named without and with attacks that adapt."""
    entry = one[2]
    basic = entry.worst_case_basic or entry.worst_case
    auc, note = utility(entry)
    adapting = "-" if adapted(one) is None else chanced(entry.worst_case)
    return [f"{number(auc)}{note}", chanced(basic), adapting]


def chanced(own: WorstCase | None) -> str:
    """A worst case with its interval, and what as many guesses name by chance."""
    return "-" if own is None else by_chance(own.eval_acc, own.chance)


def by_chance(named: Estimate, chance: float) -> str:
    """A rate, and beside it what guessing gives."""
    return f"{rate(named)}, by chance {percent(chance)}"


def pictured(one: Found) -> str:
    """In one cell: by attacks that do not adapt, then by all; of unprotected features once."""
    entry = one[2]
    if entry.plain:
        return chanced(entry.worst_case)
    basic = (entry.worst_case_basic or entry.worst_case).eval_acc.value
    adapting = "-" if adapted(one) is None else chanced(entry.worst_case)
    return f"{percent(basic)} → {adapting}"


def gallery_readers(entry: DefenseResult) -> list[str]:
    """Who has other pictures of the people and draws none; those that read the message alone are last."""
    known = [] if entry.certificate is None else list(entry.certificate.attackers)
    return [*(name for name, own in entry.rulers.items() if own.suspects), *known]


def strongest(own: list[Estimate]) -> Any:
    """The largest of some rates."""
    return rate(max(own, key=lambda one: one.value)) if own else "-"


def bound(entry: DefenseResult, people: int) -> str:
    """What is proved of naming one of so many."""
    return limited(1.0 if entry.certificate is None else entry.certificate.bound(people))


def listed(names: Iterable[str]) -> str:
    """As code."""
    return ", ".join(f"`{one}`" for one in names)


def limited(bound: float) -> str:
    """A bound for reading."""
    return f"{100 * bound:.3g} %" if bound < 1 else "none"
