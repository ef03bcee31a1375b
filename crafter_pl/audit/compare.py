"""Sets of features held against each other: Pareto front, area under a curve, comparable audits."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crafter_pl.audit.judge import Judged
from crafter_pl.audit.schema import DefenseResult, Report
from crafter_pl.metrics import Bootstrapped, Estimate

BUDGET = 0.1  # the largest loss of utility that a curve is followed to
# Scenarios by the field of a `DefenseResult` that has their utility. In training the cloud has learned from
# such features.
SCENARIOS = {"utility": "inference", "utility_training": "training"}
Point = tuple[float, float]  # utility, worst case


def on_front(points: Sequence[Point]) -> list[bool]:
    """Which points no other is as good as in both, and better in one."""
    return [
        not any(other != one and other[0] >= one[0] and other[1] <= one[1] for other in points)
        for one in points
    ]


def area(losses: NDArray[np.float64], rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean worst case over all losses of utility from 0 to `BUDGET` that one may be willing to bear.

    For every loss that one bears, the setting of the lowest worst case that costs no more.

    Args:
        losses: ``(K, B)`` utility lost against unprotected features by each of K settings; the first is the
            unprotected one, which costs nothing.
        rates: ``(K, B)`` their worst cases in [0, 1].

    Returns:
        ``(B,)`` in [0, 1]: that of the unprotected features where no setting is affordable, low is better.
    """
    order = np.argsort(losses, axis=0, kind="stable")
    places = np.clip(np.take_along_axis(losses, order, axis=0), 0.0, BUDGET)
    best = np.minimum.accumulate(np.take_along_axis(rates, order, axis=0), axis=0)
    widths = np.diff(places, axis=0, append=np.full((1, losses.shape[1]), BUDGET))
    return (widths * best).sum(axis=0) / BUDGET


def area_of(points: Sequence[tuple[Bootstrapped, Bootstrapped]]) -> Estimate:
    """The area of a curve with its interval.

    Args:
        points: utility and worst case of each setting, the unprotected one first.
    """
    none, rates = points[0][0], [rate for _, rate in points]
    losses = [none - kept for kept, _ in points]
    replicates = area(
        np.nan_to_num(np.stack([loss.replicates for loss in losses]), nan=BUDGET),
        np.stack([rate.replicates for rate in rates]),
    )
    values = (np.array([[one.value] for one in part]) for part in (losses, rates))
    return Bootstrapped(float(area(*values)[0]), replicates).estimate()


def compared(judged: Sequence[Judged]) -> tuple[list[DefenseResult], dict[str, dict[str, Estimate]]]:
    """The results with their change against unprotected features and who is on the front; and all areas.

    Args:
        judged: the unprotected features first.

    Returns:
        The results; and by scenario and defence (settings of one defence and method are one curve) the area,
        see `area`: ``none`` is the unprotected features' own worst case, ``all`` the best of every defence.
    """
    first, *others = judged
    changes = [
        {
            one.inference.utility.key: (one.inference.kept - first.inference.kept).estimate(),
            "worst_case_eval_acc": (one.worst - first.worst).estimate(),
        }
        for one in others
    ]
    results = [replace(one.result, change=own) for one, own in zip(judged, [None, *changes], strict=True)]
    areas: dict[str, dict[str, Estimate]] = {}
    for key, scenario in SCENARIOS.items():
        points = {
            place: (found.kept, one.worst)
            for place, one in enumerate(judged)
            if (found := getattr(one, scenario)) is not None
        }
        if not points:
            continue
        best = on_front([(kept.value, rate.value) for kept, rate in points.values()])
        for place, won in zip(points, best, strict=True):
            results[place] = replace(results[place], on_front={**results[place].on_front, key: won})
        curves: dict[str, list[int]] = {"none": [0]}
        for place in [place for place in points if place]:
            curves.setdefault(results[place].curve, [0]).append(place)
        curves["all"] = list(points)
        areas[scenario] = {
            name: area_of([points[place] for place in places]) for name, places in curves.items()
        }
    return results, areas


def conditions(report: Report) -> dict[str, str]:
    """What two audits must share for their figures to be comparable, by name, as text to compare."""
    attacks = {
        # The nets of one that adapts differ with the defence.
        name: [
            *(own.get("class"), own.get("version", 1), own.get("settings")),
            *([] if own.get("adaptive") else [own.get("checkpoints")]),
        ]
        for name, own in report.attacks.items()
    }
    # How much it has learnt from says how strong it is.
    learnt = {
        json.dumps([name, moments[-1].pairs, moments[-1].epochs])
        for entry in report.defenses
        for name, moments in entry.history.items()
        if moments
    }
    data, utility = report.data, report.defenses[0].utility
    found = {
        "split": [data.source, data.split_hash, data.image_size, data.images, report.settings.get("split")],
        "task model": report.settings.get("task_sha256"),
        "utility": [utility.key, utility.agreement],
        "oracles": [[one.sha256, None if one.seen else one.settings] for one in report.oracles],
        "galleries": [report.settings.get(name) for name in ("gallery_images", "drawn_images")],
        "attacks": [attacks, sorted(learnt)],
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in found.items()}


def comparable(reports: Sequence[Report]) -> tuple[list[int], list[str]]:
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
