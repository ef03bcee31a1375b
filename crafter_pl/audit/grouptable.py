"""Groups side by side, for reading: sentences, a section of the page, and groups.md."""

from __future__ import annotations

from html import escape
from typing import Any

from crafter_pl.audit.cells import table, words
from crafter_pl.audit.groups import MIN_PEOPLE, SIDES
from crafter_pl.audit.verdict import FEW_PEOPLE, Report, marked, percent, points, rate_with_range, title

_NOTE = (
    "The same judged reconstructions, those of faces with an attribute beside those without: nobody was "
    "attacked anew. Differences are with less without, paired over people; of many intervals one in twenty "
    "misses zero by luck. The mean AUC is over attributes that have both classes on both sides, without the "
    "group's own. It is that of the classifier at hand, not of one trained on such features."
)


def sentences(report: Report) -> list[str]:
    """Say where the worst case of the two sides measurably differs, and which sides are small."""
    found = []
    names = {entry["label"]: title(entry) for entry in report["defenses"]}
    for attribute, group in report.get("groups", {}).items():
        for side, word in zip(SIDES, ("with", "without"), strict=True):
            people = group[side]["identities"]
            if people < FEW_PEOPLE:
                found.append(
                    f"Only {people} people {word} {attribute}: "
                    + (
                        f"left out, as every side of fewer than {MIN_PEOPLE}."
                        if people < MIN_PEOPLE
                        else "the intervals are narrower than they should be."
                    )
                )
        for label, own in group["defenses"].items():
            difference = own["difference"]
            if difference is None or not _apart(difference["worst_case"]):
                continue
            present, absent = (own[side]["worst_case"]["value"] for side in SIDES)
            found.append(
                f"Groups differ, {names[label]}: in the worst case {percent(present)} of the faces with "
                f"{attribute} are identified, {percent(absent)} of those without (difference "
                f"{points(difference['worst_case'])})."
            )
    return found


def _apart(figure: dict[str, Any]) -> bool:
    low, high = figure["ci95"]
    return bool(low > 0 or high < 0)


def _auc(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    low, high = figure["ci95"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f})"


def _gap(figure: dict[str, Any]) -> str:
    return f"{100 * figure['value']:+.1f} ({points(figure)})"


def _rows(report: Report, attribute: str) -> list[list[str]]:
    """The cells of a group's table, below its head: two sides and their difference for all features."""
    group, attacks = report["groups"][attribute], list(report["attacks"])
    rows = []
    for entry in report["defenses"]:
        own = group["defenses"][entry["label"]]
        name = marked(title(entry), entry.get("retrains", []))
        for side, word in zip(SIDES, ("with", "without"), strict=True):
            cells = [f"{name}, {word}", str(group[side]["images"]), str(group[side]["identities"])]
            if (found := own[side]) is None:
                rows.append([*cells, *["left out"] * (3 + len(attacks))])
                continue
            cells += [_auc(found["mean_auc"]), rate_with_range(found["worst_case"]), percent(found["chance"])]
            rows.append([*cells, *(rate_with_range(found["attacks"][name]) for name in attacks)])
        if (found := own["difference"]) is not None:
            cells = [
                f"{name}, difference",
                "",
                "",
                _auc(found["mean_auc"]),
                _gap(found["worst_case"]),
            ]
            rows.append([*cells, "", *(_gap(found["attacks"][name]) for name in attacks)])
    return rows


def _below(group: dict[str, Any]) -> str:
    """What stands below a table: how well the oracles know the faces themselves, and what the AUC is over.

    Where they know fewer, fewer can be named. Reports from before that was measured do without.
    """
    scored = f"Attributes in the mean AUC: {', '.join(group['attributes']) or 'none'}."
    if (found := group.get("originals")) is None:
        return scored
    parts = [
        f"{rate_with_range(found[side])} of those {word}"
        for side, word in zip(SIDES, ("with", "without"), strict=True)
        if found[side] is not None
    ]
    gap = "" if found["difference"] is None else f"; difference {_gap(found['difference'])}"
    return f"Some oracle names the original picture: {', '.join(parts) or 'left out'}{gap}. {scored}"


def _head(report: Report, attribute: str) -> list[str]:
    names = (name.replace("_", " ") for name in report["attacks"])
    return [attribute, "faces", "people", "mean AUC", "worst case", "by chance", *names]


def _cell(text: str) -> str:
    """A cell of the page: the interval below its figure."""
    value, _, interval = text.rstrip(")").partition(" (")
    return f"<td>{value}{f'<small>{interval}</small>' if interval else ''}</td>"


def section(report: Report) -> str:
    """The section of the page; empty without groups."""
    if not report.get("groups"):
        return ""
    parts = []
    for attribute, group in report["groups"].items():
        rows = [f"<td>{words(row[0])}</td>{''.join(map(_cell, row[1:]))}" for row in _rows(report, attribute)]
        parts.append(
            f"<h3>{words(attribute)}</h3>\n{table(_head(report, attribute), rows)}\n"
            f'<p class="soft">{words(_below(group))}</p>'
        )
    lines = "".join(f"<p>{escape(line)}</p>" for line in sentences(report))
    return f"""<h2>By group</h2>
<p class="soft">{escape(_NOTE)}</p>
{lines}
{"".join(parts)}
"""


def markdown(report: Report) -> str:
    """The same as Markdown, a table a group."""
    parts = ["# By group", _NOTE, *sentences(report)]
    for attribute, group in report["groups"].items():
        head = _head(report, attribute)
        lines = [head, ["---"] * len(head), *_rows(report, attribute)]
        parts += [f"## {attribute}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
        parts.append(_below(group))
    return "\n\n".join(parts) + "\n"
