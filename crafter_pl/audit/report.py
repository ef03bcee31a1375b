"""The verb `report`: several audits on one page, or one audit's own page again."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crafter_pl import __version__
from crafter_pl.audit.compare import SCENARIOS, comparable
from crafter_pl.audit.record import read_report
from crafter_pl.audit.schema import DefenseResult, Report, Utility
from crafter_pl.audit.show.page import rebuild, render
from crafter_pl.audit.show.plots import COLOURS, MARKERS, OVER, Point, pareto
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import Cell, Table, number, rate
from crafter_pl.audit.show.tables import heading
from crafter_pl.audit.utility import AUC, TITLES
from crafter_pl.commands import listed
from crafter_pl.errors import UserError
from crafter_pl.files import write_file


@dataclass(frozen=True)
class Compared:
    """One audit among others.

    Attributes:
        number: from 0.
        report: of the audit.
        place: its folder, seen from the page.
        group: audits of one number share what makes figures comparable.
        apart: what sets it apart from the first.
    """

    number: int
    report: Report
    place: str
    group: int
    apart: str

    @property
    def letter(self) -> str:
        """A, B, ..., Z, AA, AB, ..."""
        more = self.number // 26
        return chr(ord("A") + more - 1) * bool(more) + chr(ord("A") + self.number % 26)

    @property
    def line(self) -> str:
        """How the plot's legend calls it."""
        return f"{self.letter}, conditions {self.group}"

    @property
    def colour(self) -> str:
        """That of its group."""
        return COLOURS[(self.group - 1) % len(COLOURS)]

    @property
    def sets(self) -> list[tuple[str, DefenseResult, str, Utility]]:
        """Its sets of features in each scenario: mark in the plot, figures, scenario, utility."""
        return [
            (f"{self.letter}{place}", entry, scenario, utility)
            for place, entry in enumerate(self.report.defenses)
            for scenario in SCENARIOS
            if (utility := getattr(entry, scenario)) is not None
        ]


def report(audits: list[str] | str | None = None, folder: str | None = None, out: str | None = None) -> Path:
    """Compare the audits of several experiments on one page, or write one audit's own page again.

    Args:
        audits: folders of audits, each with its report.json, to compare.
        folder: of one audit, whose page, tables and plots are written again from its report.json.
        out: the HTML file that compares the audits; it needs no other file.

    Returns:
        Path of the page.

    Raises:
        UserError: a folder holds no report or a damaged one, or is there twice; or it is not clear what to
            write, or where.
    """
    if bool(audits) == bool(folder) or bool(audits) != bool(out):
        raise UserError(
            "give folders of audits and --out FILE.html to compare them, or --folder FOLDER alone to write "
            "one audit's page again"
        )
    if folder:
        return rebuild(folder)
    folders, page = [Path(one) for one in listed(audits)], Path(out or "")
    if page.suffix != ".html" or (page.parent / "report.json").exists():
        raise UserError(f"--out {page}: give a file that ends in .html, and not in the folder of an audit")
    if len({one.resolve() for one in folders}) < len(folders):
        raise UserError(f"a folder is there twice: {', '.join(map(str, folders))}")
    compared = side_by_side(
        [read_report(one) for one in folders], [os.path.relpath(one, page.parent) for one in folders]
    )
    picture = pareto(
        [
            Point(
                scenario,
                utility.kept,
                entry.worst_case.eval_acc,
                one.line,
                front=str(one.group),
                hollow=entry.plain,
                mark=mark,
            )
            for one in compared
            for mark, entry, scenario, utility in one.sets
        ],
        {
            one.line: {
                "color": one.colour,
                "marker": MARKERS[one.number % len(MARKERS)],
                "linestyle": "",
            }
            for one in compared
        },
        {str(one.group): {"color": one.colour, "alpha": 0.25} for one in compared},
        OVER if (name := _utility(compared)) == TITLES[AUC] else name,
    )
    content = {"audits": compared, "utility": name, "sets": _table(compared), "pictures": {"pareto": picture}}
    write_file(page, render("compare", version=__version__, **content))
    print(f"compared {len(compared)} audits: {page}", flush=True)
    return page


def side_by_side(reports: Sequence[Report], places: Sequence[str]) -> list[Compared]:
    """Audits with the number of what they share, and what sets each apart."""
    found = zip(reports, places, *comparable(reports), strict=True)
    return [Compared(number, *own) for number, own in enumerate(found)]


def _utility(audits: Sequence[Compared]) -> str:
    """Its name, if all audits measure the same."""
    titles = {one.report.defenses[0].utility.title for one in audits}
    return titles.pop() if len(titles) == 1 else "utility"


def _table(audits: Sequence[Compared]) -> Table:
    name = _utility(audits)
    head = ["", "features", "conditions", "scenario", name, "worst case", "by chance", "false security"]
    rows = []
    for one in audits:
        for mark, entry, scenario, utility in one.sets:
            flag = "not tested" if entry.false_security is None else "yes" if entry.flagged else "not found"
            flag = "-" if entry.plain else flag
            rows.append(
                [
                    mark,
                    heading(entry),
                    one.group,
                    SCENARIOS[scenario],
                    number(utility.kept),
                    rate(entry.worst_case.eval_acc),
                    percent(entry.worst_case.chance),
                    Cell(flag, css="bad" if flag == "yes" else ""),
                ]
            )
    return Table(head, rows)
