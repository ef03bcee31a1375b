"""The pictures of a report: trade-off, curves of adaptation, grid of reconstructions; needs no display."""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from crafter_pl.audit.front import TRAINING, curve
from crafter_pl.audit.verdict import Report, title

COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#8C6D31",
    "#5D3A9B",
    "#7F7F7F",
    "#B6A800",
    "#17BECF",
)
WORST = "#B22222"
LINES = ("-", "-", "--", "-.", ":")  # the unprotected point has none; then one a family of settings
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
AXES = {"round": "rounds of retraining", "pairs": "crafted public pairs that the attack has seen"}


@dataclass
class Column:
    """One column of the grid: what an attack made of the features of one defence."""

    attack: str
    features: str
    images: Tensor  # (R, 3, S, S) in [0, 1]
    named: list[bool]  # whether any oracle of the panel names the person in it
    moment: dict[str, int] | None = None  # the round of an attack that adapts, see `Attack.history`


@dataclass
class Gallery:
    """Originals of a few people, `(R, 3, S, S)` in [0, 1], and the columns of reconstructions beside them.

    `rounds` are what attacks made while they adapted, in order.
    """

    originals: Tensor
    columns: list[Column]
    rounds: list[Column] = field(default_factory=list)

    def adapting(self, people: int | None = None) -> dict[tuple[str, str], Gallery]:
        """The rounds of each attack on each set of features as a gallery of its own, of the first people."""
        found: dict[tuple[str, str], Gallery] = {}
        for column in self.rounds:
            own = found.setdefault((column.attack, column.features), Gallery(self.originals[:people], []))
            own.columns.append(replace(column, images=column.images[:people], named=column.named[:people]))
        return found


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """One picture `(3, H, W)` in [0, 1] as `(H, W, 3)` uint8."""
    pixels: NDArray[np.uint8] = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def png(image: Tensor) -> bytes:
    """One picture `(3, H, W)` in [0, 1] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def errors(figure: dict[str, Any]) -> tuple[float, float]:
    """How far an interval reaches below and above its figure."""
    value, (low, high) = figure["value"], figure["ci95"]
    return max(value - low, 0.0), max(high - value, 0.0)  # a percentile interval may just miss its value


def _series(
    axes: Axes,
    entries: list[Report],
    figures: list[dict[str, Any]],
    name: str,
    both: bool,
    style: dict[str, Any],
) -> None:
    """Draw one rate over the utility: points of a defence joined in order of beta, the unprotected hollow."""
    utility = [entry["utility"]["mean_auc"] for entry in entries]
    for number, family in enumerate(dict.fromkeys(entry["family"] for entry in entries)):
        rows = [i for i, entry in enumerate(entries) if entry["family"] == family]
        axes.errorbar(
            [utility[i]["value"] for i in rows],
            [figures[i]["value"] for i in rows],
            np.array([errors(figures[i]) for i in rows]).T,
            np.array([errors(utility[i]) for i in rows]).T if both else None,
            label=name if family == "none" else None,
            mfc="white" if family == "none" else style["color"],
            capsize=2,
            elinewidth=0.8,
            linestyle=LINES[number % len(LINES)],
            **style,
        )


def tradeoff(report: Report) -> bytes:
    """Draw utility (mean AUC) against privacy (Eval Acc) as a PNG: one point a beta, 95 % error bars."""
    entries = report["defenses"]
    figure = Figure(figsize=(6.0, 4.8), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    worst = [entry["worst_case"]["eval_acc"] for entry in entries]
    style = {"color": WORST, "marker": "*", "ms": 11, "linewidth": 2.2, "zorder": 3}
    _series(axes, entries, worst, "worst case", True, style)
    for i, name in enumerate(entries[0]["attacks"]):
        style = {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "ms": 6,
            "linewidth": 1.2,
        }
        rates = [entry["attacks"][name]["eval_acc"] for entry in entries]
        _series(axes, entries, rates, name.replace("_", " "), False, style)
    chance = sorted(
        (entry["utility"]["mean_auc"]["value"], entry["worst_case"]["chance"]) for entry in entries
    )
    axes.plot(*zip(*chance, strict=True), ":_", color=WORST, linewidth=1, label="worst case by chance")
    axes.axhline(
        report["data"]["chance"], color="0.45", linewidth=1, linestyle="--", label="chance of one guess"
    )
    for entry, rate in zip(entries, worst, strict=True):
        name = title(entry) if entry["beta"] is None else f"β {entry['beta']:g}"
        place = (entry["utility"]["mean_auc"]["value"], rate["value"])
        axes.annotate(name, place, (-7, 5), textcoords="offset points", ha="right", fontsize=9, color="0.2")
    axes.margins(x=0.08)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("mean AUC over attributes (utility: right is better)")
    axes.set_ylabel("faces identified, Eval Acc (privacy: low is better)")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: "chance" in labels[i])
    handles, labels = [handles[i] for i in order], [labels[i] for i in order]
    families = list(dict.fromkeys(entry["family"] for entry in entries))
    retrained = {entry["family"] for entry in entries if entry.get("retrains")}
    for number, family in enumerate(families[1:] if len(families) > 2 else [], 1):
        handles.append(Line2D([], [], color="0.2", linestyle=LINES[number % len(LINES)]))
        labels.append(family.replace("_", " ") + " (retrains the backend)" * (family in retrained))
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=2 if len(families) > 2 else 3,
        fontsize=9,
        frameon=False,
    )
    return save(figure)


def pareto(report: Report) -> bytes | None:
    """Draw the worst case over utility of all defences as a PNG, a panel a scenario; 95 % error bars.

    Points of one defence are joined in order of utility; filled ones change nothing in the backend. The grey
    steps are the front: for every utility the lowest worst case that any setting gives.

    Returns:
        None if fewer than two defences were audited.
    """
    if len(report.get("areas", {}).get("inference", ())) < 4:  # none, one defence, all
        return None
    scenarios = {"inference": "utility", "training": TRAINING}
    shown = {name: key for name, key in scenarios.items() if name in report["areas"]}
    figure = Figure(figsize=(6.0 * len(shown), 5.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    names = [name for name in report["areas"]["inference"] if name != "all"]
    for axes, (scenario, key) in zip(panels, shown.items(), strict=True):
        entries = [entry for entry in report["defenses"] if key in entry]
        for number, name in enumerate(names):
            own = [entry for entry in entries if curve(entry) == name]
            own.sort(key=lambda entry: float(entry[key]["mean_auc"]["value"]))
            colour = "0.2" if name == "none" else COLOURS[(number - 1) % len(COLOURS)]
            x = [entry[key]["mean_auc"]["value"] for entry in own]
            y = [entry["worst_case"]["eval_acc"]["value"] for entry in own]
            axes.errorbar(
                x,
                y,
                np.array([errors(entry["worst_case"]["eval_acc"]) for entry in own]).T if own else None,
                np.array([errors(entry[key]["mean_auc"]) for entry in own]).T if own else None,
                label="unprotected" if name == "none" else name.replace("_", " "),
                color=colour,
                marker="*"
                if name == "none"
                else MARKERS[(number - 1 + (number - 1) // len(COLOURS)) % len(MARKERS)],
                mfc="white" if any(entry.get("retrains") for entry in own) else colour,
                ms=7,
                capsize=2,
                elinewidth=0.6,
                linewidth=1.2,
            )
        front = sorted(
            (entry[key]["mean_auc"]["value"], entry["worst_case"]["eval_acc"]["value"])
            for entry in entries
            if entry["on_front"][key]
        )
        axes.step(*zip(*front, strict=True), where="pre", color="0.6", linewidth=4, alpha=0.4, zorder=0)
        axes.set_title(f"{scenario} scenario", fontsize=10)
        axes.set_xlabel("mean AUC over attributes (right is better)")
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(-0.03, 1.03)
    panels[0].set_ylabel("faces identified in the worst case (low is better)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    return save(figure)


def adaptation(report: Report, over: str) -> bytes | None:
    """Draw how attacks gain while they adapt as a PNG: Eval Acc and identity similarity, 95 % intervals.

    Args:
        report: see `report.json`.
        over: `round` or `pairs`, what is on the horizontal axis.

    Returns:
        None if no attack has a history.
    """
    lines = [
        (entry, name, points)
        for entry in report["defenses"]
        for name, points in entry.get("history", {}).items()
    ]
    if not lines:
        return None
    figure = Figure(figsize=(5.0, 6.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(name for _, name, _ in lines))
    labels = list(dict.fromkeys(title(entry) for entry, _, _ in lines))
    upper, lower = figure.subplots(2, sharex=True)
    drawn = (
        (upper, "eval_acc", "faces identified, Eval Acc"),
        (lower, "identity_similarity", "identity similarity"),
    )
    for axes, key, words in drawn:
        for entry, name, points in lines:
            axes.errorbar(
                [point[over] for point in points],
                [point[key]["value"] for point in points],
                np.array([errors(point[key]) for point in points]).T,
                label=f"{name}, {title(entry)}".replace("_", " "),
                color=COLOURS[labels.index(title(entry)) % len(COLOURS)],
                marker=MARKERS[names.index(name) % len(MARKERS)],
                linestyle=LINES[1 + names.index(name) % (len(LINES) - 1)],
                ms=5,
                capsize=2,
                elinewidth=0.8,
                linewidth=1.4,
            )
        axes.set_ylabel(words)
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    upper.axhline(
        report["data"]["chance"], color="0.45", linewidth=1, linestyle="--", label="chance of one guess"
    )
    upper.set_ylim(bottom=-0.02)
    lower.set_xlabel(AXES[over])
    if over == "round":
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, titles = upper.get_legend_handles_labels()
    order = sorted(range(len(titles)), key=lambda i: "chance" in titles[i])
    figure.legend(
        [handles[i] for i in order],
        [titles[i] for i in order],
        loc="outside upper center",
        fontsize=9,
        frameon=False,
    )
    return save(figure)


def _lefts(gallery: Gallery, step: int, gap: int) -> list[int]:
    """Where the columns begin, in pixels, the last being the width: attacks stand a little apart."""
    lefts, attack = [gap, gap + step + 2 * gap], gallery.columns[0].attack
    for column in gallery.columns[1:]:
        lefts.append(lefts[-1] + step + (2 * gap if column.attack != attack else 0))
        attack = column.attack
    return [*lefts, lefts[-1] + step]


def mosaic(gallery: Gallery, gap: int = 4) -> NDArray[np.uint8]:
    """The grid as one picture `(H, W, 3)` uint8: a row a person; small faces are enlarged by whole pixels."""
    size = gallery.originals.shape[-1]
    scale = max(1, 72 // size)
    side = size * scale
    lefts = _lefts(gallery, side + gap, gap)
    canvas = np.full((len(gallery.originals) * (side + gap) + gap, lefts[-1], 3), 255, np.uint8)
    for x, block in enumerate([gallery.originals, *(column.images for column in gallery.columns)]):
        for y, image in enumerate(block):
            top, left = y * (side + gap) + gap, lefts[x]
            if x and gallery.columns[x - 1].named[y]:  # a red frame: some oracle names the person
                canvas[top - 3 : top + side + 3, left - 3 : left + side + 3] = (178, 34, 34)
            canvas[top : top + side, left : left + side] = to_uint8(image).repeat(scale, 0).repeat(scale, 1)
    return canvas


def reconstructions(gallery: Gallery) -> bytes:
    """Draw the grid with its captions as a PNG; a red frame marks faces that some oracle names."""
    canvas = mosaic(gallery)
    height, width = canvas.shape[:2]
    step = gallery.originals.shape[-1] * max(1, 72 // gallery.originals.shape[-1]) + 4
    captions = ["original"]
    for column in gallery.columns:
        words = [column.attack, *column.features.rstrip(")").replace(" (", ", ").split(", ")]
        captions.append("\n".join(textwrap.fill(word.replace("_", " "), 13) for word in words))
    head = 10 + 12 * max(caption.count("\n") + 1 for caption in captions)
    figure = Figure(figsize=(width / 100, (height + head) / 100), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, height / (height + head)))
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
    axes.axis("off")
    for left, caption in zip(_lefts(gallery, step, 4), captions, strict=False):
        axes.text(left + step / 2 - 2, -5, caption, ha="center", va="bottom", fontsize=6.5, clip_on=False)
    return save(figure)


def save(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
