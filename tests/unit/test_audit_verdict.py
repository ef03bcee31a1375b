from __future__ import annotations

import csv
from pathlib import Path

from fake_reports import F, fake_entry, fake_report, made, under_attack, write
from report_lab import adapted

from crafter_pl.audit.show.sentences import chosen
from crafter_pl.audit.show.tables import text


def test_the_verdict_names_the_best_affordable_setting() -> None:
    report = fake_report()
    assert chosen(made(report)).beta == 1.0, "beta 0.5 costs more than 0.02"
    sentence = made(adapted(report)).verdict
    assert (
        "crafter (beta 1)" in sentence
        and "from 85.0 % to 37.5 %" in sentence
        and "0.012 of mean AUC" in sentence
    )
    assert "4.5 % would be by chance" in sentence and "240 faces of 60 people" in sentence
    assert chosen(made(fake_report(((0.1, 0.7, 0.1), (0.5, 0.85, 0.3))))).beta == 0.5, (
        "the cheapest if none is affordable"
    )


def test_of_several_sets_the_verdict_says_why_it_is_about_this_one() -> None:
    report = fake_report()
    why = (
        f"Of {len(report['defenses']) - 1} protected sets, all in the table, crafter (beta 1) has the lowest"
    )
    assert why in made(report).verdict
    assert "protected sets" not in made(fake_report(((1.0, 0.9, 0.3),))).verdict
    dear = made(fake_report(((0.1, 0.7, 0.1), (0.5, 0.85, 0.3)))).verdict
    assert "crafter (beta 0.5) costs least" in dear
    learnt = fake_report(((0.5, 0.91, 0.05), (1.0, 0.91, 0.2)))
    learnt["defenses"][2]["attacks"]["white_box"]["learnt"] = True
    assert chosen(made(learnt)).beta == 1.0, "what no attack has learnt from has no rate to be low"


def test_the_verdict_does_not_flatter() -> None:
    assert made(fake_report(((1.0, 0.912, 0.67),))).verdict.startswith("No measurable protection")
    assert "no measured cost" in made(fake_report(((1.0, 0.915, 0.3),))).verdict
    assert "chance" in made(adapted(fake_report(((1.0, 0.91, 0.03),)))).verdict
    assert made(fake_report(())).verdict.startswith("Nothing protected")
    weak = fake_report()
    weak["defenses"][0]["worst_case"]["eval_acc"] = F(0.05)
    assert made(weak).verdict.startswith("This audit cannot show protection")


def test_the_curve_is_called_monotone_only_if_it_is() -> None:
    assert [curve.monotone for curve in made(fake_report()).curves] == [True]
    (bent,) = made(fake_report(((2, 0.90, 0.45), (0.5, 0.88, 0.2), (1, 0.905, 0.3)))).curves
    assert bent.monotone is False and bent.betas == [0.5, 1, 2]
    assert "from beta 1 to 2 (by 0.005)" in bent.sentence
    assert made(fake_report(((1, 0.9, 0.3),))).curves == []


def test_families_of_settings_have_a_curve_each(tmp_path: Path) -> None:
    report = fake_report()
    for beta, auc, rate in ((0.5, 0.87, 0.1), (1.0, 0.89, 0.26)):
        entry = fake_entry("crafter", beta, auc, rate)
        entry |= {
            "family": "crafter (critic per_batch)",
            "label": f"crafter (beta {beta:g}, critic per_batch)",
        }
        report["defenses"].append(entry)
    families = [curve.family for curve in made(report).curves]
    assert families == ["crafter", "crafter (critic per_batch)"]
    write(tmp_path, report)
    assert "critic per batch" in (tmp_path / "report.html").read_text()


def test_false_security_is_seen_everywhere(tmp_path: Path) -> None:
    report = under_attack(fake_report(((0.5, 0.88, 0.2), (1.0, 0.9, 0.2), (2, 0.905, 0.45))))
    report["defenses"][2]["worst_case"]["eval_acc"] = F(0.4)
    full = made(report)
    assert chosen(made(report)).beta == 1.0
    sentence = "False security with crafter (beta 1): adaptive_black_box, which knows the defence, alone "
    sentence += "identifies 55.0 %"
    assert "from 86.0 % to 40.0 %" in full.verdict, "the worst case over all attacks"
    assert sentence in full.verdict and full.warnings[0].startswith(sentence)
    write(tmp_path, report)
    page, rows = (tmp_path / "report.html").read_text(), list(csv.DictReader((tmp_path / "table.csv").open()))
    assert 'class="flag">False security with crafter (beta 1)' in page
    assert page.count('<small class="bad">false security</small>') == 1 and "False security" in text(
        made(report)
    )
    flags = {row["features"]: row["false_security"] for row in rows if row["attack"]}
    assert flags == {
        "none": "",
        "crafter (beta 0.5)": "False",
        "crafter (beta 1)": "True",
        "crafter (beta 2)": "False",
    }
    assert {"worst_case_basic", "worst_case_basic_low", "adaptive_gain_high"} <= set(rows[0])
    shown = text(made(report)).splitlines()
    assert "not adaptive" in shown[2] and "25.0 %" in shown[5]


def test_the_verdict_says_what_knowing_the_defence_gains() -> None:
    bad = fake_report(((1.0, 0.912, 0.67),))
    assert made(bad).verdict.split(" The strongest judge")[0].endswith("one that does may identify more.")
    report = under_attack(fake_report(((1.0, 0.9, 0.3),)))
    assert "-1.0 to 3.0 points" in made(report).verdict
    del report["defenses"][1]["false_security"]
    assert (
        made(report).verdict.split(" The strongest judge")[0].endswith("All attacks here know the defence.")
    )
