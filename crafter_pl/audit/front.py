"""Defences side by side: the area under each one's curve, and who is on the Pareto front."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from crafter_pl.audit.bootstrap import Figure, figure
from crafter_pl.audit.inputs import Entry

BUDGET = 0.1  # the largest loss of mean AUC that a curve is followed to
TRAINING = "utility_training"  # an entry's utility where the cloud has learned from such features


def area(losses: NDArray[np.float64], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean worst case over all losses of utility from 0 to `BUDGET` that one may be willing to bear.

    For every loss that one bears, the setting of the lowest worst case that costs no more.

    Args:
        losses: `(K, B)` mean AUC lost against unprotected features by each of K settings; the first is the
            unprotected one, which costs nothing.
        rates: `(K, B)` their worst cases in [0, 1].

    Returns:
        `(B,)` in [0, 1]: that of the unprotected features where no setting is affordable, low is better.
    """
    order = np.argsort(losses, axis=0, kind="stable")
    places = np.clip(np.take_along_axis(losses, order, axis=0), 0.0, BUDGET)
    best = np.minimum.accumulate(np.take_along_axis(rates, order, axis=0), axis=0)
    widths = np.diff(places, axis=0, append=np.full((1, losses.shape[1]), BUDGET))
    mean: NDArray[np.float64] = (widths * best).sum(axis=0) / BUDGET
    return mean


def areas(
    entries: list[Entry],
    utility: dict[int, NDArray[np.float64]],
    rates: list[NDArray[np.float64]],
    name: str = "utility",
) -> dict[str, Any]:
    """The area of every defence, and of all together; marks in the entries who is on the front.

    Args:
        entries: the sets of features, the unprotected ones first.
        utility: the mean AUC's replicates `(B,)` of entries by their place; others are left out.
        rates: the worst case's replicates `(B,)` of every entry.
        name: which utility of the entries: `utility` or `TRAINING`.

    Returns:
        By defence (settings of one defence and method are one curve) a figure, see `area`; `none` is the
        unprotected features' own worst case, `all` the best of every defence.
    """
    points = {place: _point(entries[place], name) for place in utility}
    for place, best in zip(points, on_front(list(points.values())), strict=True):
        entries[place].setdefault("on_front", {})[name] = best
    curves: dict[str, list[int]] = {"none": [0]}
    for place in points:
        if place:
            curves.setdefault(curve(entries[place]), [0]).append(place)
    curves["all"] = list(points)
    return {key: _figure(places, points, utility, rates) for key, places in curves.items()}


def on_front(points: list[tuple[float, float]]) -> list[bool]:
    """Of (utility, worst case) points: which ones no other is as good as in both, and better in one."""
    return [
        not any(other != one and other[0] >= one[0] and other[1] <= one[1] for other in points)
        for one in points
    ]


def curve(entry: Entry) -> str:
    """Which curve an entry is a point of: its defence, and its method where that is another."""
    method = entry["settings"].get("method")
    return str(entry["name"] if method in (None, entry["name"]) else method)


def _point(entry: Entry, name: str) -> tuple[float, float]:
    return float(entry[name]["mean_auc"]["value"]), float(entry["worst_case"]["eval_acc"]["value"])


def _figure(
    places: list[int],
    points: dict[int, tuple[float, float]],
    utility: dict[int, NDArray[np.float64]],
    rates: list[NDArray[np.float64]],
) -> Figure:
    losses = np.stack([utility[0] - utility[place] for place in places])
    replicates = area(np.nan_to_num(losses, nan=BUDGET), np.stack([rates[place] for place in places]))
    auc, rate = (np.array([[points[place][part]] for place in places]) for part in (0, 1))
    return figure(float(area(auc[0] - auc, rate)[0]), replicates)
