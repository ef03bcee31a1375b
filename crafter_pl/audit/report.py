"""Writes an audit's results: report.json, report.html, table.csv, groups.md and the plots.

Every file is written beside its place and moved there, so that a reader never meets half a report.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save

from crafter_pl.audit import plots
from crafter_pl.audit.front import TRAINING
from crafter_pl.audit.grouptable import markdown, sentences
from crafter_pl.audit.page import render
from crafter_pl.audit.plots import Column, Gallery
from crafter_pl.audit.verdict import (
    Report,
    curves,
    learnt,
    percent,
    percent_range,
    title,
    verdict,
    warnings,
)
from crafter_pl.errors import UserError
from crafter_pl.files import read_json, to_json, write_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GALLERY = "gallery.safetensors"  # the pictures of the grid, so that `rebuild` needs nothing else


def complete(report: Report) -> Report:
    """Add what follows from the numbers: the verdict, the warnings and whether the curves are monotone."""
    return {**report, "verdict": verdict(report), "warnings": warnings(report), "curves": curves(report)}


def write_report(out: Path, report: Report, gallery: Gallery) -> Path:
    """Write all files of a report to `out` and return the path of report.html, which is written last.

    Args:
        out: folder, made if missing.
        report: the report of `audit`; verdict, warnings and curves are added here.
        gallery: pictures for the grid.

    Raises:
        ValueError: on a number that is not finite.
    """
    out.mkdir(parents=True, exist_ok=True)
    report = complete(report)
    text = to_json(report).encode()
    pictures = {"tradeoff": plots.tradeoff(report)}
    for over in plots.AXES:
        if (curve := plots.adaptation(report, over)) is not None:
            pictures[f"adaptation_{over}"] = curve
    if (side_by_side := plots.pareto(report)) is not None:
        pictures["pareto"] = side_by_side
    tensors = {"originals": gallery.originals}
    both = [*gallery.columns, *gallery.rounds]
    tensors |= {f"column-{i}": column.images for i, column in enumerate(both)}
    columns = [
        {"attack": c.attack, "features": c.features, "named": c.named, "moment": c.moment} for c in both
    ]
    tensors = {
        name: (value.clamp(0, 1) * 255).round().byte().cpu().contiguous() for name, value in tensors.items()
    }
    files = {GALLERY: save(tensors, metadata={"columns": json.dumps(columns)})}
    files |= {f"{name}.png": picture for name, picture in pictures.items()}
    files |= {"reconstructions.png": plots.reconstructions(gallery), "table.csv": table(report).encode()}
    if report.get("groups"):
        files["groups.md"] = markdown(report).encode()
    else:
        (out / "groups.md").unlink(missing_ok=True)  # of an earlier audit by groups
    files |= {"report.json": text, "report.html": render(report, gallery, pictures).encode()}
    for name, data in files.items():
        write_file(out / name, data)
    return out / "report.html"


def read_report(folder: Path) -> Report:
    """The report.json of an audit's folder.

    Raises:
        UserError: there is none, it is no report, or of another version.
    """
    file = folder / "report.json"
    if not file.is_file():
        raise UserError(
            f"no report in {folder}: report.json is missing; run the audit with --out {folder} first"
        )
    report: Report = read_json(file, "run the audit again with --overwrite true")
    schema = report.get("schema") if isinstance(report, dict) else None
    if schema != 1:
        raise UserError(f"{file} has schema {schema}, expected 1. Run the audit again.")
    try:
        _complete_old(report)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"The report in {folder} is damaged ({error!r}). Run the audit again with --overwrite true."
        ) from error
    return report


def _complete_old(report: Report) -> None:
    """Adds to a report of an earlier version which attacks and rulers have learnt from which defence."""
    for entry in report["defenses"]:
        known = entry["name"] == "none"
        results = [(name, [result]) for name, result in entry["attacks"].items()]
        for name, points in [*results, *entry.get("history", {}).items()]:
            for point in points:
                point.setdefault("learnt", known or bool(report["attacks"][name].get("adaptive")))
        for result in entry.get("rulers", {}).values():
            result.setdefault("learnt", known)


def rebuild(folder: str) -> Path:
    """Write a report's page, table and plots again from its report.json and the pictures kept beside it.

    Args:
        folder: where an audit wrote its report.

    Returns:
        Path of report.html.

    Raises:
        UserError: if the folder has no complete report of this version.
    """
    from safetensors import SafetensorError, safe_open

    out = Path(folder)
    report = read_report(out)
    if not (out / GALLERY).is_file():
        raise UserError(f"no report in {out}: {GALLERY} is missing; run the audit with --out {out} again")
    try:
        with safe_open(out / GALLERY, framework="pt") as handle:
            columns = json.loads(handle.metadata()["columns"])
        tensors = {name: value.float() / 255 for name, value in load_file(out / GALLERY).items()}
        shown = [
            Column(c["attack"], c["features"], tensors[f"column-{i}"], c["named"], c.get("moment"))
            for i, c in enumerate(columns)
        ]
        gallery = Gallery(
            tensors["originals"],
            [column for column in shown if column.moment is None],
            [column for column in shown if column.moment is not None],
        )
        return write_report(out, report, gallery)
    except (SafetensorError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"The report in {out} is damaged ({error!r}). Run the audit again with --overwrite true."
        ) from error


def to_tensorboard(folder: Path, report: Report, gallery: Gallery) -> None:
    """Scalars and the grid, in place of those of an earlier audit in the same folder."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(log_dir=str(folder)) as writer:
        for entry in report["defenses"]:
            writer.add_scalar(f"mean_auc/{entry['label']}", entry["utility"]["mean_auc"]["value"])
            writer.add_scalar(f"worst_case/{entry['label']}", entry["worst_case"]["eval_acc"]["value"])
            for name, result in entry["attacks"].items():
                for key in ("eval_acc", "identity_similarity", "ssim"):
                    writer.add_scalar(f"{name}_{key}/{entry['label']}", result[key]["value"])
            for name, points in entry.get("history", {}).items():
                _curves(writer, f"{name}, {entry['label']}", points)
        for (attack, features), rounds in gallery.adapting().items():
            for column in rounds.columns:
                assert column.moment is not None
                grid = plots.mosaic(Gallery(gallery.originals, [column]))
                tag = f"audit/reconstructions_by_round/{attack}, {features}"
                writer.add_image(tag, grid, column.moment["round"], dataformats="HWC")
        writer.add_image("reconstructions", plots.mosaic(gallery), dataformats="HWC")
        writer.add_text("verdict", verdict(report))
        writer.add_text("settings", f"```\n{json.dumps(report['settings'], indent=1)}\n```")


