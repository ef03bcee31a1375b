"""Defences side by side: the area under a curve by hand, curves, the front, the plot and the table."""

import numpy as np
import pytest
import torch
from fake_reports import fake_report, write

from crafter_pl.audit.compare import BUDGET, area, compared
from crafter_pl.audit.judge import Judged, Measured
from crafter_pl.audit.schema import DefenseResult, Utility, WorstCase
from crafter_pl.metrics import Bootstrapped


def columns(*values):
    return np.array(values, dtype=float)[:, None]


@pytest.mark.parametrize(
    ("losses", "rates", "expected"),
    [
        ([0], [0.8], 0.8),  # nothing but unprotected features
        ([0, 0.04], [0.8, 0.3], 0.4 * 0.8 + 0.6 * 0.3),  # affordable from 0.04 on
        ([0, 0.02, 0.06], [0.8, 0.5, 0.1], 0.2 * 0.8 + 0.4 * 0.5 + 0.4 * 0.1),
        ([0, 0.06, 0.02], [0.8, 0.1, 0.5], 0.2 * 0.8 + 0.4 * 0.5 + 0.4 * 0.1),  # in whatever order
        ([0, 0.02, 0.06], [0.8, 0.1, 0.5], 0.2 * 0.8 + 0.8 * 0.1),  # a worse and dearer setting adds nothing
        ([0, -0.01], [0.8, 0.3], 0.3),  # it costs nothing
        ([0, 0.2], [0.8, 0.0], 0.8),  # too dear
        ([0, 0.05], [0.8, 0.9], 0.8),  # nobody has to use a defence that leaks more
    ],
)
def test_the_area_by_hand(losses, rates, expected):
    scale = BUDGET / 0.1
    assert area(columns(*losses) * scale, columns(*rates))[0] == pytest.approx(expected)


def test_resamples_do_not_mix():
    losses, rates = np.array([[0, 0], [0.04, 0.02]]), np.array([[0.8, 0.6], [0.3, 0.2]])
    each = [area(losses[:, [b]], rates[:, [b]])[0] for b in (0, 1)]
    assert area(losses, rates).tolist() == pytest.approx(each)


def judged(name, auc, rate, replicates=None, **settings):
    """A set of features with this utility and worst case, all that is needed to compare it."""
    own, worst = Bootstrapped(auc, np.full(50, auc)), Bootstrapped(rate, np.full(50, rate))
    utility = Utility(own.estimate(), {})
    result = DefenseResult(
        name=name,
        settings=settings,
        beta=settings.get("beta"),
        cost={},
        utility=utility,
        worst_case=WorstCase(worst.estimate(), 0.1),
        attacks={},
    )
    worst = worst if replicates is None else Bootstrapped(rate, replicates)
    return Judged(result, {}, Measured(utility, own, torch.empty(0)), None, worst)


def test_curves_and_the_front():
    sets = [
        judged("none", 0.9, 0.8),
        judged("crafter", 0.88, 0.5, np.linspace(0.4, 0.6, 50), beta=1),
        judged("crafter", 0.86, 0.2, beta=0.1),
        judged("crafter_z", 0.85, 0.3),
        judged("noise", 0.86, 0.4, scale=1.0),
    ]
    results, areas = compared(sets)
    found = areas["inference"]
    assert list(areas) == ["inference"] and list(found) == ["none", "crafter", "crafter_z", "noise", "all"]
    assert found["none"].value == pytest.approx(0.8)
    assert found["crafter"].value == pytest.approx(0.2 * 0.8 + 0.2 * 0.5 + 0.6 * 0.2)
    assert found["all"].value == found["crafter"].value < found["noise"].value
    low, high = found["crafter"].low, found["crafter"].high
    assert low < found["crafter"].value < high and found["noise"].low == found["noise"].high
    assert [one.on_front["utility"] for one in results] == [True, True, True, False, False]
    assert results[0].change is None and results[2].change["worst_case_eval_acc"].value == pytest.approx(-0.6)
    assert all(one.result.on_front == {} and one.result.change is None for one in sets), "nothing is changed"


def test_two_settings_at_one_point_are_both_on_the_front():
    results, _ = compared([judged("none", 0.9, 0.8), judged("a", 0.88, 0.3), judged("b", 0.88, 0.3)])
    assert all(one.on_front["utility"] for one in results)


def test_a_method_of_an_earlier_versions_report_has_a_curve_of_its_own():
    assert judged("crafter", 0.9, 0.3, method="crafter_z").result.curve == "crafter_z"


def test_the_plot_and_the_page(tmp_path):
    plain = fake_report()
    one = {"value": 0.5, "ci95": [0.4, 0.6]}
    plain["areas"] = {"inference": {"none": one, "crafter": one, "all": one}}

    def written():
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        page, picture = write(folder, plain, people=1).read_text(), folder / "pareto.png"
        return page, picture.stat().st_size if picture.is_file() else 0

    page, size = written()
    assert not size and "side by side" not in page, "one defence alone is no comparison"
    plain["areas"]["inference"]["noise"] = {"value": 0.25, "ci95": [0.2, 0.31]}
    plain["defenses"].append({**plain["defenses"][-1], "name": "noise", "label": "noise", "family": "noise"})
    page, narrow = written()
    assert narrow and "25.0&nbsp;%" in page and "In the training scenario" not in page
    plain["areas"]["training"] = {"none": one}
    plain["defenses"][0]["utility_training"] = plain["defenses"][0]["utility"]
    page, wide = written()
    assert wide > narrow and "In the training scenario" in page and "the best of all" in page
    del plain["areas"]
    assert not written()[1], "a report of an earlier version"
