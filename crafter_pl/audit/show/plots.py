"""The plots of a report, as PNG files: trade-off, Pareto fronts, adaptation, reconstructions. No display."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from crafter_pl.audit.compare import SCENARIOS, on_front
from crafter_pl.audit.schema import Report
from crafter_pl.audit.show.gallery import GAP, Gallery, face_size, lefts, mosaic
from crafter_pl.metrics import Estimate

COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),
    *("#8C6D31", "#5D3A9B", "#7F7F7F", "#B6A800", "#17BECF"),
)
WORST = "#B22222"
LINES = ("-", "-", "--", "-.", ":")  # the unprotected point has none; then one a family of settings
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
OVER = "mean AUC over attributes"
AXES = {"round": "rounds of retraining", "pairs": "crafted public pairs that the attack has seen"}
_STYLE = {
    **{"axes.grid": True, "grid.color": "0.92", "axes.axisbelow": True},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10},
}


def panels(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, with axes that share what is across."""
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    with rc_context(_STYLE):
        axes = figure.subplots(rows, columns, sharex=rows > 1, sharey=columns > 1, squeeze=False)
    return figure, list(axes.flat)


def save(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def legend(figure: Figure, axes: Axes, columns: int, more: Sequence[tuple[Any, str]] = ()) -> None:
    """Above the axes; levels by chance come last."""
    named = zip(*axes.get_legend_handles_labels(), strict=True)
    if entries := [*sorted(named, key=lambda entry: "chance" in entry[1]), *more]:
        place = "outside upper center"
        figure.legend(*zip(*entries, strict=True), loc=place, ncols=columns, fontsize=9, frameon=False)


def draw(axes: Axes, x: Sequence[Estimate], y: Sequence[Estimate], **style: Any) -> None:  # noqa: ANN401
    """Points with their 95 % intervals. The style is matplotlib's."""
    # A percentile interval may just miss its value.
    across, up = (
        np.array([[max(one.value - one.low, 0), max(one.high - one.value, 0)] for one in part]).T
        for part in (x, y)
    )
    style["xerr"] = across if across.any() else None
    axes.errorbar([one.value for one in x], [one.value for one in y], up, capsize=2, **style)


def exactly(value: float) -> Estimate:
    """A figure without an interval."""
    return Estimate(value, value, value)


def over(report: Report) -> str:
    """The whole name of a report's utility, for an axis."""
    utility = report.defenses[0].utility
    return OVER if (utility.main, utility.agreement) == (None, None) else utility.title


def tradeoff(report: Report) -> bytes:
    """Draw utility against privacy (Eval Acc): one point a beta, 95 % error bars."""
    entries, names = report.defenses, list(report.defenses[0].attacks)
    families = list(dict.fromkeys(entry.family for entry in entries))
    figure, (axes,) = panels(6.0, 4.8)
    for i, name in enumerate([None, *names], -1):
        style: dict[str, Any] = {"color": WORST, "marker": "*", "ms": 11, "linewidth": 2.2, "zorder": 3}
        if name is not None:
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            style = {"color": colour, "marker": marker, "ms": 6, "linewidth": 1.2}
        for number, family in enumerate(families):  # joined in order of beta; the unprotected is hollow
            own = [entry for entry in entries if entry.family == family]
            draw(
                axes,
                [exactly(entry.kept) if name else entry.utility.kept for entry in own],
                [entry.attacks[name].eval_acc if name else entry.worst_case.eval_acc for entry in own],
                label=None if number else (name or "worst case").replace("_", " "),
                mfc=style["color"] if number else "white",
                linestyle=LINES[number % len(LINES)],
                elinewidth=0.8,
                **style,
            )
    levels = sorted((entry.kept, entry.worst_case.chance) for entry in entries)
    axes.plot(*zip(*levels, strict=True), ":_", color=WORST, linewidth=1, label="worst case by chance")
    _by_chance(axes, report)
    for entry in entries:
        name = entry.title if entry.beta is None else f"β {entry.beta:g}"
        place = (entry.kept, entry.rate)
        axes.annotate(name, place, (-7, 5), textcoords="offset points", ha="right", fontsize=9, color="0.2")
    axes.margins(x=0.08)
    axes.set(
        ylim=(-0.03, 1.05),
        xlabel=f"{over(report)} (utility: right is better)",
        ylabel="faces identified, Eval Acc (privacy: low is better)",
    )
    retrained = {entry.family for entry in entries if entry.retrains}
    more = [
        (
            Line2D([], [], color="0.2", linestyle=LINES[number % len(LINES)]),
            family.replace("_", " ") + " (retrains the backend)" * (family in retrained),
        )
        for number, family in enumerate(families)
        if number and len(families) > 2
    ]
    legend(figure, axes, 2 if more else 3, more)
    return save(figure)


def _by_chance(axes: Axes, report: Report) -> None:
    axes.axhline(report.data.chance, label="chance of one guess", color="0.45", linewidth=1, linestyle="--")


@dataclass(frozen=True)
class Point:
    """A set of features in one scenario.

    Attributes:
        scenario: a key of `SCENARIOS`.
        kept, worst: utility and worst case.
        line: points of one are joined, and named in the legend.
        front: points of one have a Pareto front together.
        hollow: drawn so.
        mark: written beside it.
    """

    scenario: str
    kept: Estimate
    worst: Estimate
    line: str
    front: str = ""
    hollow: bool = False
    mark: str = ""


def pareto(
    points: Sequence[Point],
    styles: dict[str, dict[str, Any]],
    fronts: dict[str, dict[str, Any]],
    utility: str = OVER,
) -> bytes:
    """Draw the worst case over utility, a panel a scenario; 95 % error bars.

    The steps are fronts: for every utility the lowest worst case that any setting gives.

    Args:
        points: of all scenarios.
        styles: matplotlib's, by line.
        fronts: likewise, by front.
        utility: its whole name.
    """
    shown = [scenario for scenario in SCENARIOS if any(point.scenario == scenario for point in points)]
    figure, every = panels(6.2 * len(shown), 5.3, columns=len(shown))
    for axes, scenario in zip(every, shown, strict=True):
        here = [point for point in points if point.scenario == scenario]
        for name, style in styles.items():
            own = sorted((point for point in here if point.line == name), key=lambda point: point.kept.value)
            for hollow in sorted({point.hollow for point in own}):
                part = [point for point in own if point.hollow is hollow]
                label, mfc = name if part[0] is own[0] else None, "white" if hollow else style["color"]
                draw(
                    axes,
                    [point.kept for point in part],
                    [point.worst for point in part],
                    label=label,
                    mfc=mfc,
                    ms=7,
                    elinewidth=0.6,
                    **style,
                )
        for point in here:
            place = (point.kept.value, point.worst.value)
            axes.annotate(point.mark, place, (5, 5), textcoords="offset points", fontsize=8, color="0.2")
        for name, style in fronts.items():
            places = [(point.kept.value, point.worst.value) for point in here if point.front == name]
            best = sorted({place for place, won in zip(places, on_front(places), strict=True) if won})
            if best:
                axes.step(*zip(*best, strict=True), where="pre", linewidth=4, zorder=0, **style)
        axes.set(title=f"{SCENARIOS[scenario]} scenario", ylim=(-0.03, 1.05))
        axes.set_xlabel(f"{utility} (right is better)")
    every[0].set_ylabel("faces identified in the worst case (low is better)")
    legend(figure, every[0], 4)
    return save(figure)


def defences(points: Sequence[Point], utility: str = OVER) -> bytes | None:
    """Draw defences side by side, a line each, beside ``unprotected``; None of a single defence."""
    names = [name for name in dict.fromkeys(point.line for point in points) if name != "unprotected"]
    if len(names) < 2:
        return None
    styles = {
        name: {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
            "linewidth": 1.2,
        }
        for number, name in enumerate(names)
    }
    plain = {"unprotected": {"color": "0.2", "marker": "*"}}
    return pareto(points, {**plain, **styles}, {"": {"color": "0.6", "alpha": 0.4}}, utility)


def points_of(report: Report) -> list[Point]:
    """Every set of features in each scenario, for `defences`; filled ones change nothing in the backend."""
    return [
        Point(
            key,
            utility.kept,
            entry.worst_case.eval_acc,
            "unprotected" if entry.plain else entry.curve.replace("_", " "),
            hollow=bool(entry.retrains),
        )
        for key in SCENARIOS
        for entry in report.defenses
        if (utility := getattr(entry, key)) is not None
    ]


def adaptation(report: Report, along: str) -> bytes | None:
    """Draw how attacks gain while they adapt: Eval Acc and identity similarity, 95 % intervals.

    Args:
        report: of the audit.
        along: a key of `AXES`, what is on the horizontal axis.

    Returns:
        None if no attack has a history.
    """
    lines = [(entry.title, name, own) for entry in report.defenses for name, own in entry.history.items()]
    if not lines:
        return None
    figure, (upper, lower) = panels(5.0, 6.4, rows=2)
    titles, names = (list(dict.fromkeys(line[place] for line in lines)) for place in (0, 1))
    shown = {"eval_acc": "faces identified, Eval Acc", "identity_similarity": "identity similarity"}
    for axes, (key, words) in zip((upper, lower), shown.items(), strict=True):
        for title, name, rounds in lines:
            draw(
                axes,
                [exactly(float(getattr(one, along))) for one in rounds],
                [one.figures[key] for one in rounds],
                label=f"{name}, {title}".replace("_", " "),
                color=COLOURS[titles.index(title) % len(COLOURS)],
                marker=MARKERS[names.index(name) % len(MARKERS)],
                linestyle=LINES[1 + names.index(name) % (len(LINES) - 1)],
                **{"ms": 5, "elinewidth": 0.8, "linewidth": 1.4},
            )
        axes.set_ylabel(words)
    _by_chance(upper, report)
    upper.set_ylim(bottom=-0.02)
    lower.set_xlabel(AXES[along])
    if along == "round":
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(figure, upper, 1)
    return save(figure)


def reconstructions(gallery: Gallery) -> bytes:
    """Draw the grid with its captions; a red frame marks faces that some oracle names."""
    canvas, step = mosaic(gallery), face_size(gallery)[0] + GAP
    height, width = canvas.shape[:2]
    split = [one.features.rstrip(")").replace(" (", ", ").split(", ") for one in gallery.columns]
    named = [[one.attack, *words] for one, words in zip(gallery.columns, split, strict=True)]
    captions = [
        "\n".join(textwrap.fill(word.replace("_", " "), 13) for word in words)
        for words in [["original"], *named]
    ]
    head = 10 + 12 * max(caption.count("\n") + 1 for caption in captions)
    figure = Figure(figsize=(width / 100, (height + head) / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, height / (height + head)))
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
    axes.axis("off")
    for left, caption in zip(lefts(gallery), captions, strict=False):
        axes.text(left + step / 2 - 2, -5, caption, ha="center", va="bottom", fontsize=6.5, clip_on=False)
    return save(figure)
