"""Audits of several experiments on one page, and which of their figures may be compared."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crafter_pl import __version__
from crafter_pl.audit.cells import STYLE, heading, inline, number, rate, table, words
from crafter_pl.audit.front import TRAINING
from crafter_pl.audit.plots import COLOURS, MARKERS, errors, save
from crafter_pl.audit.report import read_report, rebuild
from crafter_pl.audit.verdict import Report, percent
from crafter_pl.commands import listed
from crafter_pl.errors import UserError
from crafter_pl.files import write_file

SCENARIOS = {"utility": "inference", TRAINING: "training"}


class Row(NamedTuple):
    """One set of features in one scenario."""

    mark: str  # the audit's letter and a number: how the plot calls it
    audit: int
    entry: Report
    scenario: str  # a key of `SCENARIOS`

    @property
    def point(self) -> tuple[float, float]:
        """Mean AUC and worst case."""
        auc, worst = self.entry[self.scenario]["mean_auc"], self.entry["worst_case"]["eval_acc"]
        return float(auc["value"]), float(worst["value"])


def report(audits: list[str] | str | None = None, folder: str | None = None, out: str | None = None) -> Path:
    """Compare the audits of several experiments on one page, or write one audit's own page again.

    Args:
        audits: folders of audits, each with its report.json, to compare.
        folder: of one audit, whose page, tables and plots are written again from its report.json.
        out: the HTML file that compares the audits.

    Returns:
        Path of the page.

    Raises:
        UserError: a folder holds no report or a damaged one, or it is not clear what to write.
    """
    if bool(audits) == bool(folder) or bool(audits) != bool(out):
        raise UserError(
            "give folders of audits and --out FILE.html to compare them, or --folder FOLDER alone to write "
            "one audit's page again"
        )
    if folder:
        return rebuild(folder)
    assert audits and out
    return compare([Path(one) for one in listed(audits)], Path(out))


def compare(folders: list[Path], out: Path) -> Path:
    """Write one HTML page over several audits; it needs no other file.

    Raises:
        UserError: a folder is there twice or has no complete report, or `out` is no place for a page.
    """
    if out.suffix != ".html" or (out.parent / "report.json").exists():
        raise UserError(f"--out {out}: give a file that ends in .html, and not in the folder of an audit")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"a folder is there twice: {', '.join(map(str, folders))}")
    reports = [read_report(folder) for folder in folders]
    places = [os.path.relpath(folder, out.parent) for folder in folders]
    for one, found in zip(folders, reports, strict=True):
        try:
            _stores(rows([found]), [1])
            _audits([found], ["."], [1], [""])
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"The report in {one} is damaged ({error!r}). Run its audit again with --overwrite true."
            ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, _page(reports, places))
    print(f"compared {len(reports)} audits: {out}", flush=True)
    return out


def conditions(report: Report) -> dict[str, str]:
    """What two audits must share for their figures to be comparable, by name, as text to compare."""
    attacks = {
        name: [own.get("class"), own.get("version", 1), own.get("settings")]
        for name, own in report["attacks"].items()
    }
    for name, own in report["attacks"].items():
        if not own.get("adaptive"):  # the nets of one that adapts differ with the defence
            attacks[name].append(own.get("checkpoints"))
    # How much it has learnt from says how strong it is.
    learnt = {
        json.dumps([name, moments[-1].get("pairs"), moments[-1].get("epochs")])
        for entry in report["defenses"]
        for name, moments in entry.get("history", {}).items()
        if moments
    }
    data = [report["data"][key] for key in ("source", "split_hash", "image_size", "images")]
    found = {
        "split": [*data, report["settings"].get("split")],
        "task model": report["settings"].get("task_sha256"),
        "oracles": [oracle.get("sha256") for oracle in report["oracles"]],
        "attacks": [attacks, sorted(learnt)],
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in found.items()}


def comparable(reports: list[Report]) -> tuple[list[int], list[str]]:
    """Sort audits into groups of comparable ones.

    Returns:
        The number of each audit's group, from 1; and what sets each audit apart from the first, empty where
        nothing does.
    """
    found = [conditions(report) for report in reports]
    kinds = list(dict.fromkeys(json.dumps(own) for own in found))
    apart = [
        ", ".join(f"other {name}" for name, value in own.items() if value != found[0][name]) for own in found
    ]
    return [1 + kinds.index(json.dumps(own)) for own in found], apart


def rows(reports: list[Report]) -> list[Row]:
    """Every set of features of every audit, in each scenario that it was audited in."""
    return [
        Row(f"{_letter(audit)}{place}", audit, entry, scenario)
        for audit, report in enumerate(reports)
        for place, entry in enumerate(report["defenses"])
        for scenario in SCENARIOS
        if scenario in entry
    ]


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those of the points (utility, worst case) that no other one beats in both, in order of utility."""
    return sorted(
        {(x, y) for x, y in points if not any(u >= x and v <= y and (u, v) != (x, y) for u, v in points)}
    )


