"""A benchmark's results over all seeds: benchmark.json, and tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from crafter_pl.audit.front import BUDGET, TRAINING, curve, on_front
from crafter_pl.audit.plots import pareto
from crafter_pl.audit.report import read_report
from crafter_pl.audit.verdict import Report, false_security, not_learnt, percent
from crafter_pl.benchmark.grid import Cell, Place
from crafter_pl.files import to_json, write_file


def over_seeds(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """One figure of several seeds' figures: their mean, and the interval that holds all of theirs.

    Returns:
        ``value``, ``ci95`` (from the lowest end to the highest) and ``seeds``, the values one by one.
    """
    values = [float(one["value"]) for one in figures]
    ends = [one["ci95"] for one in figures]
    interval = [min(low for low, _ in ends), max(high for _, high in ends)]
    return {"value": sum(values) / len(values), "ci95": interval, "seeds": values}


def summarise(folder: Path, grid: list[Cell], place: Place, seconds: dict[str, float]) -> dict[str, Any]:
    """Join the audits of all seeds.

    Args:
        folder: of the benchmark, with ``seedN/report.json``.
        grid: the cells that were audited, at least one.
        place: of the runs.
        seconds: that each job took when it was run.
    """
    reports = {seed: read_report(folder / f"seed{seed}") for seed in sorted({cell.seed for cell in grid})}
    titles = {cell.store(place): cell.title for cell in grid}
    found: dict[str, list[Report]] = {}
    for report in reports.values():
        for entry in report["defenses"]:
            title = "unprotected" if entry["name"] == "none" else titles[entry["store"]]
            found.setdefault(title, []).append(entry)
    first = next(iter(reports.values()))
    areas: dict[str, dict[str, Any]] = {}
    for scenario in first["areas"]:
        every = [report["areas"].get(scenario, {}) for report in reports.values()]
        areas[scenario] = {
            name: over_seeds([one[name] for one in every if name in one])
            for name in dict.fromkeys(name for one in every for name in one)
        }
    rows = [_row(title, entries) for title, entries in found.items()]
    for scenario, figure in (("utility", "mean_auc"), (TRAINING, "mean_auc_training")):
        there = [row for row in rows if figure in row]
        points = [(row[figure]["value"], row["worst_case"]["value"]) for row in there]
        for row, best in zip(there, on_front(points), strict=True):
            row["on_front"][scenario] = best
    return {
        "data": first["data"],
        "budget": first["settings"]["budget"],
        "attacks": list(first["attacks"]),
        "oracles": {o["name"]: o["accuracy_on_originals"] for o in first["oracles"]},
        "seeds": list(reports),
        "rows": rows,
        "areas": areas,
        "seconds": seconds,
    }


def _row(title: str, entries: list[Report]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "defence": title,
        "curve": curve(entries[0]),
        "retrains": entries[0].get("retrains", []),
        "mean_auc": over_seeds([entry["utility"]["mean_auc"] for entry in entries]),
    }
    if all(TRAINING in entry for entry in entries):
        row["mean_auc_training"] = over_seeds([entry[TRAINING]["mean_auc"] for entry in entries])
    row["attacks"] = {
        name: over_seeds([entry["attacks"][name]["eval_acc"] for entry in entries])
        for name in entries[0]["attacks"]
    }
    row["worst_case"] = over_seeds([entry["worst_case"]["eval_acc"] for entry in entries])
    row["by_chance"] = sum(entry["worst_case"]["chance"] for entry in entries) / len(entries)
    row["false_security"] = sum(bool(false_security(entry)) for entry in entries)
    row["learnt"] = not any(map(not_learnt, entries))
    row["on_front"] = {}
    costs = [entry["cost"]["seconds_per_image"] for entry in entries]
    row["seconds_per_image"] = None if None in costs else sum(costs) / len(costs)
    return row


def write_summary(folder: Path, summary: dict[str, Any]) -> Path:
    """Write benchmark.json, three tables, areas.csv and pareto.png; return the path of table.md."""
    write_file(folder / "benchmark.json", to_json(summary))
    write_file(folder / "table.csv", _csv(_flat(summary)).encode())
    write_file(folder / "areas.csv", _csv(_flat_areas(summary)).encode())
    write_file(folder / "table.tex", _latex(summary).encode())
    if (plot := _pareto(summary)) is not None:
        write_file(folder / "pareto.png", plot)
    return write_file(folder / "table.md", _markdown(summary).encode())


def _pareto(summary: dict[str, Any]) -> bytes | None:
    """The audit's Pareto plot, of the seeds' means; None of a single defence."""
    entries = []
    for row in summary["rows"]:
        entry: dict[str, Any] = {"name": row["curve"], "settings": {}, "retrains": row["retrains"]}
        entry |= {"on_front": row["on_front"], "worst_case": {"eval_acc": row["worst_case"]}}
        for name, figure in (("utility", "mean_auc"), (TRAINING, "mean_auc_training")):
            entry |= {name: {"mean_auc": row[figure]}} if figure in row else {}
        entries.append(entry)
    return pareto({"areas": summary["areas"], "defenses": entries})


def _cells(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table for readers: rates in per cent, each with its interval."""
    trained = any("mean_auc_training" in row for row in summary["rows"])
    attacks = summary["attacks"]
    heads = ["defence", "retrains", "mean AUC", *(["AUC, training"] if trained else [])]
    heads += [name.replace("_", " ") for name in attacks]
    heads += ["worst case", "by chance", "s a face", "front"]
    rows = []
    for row in summary["rows"]:
        cells = [
            row["defence"] + _flagged(row) + _count(row, summary),
            ", ".join(row["retrains"]) or "-",
        ]
        cells.append(_number(row["mean_auc"]))
        if trained:
            cells.append(_number(row["mean_auc_training"]) if "mean_auc_training" in row else "-")
        cells += [_rate(row["attacks"][name]) for name in attacks]
        cells += [_rate(row["worst_case"]), percent(row["by_chance"])]
        cost = row["seconds_per_image"]
        cells.append("-" if cost is None else f"{cost:.2g}")
        fronts = {"utility": "inference", TRAINING: "training"}
        cells.append(", ".join(name for key, name in fronts.items() if row["on_front"].get(key)) or "-")
        rows.append(cells)
    return heads, rows


