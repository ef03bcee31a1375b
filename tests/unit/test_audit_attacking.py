"""Attacks at work: their history, the forecast, budgets, and rulers beside them."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from audit_lab import IDENTITIES, PEOPLE, SIZE, Blank, Echo, make_lab, write_store
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.attacks.reader import Ruler
from crafter_pl.audit.audit import audit
from crafter_pl.audit.options import Options
from crafter_pl.audit.show.page import rebuild
from crafter_pl.errors import UserError


class Learning(Echo):
    """The more rounds it has had, the less noise it adds; on unprotected features it has no history."""

    adaptive = True

    def __init__(self, name: str = "learning", rounds: int = 3) -> None:
        super().__init__(name, noise=0.0)
        self.rounds = rounds

    def history(self) -> list[tuple[dict[str, int], Attack]]:
        moments: list[tuple[dict[str, int], Attack]] = []
        for number in range(self.rounds):
            one = copy.copy(self)
            one.noise = 0.1 * (self.rounds - number)
            moments.append(({"round": number, "pairs": 100 * number, "epochs": 5 * number}, one))
        return moments


class FakeRuler(Ruler):
    """Reads the person from the feature's colour, by the columns of `identities`."""

    def __init__(self, name: str = "ruler", known: list[int] | None = None) -> None:
        self.name, self.known, self.checkpoints = name, known or sorted(IDENTITIES)[::-1], {}
        self.prepared = []

    def prepare(self, device: str) -> None:
        self.prepared.append(device)

    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def identities(self) -> Tensor:
        return torch.tensor(self.known)

    def identify(self, features: Tensor) -> Tensor:
        from audit_lab import templates

        return -(features.mean((2, 3))[:, None] - templates().flip(0)[None]).norm(dim=2)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return make_lab(tmp_path, monkeypatch)


def test_an_attack_that_adapts_shows_its_history(lab: SimpleNamespace) -> None:
    truth = write_store(lab.tmp / "truth", lab.data, lab.data.all["image"], 3.0)
    report = lab.run(features=truth, attacks=[Blank("blank"), Learning()])
    none, weak = report["defenses"]
    assert none["history"] == {}
    points = weak["history"]["learning"]
    assert [(p["round"], p["pairs"], p["epochs"]) for p in points] == [(0, 0, 0), (1, 100, 5), (2, 200, 10)]
    psnr = [point["psnr"]["value"] for point in points]
    assert psnr == sorted(psnr) and weak["attacks"]["learning"]["psnr"]["value"] > psnr[-1]
    assert all(low <= high for point in points for low, high in [point["identity_similarity"]["ci95"]])
    assert (lab.out / "adaptation_round.png").is_file() and (lab.out / "adaptation_pairs.png").is_file()
    rows = list(csv.DictReader((lab.out / "table.csv").open()))
    moments = [row for row in rows if row["features"] == weak["label"] and row["round"]]
    assert [row["pairs"] for row in moments] == ["0", "100", "200"]
    page = (lab.out / "report.html").read_bytes()
    assert b"round 2, 200 pairs" in page and rebuild(str(lab.out)).read_bytes() == page