def _curves(writer: SummaryWriter, line: str, points: list[dict[str, Any]]) -> None:
    """How an attack gains over rounds and over pairs, each with both ends of its interval."""
    for over in plots.AXES:
        for point in points:
            for key in ("eval_acc", "panel_any", "identity_similarity", "ssim"):
                low, high = point[key]["ci95"]
                tag = f"audit/{key}_by_{over}/{line}"
                writer.add_scalar(tag, point[key]["value"], point[over])
                writer.add_scalar(f"{tag}, low", low, point[over])
                writer.add_scalar(f"{tag}, high", high, point[over])


def _cells(name: str, figure: dict[str, Any]) -> dict[str, Any]:
    return {name: figure["value"], f"{name}_low": figure["ci95"][0], f"{name}_high": figure["ci95"][1]}


def table(report: Report) -> str:
    """The figures as CSV: one row for every features and attack, each figure with its interval.

    Then one for every moment of an attack that adapts, and one for every ruler.
    """
    rows = [row for entry in report["defenses"] for row in _rows(report, entry)]
    buffer = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, fieldnames=columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _rows(report: Report, entry: Report) -> Iterator[dict[str, Any]]:
    alike = {"features": entry["label"], "beta": entry["beta"]}
    alike["retrains"] = " ".join(entry.get("retrains", []))
    tail = _cells("mean_auc", entry["utility"]["mean_auc"]) | _cells(
        "worst_case", entry["worst_case"]["eval_acc"]
    )
    if TRAINING in entry:
        tail |= _cells("mean_auc_training", entry[TRAINING]["mean_auc"])
    tail |= {"worst_case_chance": entry["worst_case"]["chance"], "chance": report["data"]["chance"]}
    if basic := entry.get("worst_case_basic"):
        tail |= _cells("worst_case_basic", basic["eval_acc"])
    if adapted := entry.get("false_security"):
        tail |= {"false_security": adapted["flag"], **_cells("adaptive_gain", adapted["gain"])}
    tail |= {"images": report["data"]["images"], "identities": report["data"]["identities"]}
    moments: list[tuple[str, dict[str, Any]]] = list(entry["attacks"].items())
    moments += [(name, point) for name, points in entry.get("history", {}).items() for point in points]
    for name, result in moments:
        row = {**alike, "attack": name, "adaptive": report["attacks"][name].get("adaptive", False)}
        row["learnt"] = result["learnt"]
        row |= {key: result[key] for key in ("round", "pairs", "epochs") if key in result}
        for key, value in result.items():
            if isinstance(value, dict) and "value" in value:
                row |= _cells(key, value)
        parts = {"by_oracle": "eval_acc", "top5_by_oracle": "eval_acc_top5", "tar_by_oracle": "tar"}
        for part, column in parts.items():
            for oracle, value in result.get(part, {}).items():
                row |= _cells(f"{column}[{oracle}]", value)
        yield row | tail
    for name, result in entry.get("rulers", {}).items():
        yield {
            **alike,
            "ruler": name,
            "learnt": result["learnt"],
            **_cells("top1", result["top1"]),
            **_cells("top5", result["top5"]),
        } | tail