def _letter(audit: int) -> str:
    """A, B, ..., Z, AA, ..."""
    return (_letter(audit // 26 - 1) if audit >= 26 else "") + chr(ord("A") + audit % 26)


def pareto(found: list[Row], groups: list[int]) -> bytes:
    """Draw the worst case over mean AUC as a PNG: a panel a scenario, a colour a group, a marker an audit."""
    scenarios = [scenario for scenario in SCENARIOS if any(row.scenario == scenario for row in found)]
    figure = Figure(figsize=(6.4 * len(scenarios), 5.2), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(scenarios), sharey=True, squeeze=False)[0]
    for axes, scenario in zip(panels, scenarios, strict=True):
        shown = [row for row in found if row.scenario == scenario]
        for audit in dict.fromkeys(row.audit for row in shown):
            own = [row for row in shown if row.audit == audit]
            colour = COLOURS[(groups[audit] - 1) % len(COLOURS)]
            for row in own:
                (x, y), plain = row.point, row.entry["name"] == "none"
                axes.errorbar(
                    x,
                    y,
                    [[end] for end in errors(row.entry["worst_case"]["eval_acc"])],
                    [[end] for end in errors(row.entry[scenario]["mean_auc"])],
                    label=f"{_letter(audit)}, conditions {groups[audit]}" if row is own[0] else None,
                    color=colour,
                    mfc="white" if plain else colour,
                    marker=MARKERS[audit % len(MARKERS)],
                    linestyle="",
                    ms=7,
                    capsize=2,
                    elinewidth=0.6,
                )
                axes.annotate(row.mark, (x, y), (5, 5), textcoords="offset points", fontsize=8, color="0.2")
        for group in sorted(set(groups)):
            best = front([row.point for row in shown if groups[row.audit] == group])
            if best:
                colour = COLOURS[(group - 1) % len(COLOURS)]
                axes.step(
                    *zip(*best, strict=True), where="pre", color=colour, linewidth=4, alpha=0.25, zorder=0
                )
        axes.set_title(f"{SCENARIOS[scenario]} scenario", fontsize=10)
        axes.set_xlabel("mean AUC over attributes (right is better)")
        axes.set_ylim(-0.03, 1.05)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("faces identified in the worst case (low is better)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    return save(figure)


def _audits(reports: list[Report], places: list[str], groups: list[int], apart: list[str]) -> str:
    found = []
    for audit, (one, place) in enumerate(zip(reports, places, strict=True)):
        data = one["data"]
        link = f'<a href="{quote(f"{place}/report.html")}">{escape(place)}</a>'
        oracles = ", ".join(f"{o['name']} {percent(o['accuracy_on_originals'])}" for o in one["oracles"])
        cells = [
            f"{_letter(audit)}<small>{link}</small>",
            f"{groups[audit]}<small>{escape(apart[audit]) or 'as A'}</small>",
            f"{words(data['source'])}<small>split {escape(data['split_hash'][:12])}</small>",
            f"{data['images']} of {data['identities']}<small>{data['image_size']} pixels</small>",
            words(oracles),
            words(str(one["settings"].get("budget") or "its own")),
            words(", ".join(one["attacks"])),
            escape(one["created"]),
        ]
        found.append("".join(f'<td class="wrap">{cell}</td>' for cell in cells))
    head = [
        "audit",
        "conditions",
        "data",
        "faces of people",
        "oracles on originals",
        "budget",
        "attacks",
        "made",
    ]
    return table(head, found)


def _stores(found: list[Row], groups: list[int]) -> str:
    lines = []
    for row in found:
        worst = row.entry["worst_case"]
        cells = [f"<td>{row.mark}</td>", heading(row.entry), f"<td>{groups[row.audit]}</td>"]
        cells += [f"<td>{SCENARIOS[row.scenario]}</td>", number(row.entry[row.scenario]["mean_auc"])]
        cells += [rate(worst["eval_acc"]), f"<td>{percent(worst['chance'])}</td>"]
        judged = row.entry.get("false_security")
        flag = "not tested" if judged is None else "yes" if judged["flag"] else "not found"
        flag = "-" if row.entry["name"] == "none" else flag
        cells.append(f'<td class="{"bad" if flag == "yes" else ""}">{flag}</td>')
        lines.append("".join(cells))
    head = ["", "features", "conditions", "scenario", "mean AUC", "worst case", "by chance", "false security"]
    return table(head, lines)


def _page(reports: list[Report], places: list[str]) -> str:
    groups, apart = comparable(reports)
    found = rows(reports)
    warning = "".join(
        f'<p class="warning">Not comparable: {_letter(audit)} has {escape(what)} than A.</p>'
        for audit, what in enumerate(apart)
        if what
    )
    verdicts = "".join(
        f"<p><b>{_letter(audit)}</b> {escape(one['verdict'])} "
        f'<span class="soft">{len(one["warnings"])} warnings in its report.</span></p>'
        for audit, one in enumerate(reports)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>crafter_pl: {len(reports)} audits compared</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Audits side by side</h1>
<p class="soft">Compare figures with the same number under "conditions" alone: they share split, task model,
oracles and attacks. A worst case over more attacks or oracles is higher without any feature being worse.</p>
{warning}
<h2>What the features keep, and what they hide</h2>
<p class="soft">Mean AUC: high is better. Worst case: faces that any attack and any oracle identify, low is
better. Below each figure its 95 % interval over people. False security: an attack that knows the defence
measurably gets more than any that does not; not tested: the audit had not both kinds.</p>
{_stores(found, groups)}
<h2>Trade-off</h2>
<p class="soft">Hollow: unprotected. A colour for each number of conditions, with its Pareto front: only
points of one colour can be compared.</p>
<img class="plot" style="max-width: 64rem" alt="Worst case over mean AUC of every set of features"
src="{inline(pareto(found, groups))}">
<h2>The audits</h2>
{_audits(reports, places, groups, apart)}
{verdicts}
<p class="soft">Written by crafter_pl {escape(__version__)}. Links are relative to this file.</p>
</body>
</html>
""".replace(" %", "&nbsp;%")