def _flagged(row: dict[str, Any]) -> str:
    """The mark of false security, and of how many seeds, if not of all; or of no attack having learnt."""
    flags, seeds = row["false_security"], len(row["worst_case"]["seeds"])
    if not row["learnt"]:
        return " (no attack has learnt from it)"
    return "" if not flags else " (!)" if flags == seeds else f" (! {flags} of {seeds})"


def _count(row: dict[str, Any], summary: dict[str, Any]) -> str:
    """Of how many seeds a row is, if not of all."""
    seeds, every = len(row["worst_case"]["seeds"]), len(summary["seeds"])
    return f" ({seeds} of {every} seeds)" if seeds < every else ""


def _area_cells(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    scenarios = list(summary["areas"])
    names = {"none": "unprotected", "all": "best of all"}
    retrains = _retrains(summary)
    rows = [
        [names.get(name, name.replace("_", " ")), ", ".join(retrains[name]) or "-"]
        + [_rate(own[name]) if name in (own := summary["areas"][s]) else "-" for s in scenarios]
        for name in summary["areas"]["inference"]
    ]
    return ["defence", "retrains", *(f"area, {name}" for name in scenarios)], rows


def _retrains(summary: dict[str, Any]) -> dict[str, list[str]]:
    """What the defence of each curve retrains."""
    return {"all": ["any"], **{row["curve"]: row["retrains"] for row in summary["rows"]}}


def _number(figure: dict[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{figure['value']:.3f} ({low:.3f} to {high:.3f}){_spread(figure, 1, 3)}"


def _rate(figure: dict[str, Any]) -> str:
    low, high = (100 * end for end in figure["ci95"])
    return f"{100 * figure['value']:.1f} % ({low:.1f} to {high:.1f}){_spread(figure, 100, 1)}"


def _spread(figure: dict[str, Any], scale: float, digits: int) -> str:
    if len(figure["seeds"]) < 2:
        return ""
    low, high = (scale * end for end in (min(figure["seeds"]), max(figure["seeds"])))
    return f" [{low:.{digits}f} to {high:.{digits}f}]"


def _notes(summary: dict[str, Any]) -> list[str]:
    data, oracles = summary["data"], summary["oracles"]
    names = ", ".join(f"{name} {percent(value)}" for name, value in oracles.items())
    notes = [
        f"{data['images']} faces of {data['identities']} people, {data['source']}, {data['image_size']} "
        f"pixels; attacks of the budget {summary['budget']}; oracles on originals: {names}.",
        "Single attacks: named by the first oracle; worst case: by any attack and any oracle. In brackets "
        "95 % intervals over people.",
        f"Area: mean worst case over all losses of mean AUC from 0 to {BUDGET:g} that one may be "
        "willing to bear; low is better.",
    ]
    if len(summary["seeds"]) > 1:
        notes.append(
            f"Means over {len(summary['seeds'])} seeds; the interval holds all of theirs. In square brackets "
            "the lowest and the highest seed. The front is that of the means."
        )
    if any(row["false_security"] for row in summary["rows"]):
        notes.append(
            "(!) false security: an attack that knows the defence gets more than any that does not; with "
            "numbers: in so many of the seeds."
        )
    if not all(row["learnt"] for row in summary["rows"]):
        notes.append(
            "Where no attack has learnt from a defence its rates are no figures of protection: give "
            "--attackers and a --budget with their attacks."
        )
    return notes


def _markdown(summary: dict[str, Any]) -> str:
    parts = []
    for heads, rows in (_cells(summary), _area_cells(summary)):
        lines = [heads, ["---"] * len(heads), *rows]
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*parts, "\n".join(_notes(summary))]) + "\n"


def _latex(summary: dict[str, Any]) -> str:
    """Two tables for a paper that uses the package booktabs."""
    parts = [f"% {note}" for note in _notes(summary)]
    for heads, rows in (_cells(summary), _area_cells(summary)):
        parts += [
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            _tex_row(heads),
            r"\midrule",
        ]
        parts += [*map(_tex_row, rows), r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


def _tex_row(cells: list[str]) -> str:
    escaped = [cell.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&") for cell in cells]
    return " & ".join(escaped) + r" \\"


def _flat(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The table's numbers alone, each with its interval in columns of their own."""
    rows = []
    for row in summary["rows"]:
        figures = {key: row[key] for key in ("mean_auc", "mean_auc_training", "worst_case") if key in row}
        flat = {"defence": row["defence"], "retrains": " ".join(row["retrains"])}
        flat |= _columns({**figures, **row["attacks"]})
        flat |= {key: row[key] for key in ("by_chance", "learnt", "false_security", "seconds_per_image")}
        flat |= {f"on_front_{key}": value for key, value in row["on_front"].items()}
        rows.append(flat)
    return rows


def _flat_areas(summary: dict[str, Any]) -> list[dict[str, Any]]:
    retrains = _retrains(summary)
    return [
        {"defence": name, "retrains": " ".join(retrains[name])}
        | _columns({scenario: own[name] for scenario, own in summary["areas"].items() if name in own})
        for name in summary["areas"]["inference"]
    ]


def _columns(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, figure in figures.items():
        flat |= {name: figure["value"], f"{name}_low": figure["ci95"][0], f"{name}_high": figure["ci95"][1]}
        flat[f"{name}_seeds"] = " ".join(map(str, figure["seeds"]))
    return flat


def _csv(rows: list[dict[str, Any]]) -> str:
    buffer = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(buffer, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