def test_tensorboard_shows_a_defence_under_attack(lab: SimpleNamespace) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = lab.run(attacks=[Echo(), Learning()])
    (file,) = lab.out.glob("events.out.tfevents.*")
    events = EventAccumulator(str(file), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    weak = report["defenses"][2]
    tag = f"audit/eval_acc_by_pairs/learning, {weak['label']}"
    assert [event.step for event in events.Scalars(tag)] == [0, 100, 200]
    values = [point["eval_acc"]["value"] for point in weak["history"]["learning"]]
    assert [event.value for event in events.Scalars(tag)] == pytest.approx(values)
    pictures = events.Images(f"audit/reconstructions_by_round/learning, {weak['label']}")
    assert [event.step for event in pictures] == [0, 1, 2]


def test_the_minutes_are_measured_before_the_rest_and_nothing_is_made_twice(
    lab: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = Learning()
    lab.run(attacks=[attack])
    shown = capsys.readouterr().out
    # 18 pictures, of 3 sets and 2 histories of 3 rounds, less a batch of 5 of each of the 4 noises
    assert f"{18 * (3 + 6) - 4 * 5} reconstructions" in shown and "learning 0.0 min" in shown
    assert "attacks: 0.0 min left" in shown
    assert len(torch.cat(attack.seen)) == 18 * (3 + 6), "copies of the attack share its memory"
    again = Learning()
    lab.run(attacks=[again], overwrite=True)
    assert again.seen == [] and again.prepared == []
    assert " min for " not in capsys.readouterr().out


def test_the_minutes_count_a_slow_moment_as_slow(
    lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of `AdaptiveWhiteBoxAttack`: before the first round it is an inversion, and then one pass."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("crafter_pl.audit.attack.time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(Learning):
        def reconstruct(self, features: Tensor) -> Tensor:
            clock.now += 60 * len(features) * (10 if self.noise > 0.25 else 1)  # seconds
            return super().reconstruct(features)

    lab.run(attacks=[Slow()])
    # The first round of both stores at 10 minutes a face, the other two and the attack at 1; timed: 5 of each
    minutes = 10 * (2 * 18 - 5) + 2 * (2 * 18 - 5) + (3 * 18 - 5)
    shown = capsys.readouterr().out
    assert f"{minutes} min for" in shown and f"learning {minutes} min" in shown
    assert "attacks: 0.0 min left" in shown


def test_attacks_that_differ_in_their_name_alone_share_what_they_make(
    lab: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    one, same, other = Echo("one"), Echo("same"), Echo("other", noise=0.3)
    report = lab.run(attacks=[one, same, other])
    shown = capsys.readouterr().out
    assert f"{18 * 3 * 2 - 2 * 5} reconstructions (one 0.0 min, other 0.0 min)" in shown
    assert len(torch.cat(one.seen)) == 18 * 3 == len(torch.cat(other.seen)) and same.seen == []
    for entry in report["defenses"]:
        assert entry["attacks"]["one"] == entry["attacks"]["same"] != entry["attacks"]["other"]


def test_a_weak_attack_is_named_as_weaker_than_the_plain_one(lab: SimpleNamespace) -> None:
    report = lab.run(attacks=[Echo("white_box"), Blank("blank"), Echo("strong")])
    plain = {name: result["eval_acc"]["value"] for name, result in report["defenses"][0]["attacks"].items()}
    assert plain["blank"] < plain["white_box"] - 0.05 and plain["strong"] == plain["white_box"]
    said = f"Weaker there than white_box (100.0&nbsp;%): blank ({100 * plain['blank']:.1f}&nbsp;%)."
    assert said in (lab.out / "report.html").read_text()
    lab.run(attacks=[Echo("white_box"), Echo("strong")], overwrite=True)
    assert "Weaker" not in (lab.out / "report.html").read_text()


def test_a_budget_is_a_list_of_attacks(lab: SimpleNamespace) -> None:
    budgets = {"quick": [Blank("blank")], "standard": [Echo(), Blank("blank")]}
    page = audit(Options(**lab.base | {"attacks": None, "budgets": budgets, "budget": "quick"}))
    assert page.parent == lab.out.parent / "audit-quick", "beside the report of the standard budget"
    report = json.loads((page.parent / "report.json").read_text())
    assert list(report["attacks"]) == ["blank"] and report["settings"]["budget"] == "quick"
    assert "those of the budget quick" in page.read_text()
    assert list(lab.run(attacks=None, budgets=budgets)["attacks"]) == ["echo", "blank"]
    given = lab.run(attacks=[Echo("own")], budgets=budgets, overwrite=True)
    assert list(given["attacks"]) == ["own"] and given["settings"]["budget"] is None
    with pytest.raises(UserError, match="quick, standard"):
        lab.run(attacks=None, budgets=budgets, budget="endless", overwrite=True)
    with pytest.raises(UserError, match="or give --attacks"):
        lab.run(attacks=None, overwrite=True)


def test_one_store_needs_no_list(lab: SimpleNamespace) -> None:
    report = lab.run(features=lab.base["features"][0])
    assert report["settings"]["features"] == [lab.base["features"][0]]
    assert [entry["beta"] for entry in report["defenses"]] == [None, 2.0]


def test_rulers_are_reported_apart(lab: SimpleNamespace) -> None:
    ruler = FakeRuler()
    report = lab.run(attacks=[Blank("blank")], rulers=[ruler])
    none, strong, weak = report["defenses"]
    assert [entry["rulers"]["ruler"]["top1"]["value"] for entry in (none, strong, weak)] == [1.0, 0.0, 0.5]
    assert weak["rulers"]["ruler"]["top5"]["value"] >= 0.5 and report["rulers"]["ruler"]["name"] == "ruler"
    assert "ruler" not in report["attacks"] and "ruler" not in none["attacks"]
    assert none["worst_case"]["eval_acc"]["value"] == pytest.approx(2 / PEOPLE), "rulers do not count"
    assert len(ruler.prepared) == 3
    page = (lab.out / "report.html").read_text()
    assert "Without a picture" in page
    rows = [row for row in csv.DictReader((lab.out / "table.csv").open()) if row["ruler"]]
    assert [float(row["top1"]) for row in rows] == [1.0, 0.0, 0.5] and {row["attack"] for row in rows} == {""}


def test_rulers_of_other_people_or_another_split_are_refused(lab: SimpleNamespace) -> None:
    with pytest.raises(UserError, match="ruler"):
        lab.run(rulers=[FakeRuler(known=[1, 2, *IDENTITIES[1:]])])
    (lab.tmp / "elsewhere").touch()
    lab.splits["elsewhere"] = "another"
    ruler = FakeRuler()
    ruler.checkpoints = {"feature_to_id": str(lab.tmp / "elsewhere")}
    with pytest.raises(UserError, match="ruler"):
        lab.run(rulers=[ruler])
    with pytest.raises(UserError, match="two attacks have one name"):
        lab.run(attacks=[Echo("one")], rulers=[FakeRuler("one")])


def test_verification_stands_beside_identification(lab: SimpleNamespace) -> None:
    report = lab.run()
    none, strong, _ = report["defenses"]
    tar = none["attacks"]["echo"]["tar_by_oracle"]
    assert tar.keys() == {"colour", "turned"} and none["attacks"]["echo"]["tar"] == tar["colour"]
    assert tar["colour"]["value"] > 0.9 and report["oracles"][0]["tar_on_originals"]["value"] > 0.9
    assert strong["attacks"]["echo"]["tar"]["value"] == 0.0, "everybody shows the next person"
    assert "TAR at FAR" in (lab.out / "report.html").read_text()
    rows = list(csv.DictReader((lab.out / "table.csv").open()))
    assert float(rows[0]["tar[turned]"]) == tar["turned"]["value"]


def test_attacks_are_prepared_for_each_set_and_described_as_they_were(lab: SimpleNamespace) -> None:
    class Choosing(Echo):
        """Takes another net for each defence."""

        def aim(self, target: Any) -> None:
            super().aim(target)
            self.checkpoints = {"net": str(lab.tmp / ("own" if target else "basic"))}

        def describe(self) -> dict[str, Any]:
            return {"name": self.name, "checkpoints": {"net": Path(str(self.checkpoints["net"])).name}}

    for name in ("own", "basic"):
        (lab.tmp / name).touch()
    attack = Choosing("choosing")
    report = lab.run(attacks=[attack])
    assert len(attack.prepared) >= 3
    assert report["attacks"]["choosing"]["checkpoints"] == {"net": "basic"}
    assert report["attacks"]["choosing"]["files"] == {"net": str(lab.tmp / "basic")}
    none, strong, _ = report["defenses"]
    assert "checkpoints" not in none["attacks"]["choosing"]
    assert strong["attacks"]["choosing"]["checkpoints"] == {"net": "own"}
    assert strong["attacks"]["choosing"]["files"] == {"net": str(lab.tmp / "own")}
    assert SIZE and json.dumps(report)
