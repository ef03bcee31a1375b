"""The tables of a report, and its text for the terminal."""

from collections.abc import Iterator
from typing import Any

from crafter_pl.audit.columns import COLUMNS
from crafter_pl.audit.schema import AttackResult, DefenseResult, ReaderResult, Report
from crafter_pl.audit.show import proof
from crafter_pl.audit.show.sentences import (
    UNTESTED,
    group_sentences,
    percent,
    percent_range,
)
from crafter_pl.audit.show.table import Cell, Table, number, rate
from crafter_pl.audit.utility import TITLES
from crafter_pl.metrics import Estimate

CHANCE = "chance of one guess"
READ = {  # figures of a reader
    "top1": "names the person",
    "top5": "among its top 5",
    "tar": "TAR at FAR 1 %",
    "tar_strict": "at FAR 0.1 %",
    "eer": "equal error rate",
}


def heading(entry: DefenseResult, below: str = "", result: AttackResult | ReaderResult | None = None) -> Cell:
    """The first cell of a row: what the features are, and what must not be missed.

    Args:
        entry: the features.
        below: what the row is of, an attack or a ruler.
        result: its figures.
    """
    notes = [f"retrains {', '.join(entry.retrains)}"] if entry.retrains else []
    notes += ["proved"] * (entry.certificate is not None)
    if below:
        unknown = result is not None and not entry.plain and not result.learnt
        bad = ["has not learnt from this defence"] * unknown
        galleries = getattr(result, "galleries", None) or {}
        notes += [f"{name} by a drawn gallery" for name, kind in galleries.items() if kind == "drawn"]
        return Cell(entry.title, notes=[*notes, below], warnings=bad)
    bad = ["false security"] * entry.flagged + [UNTESTED] * entry.untested
    return Cell(entry.title, notes=notes, warnings=bad)


def marked(entry_or_name: str, retrains: list[str]) -> str:
    """A row's name in a table, with what the defence makes a service roll out anew."""
    return f"{entry_or_name} (retrains {', '.join(retrains)})" if retrains else entry_or_name


def known(report: Report, name: str) -> str:
    """An attack's name; one that knows the defence is marked."""
    knows = report.attacks[name].get("adaptive") and "adaptive" not in name
    return f"{name} (adaptive)" if knows else name


def records(report: Report) -> Table:
    """The figures as in table.csv: a row for every features and attack, each figure with its interval.

    Then one for every round of an attack that adapts, and one for every ruler.
    """
    return Table.of([row for entry in report.defenses for row in _records(report, entry)])


def _records(report: Report, entry: DefenseResult) -> Iterator[dict[str, Any]]:
    alike: dict[str, Any] = {
        "features": entry.label,
        "beta": entry.beta,
        "retrains": " ".join(entry.retrains),
    }
    training, basic, found = entry.utility_training, entry.worst_case_basic, entry.false_security
    tail = {
        **entry.utility.figures,
        "worst_case": entry.worst_case.eval_acc,
        **({f"{key}_training": one for key, one in training.figures.items()} if training else {}),
        "worst_case_chance": entry.worst_case.chance,
        "chance": report.data.chance,
        **({"worst_case_basic": basic.eval_acc} if basic else {}),
        **({"false_security": found.flag, "adaptive_gain": found.gain} if found else {}),
        **proof.figures(entry.certificate, report.data.identities),
        "images": report.data.images,
        "identities": report.data.identities,
    }
    results = [*entry.attacks.items(), *((name, one) for name, own in entry.history.items() for one in own)]
    for name, result in results:
        row = {
            **alike,
            "attack": name,
            "adaptive": report.attacks[name].get("adaptive", False),
            "learnt": result.learnt,
        }
        if result.round is not None:
            row |= {"round": result.round, "pairs": result.pairs, "epochs": result.epochs}
        shares = {
            f"{column.key}[{oracle}]": figure
            for column in COLUMNS
            if column.digits is None
            for oracle, figure in result.by_oracle.get(column.key, {}).items()
        }
        yield {**row, **result.figures, **shares, **tail}
    for name, own in entry.rulers.items():
        figures = {key: getattr(own, key) for key in READ if getattr(own, key) is not None}
        yield {**alike, "ruler": name, "learnt": own.learnt, **figures} | tail


