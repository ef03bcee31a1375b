"""A benchmark's results over all seeds: benchmark.json, and tables as CSV, Markdown and LaTeX."""

from pathlib import Path

from crafter_pl.audit import record
from crafter_pl.audit.compare import BUDGET, SCENARIOS, on_front
from crafter_pl.audit.schema import DefenseResult
from crafter_pl.audit.show.plots import OVER, Point, defences
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import Table, number
from crafter_pl.benchmark.grid import Cell, Place
from crafter_pl.benchmark.rows import OverSeeds, Row, Summary, over_seeds
from crafter_pl.files import to_json, write_file


def summarise(folder: Path, grid: list[Cell], place: Place, seconds: dict[str, float]) -> Summary:
    """Join the audits of all seeds.

    Args:
        folder: of the benchmark, with ``seedN/report.json``.
        grid: the cells that were audited, at least one.
        place: of the runs.
        seconds: that each job took when it was run.
    """
    reports = {
        seed: record.read_report(folder / f"seed{seed}") for seed in sorted({cell.seed for cell in grid})
    }
    titles = {cell.store(place): cell.title for cell in grid}
    found: dict[str, list[DefenseResult]] = {}
    for report in reports.values():
        for entry in report.defenses:
            title = entry.title if entry.store is None else titles[entry.store]
            found.setdefault(title, []).append(entry)
    first = next(iter(reports.values()))
    areas: dict[str, dict[str, OverSeeds]] = {}
    for scenario in first.areas:
        every = [report.areas.get(scenario, {}) for report in reports.values()]
        names = dict.fromkeys(name for one in every for name in one)
        areas[scenario] = {name: over_seeds([one[name] for one in every if name in one]) for name in names}
    rows = [_row(title, entries, first.data.identities) for title, entries in found.items()]
    for key in SCENARIOS:
        points = [(row, (own.value, row.worst_case.value)) for row in rows if (own := row.utility(key))]
        for (row, _), won in zip(points, on_front([point for _, point in points]), strict=True):
            row.on_front[key] = won
    return Summary(
        data=first.data,
        budget=first.settings["budget"],
        attacks=list(first.attacks),
        oracles={one.name: one.accuracy_on_originals for one in first.oracles},
        seeds=list(reports),
        rows=rows,
        areas=areas,
        seconds=seconds,
    )


def _row(title: str, entries: list[DefenseResult], people: int) -> Row:
    costs = [cost for entry in entries if (cost := entry.cost["seconds_per_image"]) is not None]
    training = [entry.utility_training.kept for entry in entries if entry.utility_training]
    listed = [entry.worst_case_gallery.eval_acc for entry in entries if entry.worst_case_gallery]
    proofs = [entry.certificate for entry in entries if entry.certificate]
    return Row(
        defence=title,
        curve=entries[0].curve,
        retrains=entries[0].retrains,
        figure=entries[0].utility.main,
        agreement=entries[0].utility.agreement,
        kept=over_seeds([entry.utility.kept for entry in entries]),
        kept_training=over_seeds(training) if len(training) == len(entries) else None,
        attacks={
            name: over_seeds([entry.attacks[name].eval_acc for entry in entries])
            for name in entries[0].attacks
        },
        worst_case=over_seeds([entry.worst_case.eval_acc for entry in entries]),
        worst_case_gallery=over_seeds(listed) if len(listed) == len(entries) else None,
        by_chance=sum(entry.worst_case.chance for entry in entries) / len(entries),
        bound=max(one.bound(people) for one in proofs) if proofs else None,
        needs_kept=over_seeds([one.needs_kept for one in proofs]) if proofs else None,
        false_security=sum(entry.flagged for entry in entries),
        learnt=not any(entry.untested for entry in entries),
        seconds_per_image=sum(costs) / len(costs) if len(costs) == len(entries) else None,
    )


def write_summary(folder: Path, summary: Summary) -> Path:
    """Write benchmark.json, three tables, areas.csv and pareto.png; return the path of table.md."""
    write_file(folder / "benchmark.json", to_json(record.to_json(summary)))
    write_file(folder / "table.csv", _records(summary).csv())
    write_file(folder / "areas.csv", _area_records(summary).csv())
    shown, notes = [_table(summary), _areas(summary)], _notes(summary)
    tex = [*(f"% {note}" for note in notes), *(table.latex() for table in shown)]
    write_file(folder / "table.tex", "\n".join(tex) + "\n")
    points = [
        Point(
            key,
            utility,
            row.worst_case,
            row.curve.replace("_", " ") if row.curve != "none" else "unprotected",
            hollow=bool(row.retrains),
        )
        for key in SCENARIOS
        for row in summary.rows
        if (utility := row.utility(key))
    ]
    first = summary.rows[0]
    if (plot := defences(points, first.title if first.figure or first.agreement else OVER)) is not None:
        write_file(folder / "pareto.png", plot)
    markdown = [*(table.markdown() for table in shown), "\n".join(notes)]
    return write_file(folder / "table.md", "\n\n".join(markdown) + "\n")


