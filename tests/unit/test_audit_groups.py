"""Figures by group on verdicts and scores made by hand, in an audit, and as the report shows them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from audit_lab import Blank, Echo, make_lab
from fake_reports import fake_report, made, write
from forty_people import TRUTH, judgement
from torch import Tensor

from crafter_pl.answers import MultiLabel
from crafter_pl.audit.groups import by_group, known_groups
from crafter_pl.audit.record import to_json
from crafter_pl.audit.show import sided
from crafter_pl.audit.show.sentences import group_sentences
from crafter_pl.audit.show.tables import text
from crafter_pl.audit.yardstick import Yardstick
from crafter_pl.data.people import IDENTITY_ATTRIBUTES
from crafter_pl.errors import UserError
from crafter_pl.metrics import IdentityBootstrap

# Attributes of the forty people: "tall" are people 0 to 9; "hat" is every
# first picture; "old" are the first pictures of the tall, so nobody else is; "few" are people 0 to 3.
FIRST = torch.arange(80) % 2 == 0
TALL, FEW = TRUTH < 10, TRUTH < 4
ATTRIBUTES = torch.stack([TALL, FIRST, TALL & FIRST, FEW], 1).float()
NAMES = ["tall", "hat", "old", "few"]
ROWS = {"identity": TRUTH, "attributes": ATTRIBUTES}
# Of the originals one oracle names the first pictures, the other those of the tall.
PANEL: Any = SimpleNamespace(
    truth=TRUTH, people=torch.arange(40), originals=SimpleNamespace(hits=torch.stack([FIRST, TALL]))
)
JUDGE: Any = SimpleNamespace(
    rows=ROWS,
    attributes=NAMES,
    panel=PANEL,
    boot=IdentityBootstrap(TRUTH, 100, seed=4),
    yardstick=Yardstick(MultiLabel(), NAMES, ATTRIBUTES),
)


def named_rightly(rows: Tensor) -> Any:
    """One oracle's verdict: right at these rows, else the next person."""
    return judgement(torch.where(rows, TRUTH, (TRUTH + 1) % 40))


def judged(scores: Tensor) -> Any:
    # a: the first pictures of the tall, and of person 39; b: both pictures of person 0.
    verdicts = {"a": named_rightly((TALL | (TRUTH == 39)) & FIRST), "b": named_rightly(TRUTH == 0)}
    return SimpleNamespace(
        result=SimpleNamespace(label="none"), verdicts=verdicts, inference=SimpleNamespace(scores=scores)
    )


def run(name: str, scores: Tensor = ATTRIBUTES) -> dict[str, Any]:
    """The group as report.json has it."""
    return to_json(by_group(name, [judged(scores)], JUDGE))