def summary(report: Report) -> Table:
    """A row for every set of features: utility, worst case and single attacks."""
    attacks, entries = list(report.defenses[0].attacks), report.defenses
    both = any(entry.false_security for entry in entries)
    trained = any(entry.utility_training for entry in entries)
    listed = any(entry.worst_case_gallery for entry in entries)
    certain, utility = any(entry.certificate for entry in entries), entries[0].utility
    head = [
        *("features", utility.head, *["on the needs"] * certain),
        *([f"{utility.head}, training scenario"] * trained),
        "worst case",
        *(
            *["without adaptive attacks"] * both,
            "by chance",
            *["with a gallery"] * listed,
            *["bound, one guess"] * certain,
        ),
        *(*(known(report, name) for name in attacks), "cost a face"),
    ]
    rows = [
        [
            heading(entry),
            number(entry.utility.kept),
            *[proof.needed(entry.certificate) if entry.certificate else "-"] * certain,
            *[or_dash(entry.utility_training.kept if entry.utility_training else None)] * trained,
            rate(entry.worst_case.eval_acc, "bad" if entry.plain or entry.flagged else ""),
            *[or_dash(entry.worst_case_basic.eval_acc if entry.worst_case_basic else None, None)] * both,
            Cell(percent(entry.worst_case.chance)),
            *[or_dash(entry.worst_case_gallery.eval_acc if entry.worst_case_gallery else None, None)]
            * listed,
            *[proof.bound(entry.certificate, report.data.identities) if entry.certificate else "none"]
            * certain,
            *(rate(entry.attacks[name].eval_acc) for name in attacks),
            "-" if (seconds := entry.cost["seconds_per_image"]) is None else f"{seconds:.3g} s",
        ]
        for entry in entries
    ]
    chance = [percent(report.data.chance)] * len(attacks)
    return Table(
        head,
        [
            *rows,
            [
                CHANCE,
                *[utility.by_chance] * (1 + certain + trained),
                *[""] * (2 + both + listed + certain),
                *chance,
                "",
            ],
        ],
    )


def or_dash(figure: Estimate | None, digits: int | None = 3) -> Cell:
    """A figure, if there is one."""
    return Cell("-") if figure is None else number(figure, digits)


def utilities(report: Report) -> Table:
    """All figures of utility, a column for every set of features."""
    entries = report.defenses
    rows = [
        [TITLES[key], *(number(entry.utility.figures[key]) for entry in entries)]
        for key in entries[0].utility.figures
    ]
    return Table(["figure", *(entry.title for entry in entries)], rows)


def readers(report: Report) -> Table:
    """A row for every reader, which draws no picture, on every set of features."""
    rows: list[list[Any]] = [
        [
            heading(entry, f"{name} (gallery)" if own.suspects else name, own),
            *(or_dash(getattr(own, key), None) for key in READ),
        ]
        for entry in report.defenses
        for name, own in entry.rulers.items()
    ]
    for entry in report.defenses:
        if (worst := entry.worst_case_gallery) is not None:
            label = Cell(entry.title, notes=["any with a gallery"])
            rows.append([label, rate(worst.eval_acc), *["-"] * (len(READ) - 1)])
    return Table(["features, reader", *READ.values()], rows)


def areas(report: Report) -> Table:
    """The area under each defence's curve, in each scenario."""
    retrains = {entry.curve: entry.retrains for entry in report.defenses}
    names = {"none": "unprotected", "all": "the best of all"}
    rows = [
        [
            marked(names.get(name, name), retrains.get(name, [])),
            *(rate(own[name]) if name in own else "-" for own in report.areas.values()),
        ]
        for name in report.areas["inference"]
    ]
    return Table(["defence", *(f"area under its curve, {name}" for name in report.areas)], rows)