def text(report: Report) -> str:
    """The short table for the terminal: utility, attacks, worst case, chance, and the oracles' accuracy."""
    report = complete(report)
    data, attacks = report["data"], list(report["defenses"][0]["attacks"])
    adaptive = any(entry.get("false_security") for entry in report["defenses"])
    more = ["not adaptive"] if adaptive else []
    both = any(TRAINING in entry for entry in report["defenses"])
    trained = ["training"] if both else []
    known = ["learnt by"] if report["defenses"][1:] else []  # how many attacks have learnt from the defence
    lines = [["features", "mean AUC", *trained, *attacks, *more, "worst case", "(95 %)", "by chance", *known]]
    for entry in report["defenses"]:
        worst = entry["worst_case"]
        row = [entry["label"], f"{entry['utility']['mean_auc']['value']:.3f}"]
        if both:
            row.append(f"{entry[TRAINING]['mean_auc']['value']:.3f}" if TRAINING in entry else "-")
        row += [percent(entry["attacks"][name]["eval_acc"]["value"]) for name in attacks]
        row += [percent(entry["worst_case_basic"]["eval_acc"]["value"])] if adaptive else []
        row += [
            percent(worst["eval_acc"]["value"]),
            percent_range(worst["eval_acc"]["ci95"]),
            percent(worst["chance"]),
        ]
        if known:
            count = len(learnt(entry))
            row.append(
                "" if entry["name"] == "none" else f"{count} of {len(attacks)}" if count else "NO ATTACK"
            )
        lines.append(row)
    lines.append(
        [
            "chance of one guess",
            "0.500",
            *["0.500" for _ in trained],
            *[percent(data["chance"])] * len(attacks),
            *[""] * (3 + len(more) + len(known)),
        ]
    )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        rows.append("  ".join([line[0].ljust(widths[0]), *cells[1:]]))
    panel = report["panel"]["accuracy_on_originals"]["value"]
    oracles = ", ".join(f"{o['name']} {percent(o['accuracy_on_originals'])}" for o in report["oracles"])
    head = f"Audit of {data['source']}: {data['images']} faces of {data['identities']} people"
    tail = [f"oracles on the originals: {oracles}; any {percent(panel)}"]
    tail += [
        f"ruler {name}, {title(entry)}: names {percent(own['top1']['value'])} straight from the feature "
        f"({percent_range(own['top1']['ci95'])})"
        + ("" if own["learnt"] else ", NOT LEARNT FROM THIS DEFENCE: no figure of protection")
        for entry in report["defenses"]
        for name, own in entry.get("rulers", {}).items()
    ]
    tail += sentences(report)
    tail += [curve["sentence"] for curve in report["curves"]]
    tail += [report["verdict"], *(f"warning: {warning}" for warning in report["warnings"])]
    return "\n".join([head, "", *(row.rstrip() for row in rows), "", *tail])
