"""Groups as tables: faces that have an attribute beside those that have not."""

from typing import Any

from crafter_pl.audit.schema import Report
from crafter_pl.audit.show.sentences import GROUPS, group_sentences, percent, points
from crafter_pl.audit.show.table import Cell, Table, rate
from crafter_pl.audit.show.tables import marked, or_dash
from crafter_pl.audit.sides import SIDES
from crafter_pl.metrics import Estimate


def table(report: Report, attribute: str) -> Table:
    """Two sides and their difference for every set of features."""
    found, attacks = report.groups[attribute], list(report.attacks)
    head = [attribute, "faces", "people", "mean AUC", "worst case", "by chance"]
    rows: list[list[Any]] = []
    for entry in report.defenses:
        own, name = found.defenses[entry.label], marked(entry.title, entry.retrains)
        for side, word in SIDES.items():
            row: list[Any] = ["left out"] * (3 + len(attacks))
            if figures := own[side]:
                row = [or_dash(figures.mean_auc), rate(figures.worst_case), percent(figures.chance or 0.0)]
                row += [rate(figures.attacks[attack]) for attack in attacks]
            count = getattr(found, side)
            rows.append([f"{name}, {word}", count["images"], count["identities"], *row])
        if gap := own["difference"]:
            row = [f"{name}, difference", "", "", or_dash(gap.mean_auc), _gap(gap.worst_case), ""]
            rows.append([*row, *(_gap(gap.attacks[attack]) for attack in attacks)])
    return Table([*head, *(name.replace("_", " ") for name in attacks)], rows)


def below(report: Report, attribute: str) -> str:
    """What stands below a group's table: how well the oracles know the faces, and what the AUC is over.

    Where they know fewer, fewer can be named. Reports from before that was measured do without.
    """
    own = report.groups[attribute]
    scored = f"Attributes in the mean AUC: {', '.join(own.attributes) or 'none'}."
    if (found := own.originals) is None:
        return scored
    sides = [(word, found[side]) for side, word in SIDES.items()]
    parts = [f"{rate(figure)} of those {word}" for word, figure in sides if figure is not None]
    gap = "" if (difference := found["difference"]) is None else f"; difference {_gap(difference)}"
    return f"Some oracle names the original picture: {', '.join(parts) or 'left out'}{gap}. {scored}"


def _gap(figure: Estimate) -> Cell:
    return Cell(f"{100 * figure.value:+.1f}", points(figure))


def page(report: Report) -> str:
    """All groups as Markdown, a table each."""
    parts = ["# By group", GROUPS, *group_sentences(report)]
    for attribute in report.groups:
        parts += [f"## {attribute}", table(report, attribute).markdown(), below(report, attribute)]
    return "\n\n".join(parts) + "\n"