def details(report: Report) -> Table:
    """A row for every attack on every set of features: each oracle, and every column that has a heading."""
    oracles, there = [oracle.name for oracle in report.oracles], report.defenses[0].attacks.values()
    columns = [one for one in COLUMNS if one.heading and any(one.key in result.figures for result in there)]
    columns.sort(key=lambda one: one.digits is not None)  # shares first
    rows = [
        [
            heading(entry, known(report, name), result),
            *(rate(result.by_oracle["eval_acc"][oracle]) for oracle in oracles),
            rate(result.figures["panel_any"]),
            *(number(result.figures[one.key], one.digits) for one in columns),
        ]
        for entry in report.defenses
        for name, result in entry.attacks.items()
    ]
    return Table(["features, attack", *oracles, "any oracle", *(one.heading for one in columns)], rows)


def text(report: Report) -> str:
    """The short report for the terminal: a table, and every sentence."""
    data, entries, attacks = report.data, report.defenses, list(report.defenses[0].attacks)
    adaptive = any(entry.false_security for entry in entries)
    trained = any(entry.utility_training for entry in entries)
    certain = any(entry.certificate for entry in entries)
    several, utility = len(entries) > 1, entries[0].utility
    head = ["features", utility.head, *["on the needs"] * certain, *["training"] * trained, *attacks]
    head += ["not adaptive"] * adaptive
    rows = []
    for entry in entries:
        other, basic, count = entry.utility_training, entry.worst_case_basic, len(entry.learnt)
        proved = entry.certificate
        learnt = "" if entry.plain else f"{count} of {len(attacks)}" if count else "NO ATTACK"
        rows.append(
            [
                entry.label,
                f"{entry.kept:.3f}",
                *[f"{proved.needs_kept.value:.3f}" if proved else "-"] * certain,
                *[f"{other.kept.value:.3f}" if other else "-"] * trained,
                *(percent(entry.attacks[name].eval_acc.value) for name in attacks),
                *[percent(basic.eval_acc.value) if basic else "-"] * adaptive,
                percent(entry.rate),
                percent_range(entry.worst_case.eval_acc),
                percent(entry.worst_case.chance),
                *[learnt] * several,
            ]
        )
    chance = [CHANCE, *[utility.by_chance] * (1 + certain + trained), *[percent(data.chance)] * len(attacks)]
    rows.append([*chance, *[""] * (3 + adaptive + several)])
    # How many attacks have learnt from the defence stands last.
    table = Table([*head, "worst case", "(95 %)", "by chance", *["learnt by"] * several], rows)
    named = ", ".join(f"{one.name} {percent(one.accuracy_on_originals)}" for one in report.oracles)
    panel = percent(report.panel["accuracy_on_originals"].value)
    lines = [f"Audit of {data.source}: {data.images} faces of {data.identities} people", "", table.text(), ""]
    lines.append(f"oracles on the originals: {named}; any {panel}")
    for entry in entries:
        for name, own in entry.rulers.items():
            note = "" if own.learnt else ", NOT LEARNT FROM THIS DEFENCE: no figure of protection"
            figures = [(word, getattr(own, key)) for key, word in READ.items()]
            words = [f"{word} {percent(one.value)} ({percent_range(one)})" for word, one in figures if one]
            lines.append(f"{name}, {entry.title}, without a picture: {'; '.join(words)}{note}")
        if (listed := entry.worst_case_gallery) is not None:
            lines.append(
                f"any with a gallery, {entry.title}: names {percent(listed.eval_acc.value)} "
                f"({percent_range(listed.eval_acc)}; {percent(listed.chance)} would be by chance)"
            )
    lines += proof.sentences(proof.proved(entries), data.identities)
    lines += [*group_sentences(report), *(curve.sentence for curve in report.curves), report.verdict]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in report.warnings)])