def _figure(figure: OverSeeds | None, digits: int | None = None) -> str:
    """A figure with its interval and, of several seeds, lowest and highest; without digits a share."""
    if figure is None:
        return "-"
    scale, places = (100, 1) if digits is None else (1, digits)
    low, high = (f"{scale * end:.{places}f}" for end in (min(figure.seeds), max(figure.seeds)))
    interval = f"{scale * figure.low:.{places}f} to {scale * figure.high:.{places}f}"
    spread = f" [{low} to {high}]" if len(figure.seeds) > 1 else ""
    return f"{number(figure, digits).text} ({interval}){spread}"


def _table(summary: Summary) -> Table:
    """The table for readers: rates in per cent, each with its interval."""
    trained = any(row.kept_training for row in summary.rows)
    galleries = any(row.worst_case_gallery for row in summary.rows)
    proved = any(row.needs_kept for row in summary.rows)
    attacks = [name.replace("_", " ") for name in summary.attacks]
    name = summary.rows[0].title
    short = name.removeprefix("mean ")
    head = ["defence", "retrains", name, *[f"{short}, training"] * trained, *attacks]
    rows = []
    for row in summary.rows:
        seeds, flags = len(row.worst_case.seeds), row.false_security
        mark = " (!)" if flags == seeds else f" (! {flags} of {seeds})"
        mark = mark if flags and row.learnt else "" if row.learnt else " (no attack has learnt from it)"
        some = f" ({seeds} of {len(summary.seeds)} seeds)" if seeds < len(summary.seeds) else ""
        cells = [
            row.defence + mark + some,
            ", ".join(row.retrains) or "-",
            _figure(row.kept, 3),
            *[_figure(row.kept_training, 3)] * trained,
            *(_figure(row.attacks[name]) for name in summary.attacks),
            _figure(row.worst_case),
            percent(row.by_chance),
            *[_figure(row.worst_case_gallery)] * galleries,
            *["none" if row.bound is None else f"proved {percent(row.bound)}", _figure(row.needs_kept, 3)]
            * proved,
            "-" if row.seconds_per_image is None else f"{row.seconds_per_image:.2g}",
            ", ".join(SCENARIOS[key] for key, best in row.on_front.items() if best) or "-",
        ]
        rows.append(cells)
    head += ["worst case", "by chance", *["with a gallery"] * galleries]
    head += ["bound", f"{short} on the needs"] * proved
    return Table([*head, "s a face", "front"], rows)


def _areas(summary: Summary) -> Table:
    names, retrains = {"none": "unprotected", "all": "best of all"}, _retrains(summary)
    rows = [
        [names.get(name, name.replace("_", " ")), ", ".join(retrains[name]) or "-"]
        + [_figure(own.get(name)) for own in summary.areas.values()]
        for name in summary.areas["inference"]
    ]
    return Table(["defence", "retrains", *(f"area, {name}" for name in summary.areas)], rows)


def _retrains(summary: Summary) -> dict[str, list[str]]:
    """What the defence of each curve retrains."""
    return {"all": ["any"], **{row.curve: row.retrains for row in summary.rows}}


def _notes(summary: Summary) -> list[str]:
    data, rows = summary.data, summary.rows
    names = ", ".join(f"{name} {percent(value)}" for name, value in summary.oracles.items())
    notes = [
        f"{data.images} faces of {data.identities} people, {data.source}, {data.image_size} "
        f"pixels; attacks of the budget {summary.budget}; oracles on originals: {names}.",
        "Single attacks: named by the first oracle; worst case: by any attack and any oracle. In brackets "
        "95 % intervals over people.",
        f"Area: mean worst case over all losses of {rows[0].title} from 0 to {BUDGET:g} that one may be "
        "willing to bear; low is better.",
    ]
    if len(summary.seeds) > 1:
        notes.append(
            f"Means over {len(summary.seeds)} seeds; the interval holds all of theirs. In square brackets "
            "the lowest and the highest seed. The front is that of the means."
        )
    if any(row.false_security for row in rows):
        notes.append(
            "(!) false security: an attack that knows the defence gets more than any that does not; with "
            "numbers: in so many of the seeds."
        )
    if not all(row.learnt for row in rows):
        notes.append(
            "Where no attack has learnt from a defence its rates are no figures of protection: give "
            "--attackers and a --budget with their attacks."
        )
    return notes


def _records(summary: Summary) -> Table:
    """The table's numbers alone, each with its interval in columns of their own."""
    return Table.of(
        [
            {
                "defence": row.defence,
                "retrains": " ".join(row.retrains),
                names["kept"]: row.kept,
                **({} if row.kept_training is None else {names["kept_training"]: row.kept_training}),
                "worst_case": row.worst_case,
                **row.attacks,
                "by_chance": row.by_chance,
                **({} if row.worst_case_gallery is None else {"worst_case_gallery": row.worst_case_gallery}),
                **(
                    {}
                    if row.needs_kept is None
                    else {"bound": row.bound, names["needs_kept"]: row.needs_kept}
                ),
                "learnt": row.learnt,
                "false_security": row.false_security,
                "seconds_per_image": row.seconds_per_image,
                **{f"on_front_{key}": best for key, best in row.on_front.items()},
            }
            for row in summary.rows
            for names in [row.json_names()]
        ]
    )


def _area_records(summary: Summary) -> Table:
    retrains = _retrains(summary)
    return Table.of(
        [
            {"defence": name, "retrains": " ".join(retrains[name])}
            | {scenario: own[name] for scenario, own in summary.areas.items() if name in own}
            for name in summary.areas["inference"]
        ]
    )