def test_rates_of_both_sides_by_hand() -> None:
    group = run("tall")
    assert group["present"] == {"images": 20, "identities": 10}
    assert group["absent"] == {"images": 60, "identities": 30}
    own = group["defenses"]["none"]
    assert own["present"]["attacks"]["a"]["value"] == pytest.approx(10 / 20)
    assert own["present"]["attacks"]["a"]["ci95"] == [0.5, 0.5], "of everybody one picture of two"
    assert own["absent"]["attacks"]["a"]["value"] == pytest.approx(1 / 60)
    assert own["present"]["attacks"]["b"]["value"] == pytest.approx(2 / 20)
    assert own["absent"]["attacks"]["b"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    assert own["present"]["worst_case"]["value"] == pytest.approx(11 / 20), "both pictures of person 0"
    assert own["difference"]["worst_case"]["value"] == pytest.approx(11 / 20 - 1 / 60)
    assert own["difference"]["attacks"]["a"]["value"] == pytest.approx(10 / 20 - 1 / 60)
    # Guesses that are wrong: of the tall the second pictures, but person 0's by a; every picture of theirs
    # but person 0's by b, and a and b name the same one. So 19 pictures have one wrong guess among 39 others.
    assert own["present"]["chance"] == pytest.approx((1 + 18) / 20 / 39)
    known = group["originals"]
    assert known["present"]["value"] == 1.0 and known["absent"] == {"value": 0.5, "ci95": [0.5, 0.5]}
    assert known["difference"] == {"value": 0.5, "ci95": [0.5, 0.5]}
    assert own["absent"]["chance"] == pytest.approx(1 / 39)


def test_intervals_are_those_of_written_out_resamples() -> None:
    own = run("tall")["defenses"]["none"]
    hits = (TALL | (TRUTH == 39)) & FIRST | (TRUTH == 0)
    gaps = []
    for weights in JUDGE.boot.weights:
        drawn = np.concatenate(
            [np.flatnonzero(TRUTH.numpy() == p).repeat(int(n)) for p, n in enumerate(weights)]
        )
        tall = TALL.numpy()[drawn]
        gaps.append(hits.numpy()[drawn][tall].mean() - hits.numpy()[drawn][~tall].mean())
    np.testing.assert_allclose(own["difference"]["worst_case"]["ci95"], np.percentile(gaps, [2.5, 97.5]))


def test_the_mean_auc_is_over_attributes_that_both_sides_have() -> None:
    scores = ATTRIBUTES.clone()
    scores[TALL, 1] = torch.arange(20).float() // 2 * 2 + torch.tensor([1.0, 0.0] * 10)
    # "hat" of the tall: of 100 pairs a first picture beats a second one of the same or a lower number: 55
    group = run("tall", scores)
    assert group["attributes"] == ["hat"], "its own is left out, and what only one side has"
    own = group["defenses"]["none"]
    assert own["present"]["mean_auc"]["value"] == pytest.approx(0.55)
    assert own["absent"]["mean_auc"] == {"value": 1.0, "ci95": [1.0, 1.0]}
    assert own["difference"]["mean_auc"]["value"] == pytest.approx(-0.45)
    low, high = own["difference"]["mean_auc"]["ci95"]
    assert -0.45 <= low < high < 0, "(1 + sum of the squared shares of people) / 2, at least 0.55"


def test_a_side_of_fewer_than_five_people_is_left_out() -> None:
    group = run("few")
    assert group["present"]["identities"] == 4 and group["attributes"] == ["tall", "hat", "old"]
    own = group["defenses"]["none"]
    assert own["present"] is None and own["difference"] is None and own["absent"]["mean_auc"]["value"] == 1.0
    known = group["originals"]
    assert known["present"] is None and known["difference"] is None and known["absent"]["value"] < 1


def test_people_with_pictures_on_both_sides_count_on_both() -> None:
    group = run("hat")
    assert group["present"]["identities"] == group["absent"]["identities"] == 40
    assert group["attributes"] == ["tall", "few"], "nobody is old without a hat"
    gap = group["defenses"]["none"]["difference"]["attacks"]["b"]
    assert gap == {"value": 0.0, "ci95": [0.0, 0.0]}, "paired: the same person in both pictures"


def test_names_that_the_data_lack_are_said_and_no_name_twice() -> None:
    assert known_groups([], NAMES) == ([], [])
    known, notes = known_groups(["hat", "Male", "Young"], NAMES)
    assert known == ["hat"] and len(notes) == 1
    assert "Male, Young (--groups)" in notes[0] and "tall, hat, old, few" in notes[0]
    with pytest.raises(UserError, match="each attribute once"):
        known_groups(["hat", "hat"], NAMES)


def test_the_synthetic_faces_have_the_groups_of_their_config() -> None:
    config = yaml.safe_load((Path(__file__).parents[2] / "configs" / "audit.yaml").read_text())
    assert set(config["groups"]) <= set(IDENTITY_ATTRIBUTES), "people, not pictures, are protected"


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return make_lab(tmp_path, monkeypatch)


def test_an_audit_by_groups_attacks_nothing_anew(
    lab: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    without = lab.run(oracles=["colour"])
    assert without["groups"] == {} and not (lab.out / "groups.md").exists()
    attacks = [Echo(), Blank("blank")]
    report = lab.run(attacks=attacks, groups=["noisy", "reddish", "Male"], oracles=["colour"], overwrite=True)
    assert [attack.seen for attack in attacks] == [[], []], "all reconstructions are kept ones"
    assert report["defenses"] == without["defenses"]
    assert list(report["groups"]) == ["noisy", "reddish"]
    assert any("No figures by Male" in warning for warning in report["warnings"])
    group = report["groups"]["noisy"]
    rows = lab.data.all
    assert group["present"]["images"] == group["absent"]["images"] == 9 and len(rows["image"]) == 18
    weak = next(own for own in report["defenses"] if own["beta"] == 2.0)["label"]
    # the store of beta 2 shows the right person in every picture of an even number, which are the noisy ones
    echo = {side: group["defenses"][weak][side]["attacks"]["echo"]["value"] for side in ("present", "absent")}
    assert echo == {"present": 1.0, "absent": 0.0}
    assert group["defenses"][weak]["difference"]["attacks"]["echo"]["ci95"] == [1.0, 1.0]
    shown = capsys.readouterr().out
    assert re.search(r"crafter \(beta 2\): .*100\.0 %", shown)
    page, table = (lab.out / "report.html").read_text(), (lab.out / "groups.md").read_text()
    assert "<h2>By group</h2>" in page and "<h3>noisy</h3>" in page
    assert "| crafter (beta 2), with | 9 | 6 |" in table and "+100.0 (100.0 to 100.0 points)" in table
    lab.run(overwrite=True)
    assert not (lab.out / "groups.md").exists()


def grouped_report() -> dict[str, Any]:
    def F(value: float) -> dict[str, Any]:
        return {"value": value, "ci95": [value - 0.1, value + 0.1]}

    report = fake_report()
    side = {"mean_auc": F(0.8), "worst_case": F(0.4), "chance": 0.05}
    side["attacks"] = {name: F(0.3) for name in report["attacks"]}
    gap = {"mean_auc": None, "worst_case": F(0.2), "attacks": {name: F(0) for name in report["attacks"]}}
    both = {"present": side | {"worst_case": F(0.6)}, "absent": side, "difference": gap}
    alone = {"present": None, "absent": side, "difference": None}
    labels = [entry["label"] for entry in report["defenses"]]
    report["groups"] = {
        "Pale<b>_Skin": {
            "attributes": ["hat"],
            "originals": {"present": F(0.9), "absent": F(0.7), "difference": F(0.2)},
            "present": {"images": 44, "identities": 11},
            "absent": {"images": 196, "identities": 49},
            "defenses": dict.fromkeys(labels, both),
        },
        "Young": {
            "attributes": [],
            "originals": {"present": None, "absent": F(0.7), "difference": None},
            "present": {"images": 4, "identities": 2},
            "absent": {"images": 236, "identities": 60},
            "defenses": dict.fromkeys(labels, alone),
        },
    }
    return report


def test_the_report_shows_groups_and_says_which_sides_are_small(tmp_path: Path) -> None:
    plain = grouped_report()
    report = made(plain)
    lines = list(group_sentences(report))
    for parts in (("11 people", "Pale<b>_Skin"), ("2 people", "Young"), ("60.0 %", "10.0 to 30.0 points")):
        assert any(all(part in line for part in parts) for line in lines), parts
    assert len(lines) == 2 + 4 and all(line in text(report) for line in lines)
    html = write(tmp_path, plain).read_text()
    html = html[html.index("<h2>By group</h2>") : html.index("<h2>The judges</h2>")]
    assert "<b>" not in html and "left out" in html and "+20.0<small>10.0 to 30.0 points</small>" in html
    markdown = (tmp_path / "groups.md").read_text()
    assert markdown == sided.page(report)
    assert "| unprotected, difference |  |  | - | +20.0 (10.0 to 30.0 points) |" in markdown
    both, alone = (
        "90.0&nbsp;% (80.0 to 100.0&nbsp;%) of those with",
        "picture: 70.0 % (60.0 to 80.0 %) of those without. Att",
    )
    assert both in html and "difference +20.0 (10.0 to 30.0 points)" in html and alone in markdown
    for group in plain["groups"].values():  # as in reports from before the originals were counted
        del group["originals"]
    assert "original picture" not in sided.page(made(plain))
    assert ": hat." in sided.page(made(plain))
    assert "By group" not in write(tmp_path / "none", fake_report()).read_text()
    assert list(group_sentences(made(fake_report()))) == []
