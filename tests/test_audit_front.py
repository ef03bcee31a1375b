"""Defences side by side: the area under a curve by hand, curves, the front, the plot and the table."""

import numpy as np
import pytest
from test_audit_report import fake_report

from crafter_pl.audit import front, page, plots
from crafter_pl.audit.front import BUDGET, TRAINING, area, areas, curve


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


def entry(name, auc, rate, **settings):
    return {
        "name": name,
        "settings": settings,
        "utility": {"mean_auc": {"value": auc}},
        "worst_case": {"eval_acc": {"value": rate}},
    }


def test_curves_and_the_front():
    entries = [
        entry("none", 0.9, 0.8),
        entry("crafter", 0.88, 0.5, method="crafter", beta=1),
        entry("crafter", 0.86, 0.2, method="crafter", beta=0.1),
        entry("crafter", 0.85, 0.3, method="crafter_z"),
        entry("noise", 0.86, 0.4, scale=1.0),
    ]
    assert [curve(e) for e in entries] == ["none", "crafter", "crafter", "crafter_z", "noise"]
    utility = {place: np.full(50, e["utility"]["mean_auc"]["value"]) for place, e in enumerate(entries)}
    rates = [np.full(50, e["worst_case"]["eval_acc"]["value"]) for e in entries]
    rates[1] = np.linspace(0.4, 0.6, 50)
    found = areas(entries, utility, rates)
    assert list(found) == ["none", "crafter", "crafter_z", "noise", "all"]
    assert found["none"]["value"] == pytest.approx(0.8)
    assert found["crafter"]["value"] == pytest.approx(0.2 * 0.8 + 0.2 * 0.5 + 0.6 * 0.2)
    assert found["all"]["value"] == found["crafter"]["value"] < found["noise"]["value"]
    low, high = found["crafter"]["ci95"]
    assert low < found["crafter"]["value"] < high and found["noise"]["ci95"][0] == found["noise"]["ci95"][1]
    assert [e["on_front"]["utility"] for e in entries] == [True, True, True, False, False]


def test_two_settings_at_one_point_are_both_on_the_front():
    entries = [entry("none", 0.9, 0.8), entry("a", 0.88, 0.3), entry("b", 0.88, 0.3)]
    areas(entries, {i: np.full(3, 0.9) for i in range(3)}, [np.full(3, 0.5)] * 3)
    assert all(e["on_front"]["utility"] for e in entries)


def test_the_plot_and_the_page(tmp_path):
    report = fake_report()
    one = {"value": 0.5, "ci95": [0.4, 0.6]}
    defenses = report["defenses"]
    for place, each in enumerate(defenses):
        each["on_front"] = {"utility": place == 0, TRAINING: True}
    defenses[0][TRAINING] = defenses[0]["utility"]
    report["areas"] = {"inference": {"none": one, curve(defenses[1]): one, "all": one}}
    assert plots.pareto(report) is None, "one defence alone is no comparison"
    assert page._side_by_side(report, {}) == ""
    report["areas"]["inference"]["noise"] = {"value": 0.25, "ci95": [0.2, 0.31]}
    picture = plots.pareto(report)
    assert picture is not None and picture.startswith(b"\x89PNG")
    section = page._side_by_side(report, {"pareto": picture})
    assert "25.0 %" in section and "training scenario" not in section
    report["areas"]["training"] = {"none": one}
    wide = plots.pareto(report)
    assert wide is not None and len(wide) > len(picture)
    section = page._side_by_side(report, {"pareto": wide})
    assert "training scenario" in section and "the best of all" in section
    del report["areas"]
    assert plots.pareto(report) is None  # a report of an earlier version
    assert front.BUDGET == 0.1
