"""The report's files: schema, verdict, page, table, plots, and building them again."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from crafter_pl.audit.plots import Column, Gallery, mosaic
from crafter_pl.audit.report import complete, read_report, rebuild, text, write_report
from crafter_pl.audit.verdict import chosen, curves, title, verdict, warnings
from crafter_pl.errors import UserError

ATTACKS = ("black_box", "white_box")
ORACLES = ("colour", "grey")


def F(value: float, spread: float = 0.04) -> dict[str, Any]:
    return {"value": value, "ci95": [value - spread, value + spread]}


def fake_entry(name: str, beta: float | None, auc: float, rate: float) -> dict[str, Any]:
    def result(scale: float) -> dict[str, Any]:
        found = {"eval_acc": F(rate * scale), "eval_acc_top5": F(min(1, 1.6 * rate * scale))}
        found |= {"by_oracle": {"colour": F(rate * scale), "grey": F(rate * scale * 0.8)}}
        found |= {
            "panel_any": F(min(1, rate * scale * 1.2)),
            "panel_any_top5": F(min(1, rate * scale * 1.8)),
            "identity_similarity": F(0.2 + rate * scale / 2),
        }
        found |= {"identity_similarity_by_oracle": {oracle: F(0.4) for oracle in ORACLES}}
        return found | {"ssim": F(0.4 + 0.3 * rate), "psnr": F(15 + 5 * rate, 0.3)}

    attacks = {"black_box": result(0.9), "white_box": result(1.0)}
    for own in attacks.values():
        own["learnt"] = name == "none"
    entry: dict[str, Any] = {
        "name": name,
        "label": "none" if name == "none" else f"{name} (beta {beta:g})",
        "family": name,
        "beta": beta,
        "settings": {} if beta is None else {"beta": beta, "steps": 80},
        "utility": {
            "mean_auc": F(auc, 0.012),
            "per_attribute": {"glasses": F(auc), "long_hair": F(auc - 0.03)},
        },
        "attacks": attacks,
        "worst_case": {"eval_acc": F(min(1.0, rate * 1.25)), "chance": 0.045},
        "cost": {"seconds_per_image": 0.0 if name == "none" else 1.1, "peak_memory_mb": 900.0},
    }
    if name != "none":
        entry["change"] = {
            "mean_auc": F(auc - 0.912, 0.004),
            "worst_case_eval_acc": F(rate * 1.25 - 0.85, 0.05),
        }
    return entry


def fake_report(
    points: tuple[tuple[float, float, float], ...] = ((0.5, 0.88, 0.2), (1.0, 0.9, 0.3), (2, 0.907, 0.45)),
) -> dict:
    entries = [fake_entry("none", None, 0.912, 0.68)]
    entries += [fake_entry("crafter", beta, auc, rate) for beta, auc, rate in points]
    data = {"source": "synthetic", "split_hash": "ab" * 32, "image_size": 32, "identities": 60, "images": 240}
    oracle = {"accuracy_on_originals": 0.93, "ci95": [0.9, 0.96], "people": 60}
    oracles = [{"name": name, **oracle, "settings": {"grey": name == "grey"}} for name in ORACLES]
    return {
        "schema": 1,
        "created": "2026-11-23 12:00 UTC",
        "version": "0.1.0",
        "data": data | {"chance": 1 / 60, "attributes_left_out": ["hat <b>"]},
        "oracles": oracles,
        "panel": {"accuracy_on_originals": F(0.97, 0.02)},
        "attacks": {name: {"name": name, "settings": {"steps": 300}} for name in ATTACKS},
        "defenses": entries,
        "notes": [],
        "settings": {"seed": 0, "bootstrap": 1000},
    }


def under_attack(report: dict[str, Any]) -> dict[str, Any]:
    """The same with an attack that adapts, its rounds, a ruler, verification, and a defence that retrains."""
    report["attacks"] |= {"adaptive_black_box": {"name": "adaptive_black_box", "adaptive": True}}
    report["rulers"] = {"feature_to_id": {"name": "feature_to_id"}}
    for oracle in report["oracles"]:
        oracle["tar_on_originals"] = F(0.9)
    for number, entry in enumerate(report["defenses"]):
        basic = entry["worst_case"]["eval_acc"]["value"]
        rate = min(1.0, basic + (0.3 if number == 2 else 0.01))
        entry["worst_case_basic"] = dict(entry["worst_case"])
        entry["worst_case"] = {"eval_acc": F(rate), "chance": 0.07}
        adapted = {"eval_acc": F(rate * 0.9), "learnt": True}
        entry["attacks"]["adaptive_black_box"] = {**entry["attacks"]["black_box"], **adapted}
        for result in entry["attacks"].values():
            result |= {"tar": F(0.3), "tar_by_oracle": {oracle: F(0.3) for oracle in ORACLES}}
        entry["rulers"] = {"feature_to_id": {"top1": F(0.77), "top5": F(0.9), "learnt": number < 2}}
        entry["retrains"] = ["encoder", "cloud"] if number == 3 else []
        if not number:
            continue
        entry["false_security"] = {
            "flag": number == 2,
            "basic": F(basic),
            "adaptive": F(rate),
            "gain": F(rate - basic, 0.02),
            "gain_beyond_chance": F(rate - basic - 0.02, 0.02),
            "strongest": "adaptive_black_box",
        }
        entry["history"] = {
            "adaptive_black_box": [
                {
                    "round": n,
                    "pairs": 256 * n,
                    "epochs": 10 * n,
                    **entry["attacks"]["black_box"],
                    "eval_acc": F(0.1 * number + (0.06 * n if number == 2 else 0.005 * n)),
                }
                for n in range(5)
            ]
        }
    return report


def fake_gallery(report: dict[str, Any], people: int = 6, size: int = 32) -> Gallery:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(people, 3, 4, 4, generator=generator)
    originals = torch.nn.functional.interpolate(base, size=(size, size), mode="bicubic").clamp(0, 1)
    columns = []
    for attack in report["attacks"]:
        for i, entry in enumerate(report["defenses"]):
            images = torch.nn.functional.avg_pool2d(originals, 2 ** min(i, 3)) if i else originals * 0.9
            images = torch.nn.functional.interpolate(images, size=(size, size))
            columns.append(Column(attack, title(entry), images, [(i + j) % 3 == 0 for j in range(people)]))
    rounds = []
    for entry in report["defenses"]:
        for attack, points in entry.get("history", {}).items():
            for point in points:
                moment = {key: point[key] for key in ("round", "pairs", "epochs")}
                images = torch.nn.functional.avg_pool2d(originals, 2 ** (3 - min(point["round"], 3)))
                images = torch.nn.functional.interpolate(images, size=(size, size))
                rounds.append(Column(attack, title(entry), images, [False] * people, moment))
    return Gallery(originals, columns, rounds)


class _Page(HTMLParser):
    """Collects what a page fetches, and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


@pytest.fixture
def written(tmp_path: Path) -> Path:
    report = fake_report()
    write_report(tmp_path, report, fake_gallery(report))
    return tmp_path


def test_all_files_are_written_and_nothing_else(written: Path) -> None:
    names = {path.name for path in written.iterdir()}
    expected = {"report.json", "report.html", "table.csv", "tradeoff.png", "reconstructions.png"}
    assert names == expected | {"gallery.safetensors"}
    for name in ("tradeoff.png", "reconstructions.png"):
        with Image.open(written / name) as picture:
            assert min(picture.size) > 200


def test_the_json_has_the_schema_of_the_design(written: Path) -> None:
    report = json.loads((written / "report.json").read_text())
    assert report["schema"] == 1
    assert {"source", "split_hash", "image_size", "identities", "images", "chance"} <= set(report["data"])
    assert all({"name", "accuracy_on_originals"} <= set(oracle) for oracle in report["oracles"])
    assert report["defenses"][0]["name"] == "none"
    for entry in report["defenses"]:
        assert {"name", "settings", "utility", "attacks", "worst_case", "cost"} <= set(entry)
        assert {"seconds_per_image", "peak_memory_mb"} == set(entry["cost"])
        figures = [entry["utility"]["mean_auc"], *entry["utility"]["per_attribute"].values()]
        figures.append(entry["worst_case"]["eval_acc"])
        for result in entry["attacks"].values():
            figures += [
                result[key] for key in ("eval_acc", "eval_acc_top5", "identity_similarity", "ssim", "psnr")
            ]
            figures += [result["by_oracle"][name] for name in ORACLES]
        for figure in figures:
            assert isinstance(figure["value"], float | int) and len(figure["ci95"]) == 2
    assert report["verdict"] == verdict(report)


def test_the_page_stands_alone(written: Path) -> None:
    source = (written / "report.html").read_text()
    page = _Page()
    page.feed(source)
    assert page.stack == [] and "script" not in page.tags
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in source and 'name="viewport"' in source
    assert "hat &lt;b&gt;" in source, "names from the data are escaped"
    assert len(page.links) == 1 + 6 * (1 + 2 * 4)


def test_the_table_has_one_row_a_set_of_features_and_attack(written: Path) -> None:
    rows = list(csv.DictReader((written / "table.csv").open()))
    assert [(row["features"], row["attack"]) for row in rows][:3] == [
        ("none", "black_box"), ("none", "white_box"), ("crafter (beta 0.5)", "black_box"),
    ]  # fmt: skip
    assert len(rows) == 8
    assert float(rows[1]["eval_acc"]) == 0.68 and float(rows[1]["eval_acc_low"]) == pytest.approx(0.64)
    assert float(rows[0]["chance"]) == pytest.approx(1 / 60) and rows[0]["identities"] == "60"


def test_rebuild_writes_the_same_page(written: Path) -> None:
    before = (written / "report.html").read_bytes()
    (written / "report.html").unlink()
    assert rebuild(str(written)).read_bytes() == before


def test_rebuild_says_what_is_wrong(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report\.json"):
        rebuild(str(tmp_path / "nowhere"))
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    for content in ("{", "[]", '{"schema": 1}'):
        (written / "report.json").write_text(content)
        with pytest.raises(UserError, match=r"[Rr]un the audit again"):
            rebuild(str(written))
        assert all((written / name).read_bytes() == before[name] for name in before if name != "report.json")


def test_numbers_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    report = fake_report()
    report["data"]["chance"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path, report, fake_gallery(report))
    assert list(tmp_path.iterdir()) == []


def adapted(report: dict[str, Any]) -> dict[str, Any]:
    """The same of attacks of which one has learnt from every defence."""
    for entry in report["defenses"]:
        entry["attacks"]["white_box"]["learnt"] = True
    return report


def test_attacks_that_have_not_learnt_show_no_protection(tmp_path: Path) -> None:
    report = fake_report()
    said = verdict(report)
    assert said.startswith("No figure of protection: no attack here has learnt from crafter (beta 1).")
    assert "falls" not in said and "37.5 %" in said
    write_report(tmp_path, report, fake_gallery(report))
    page, mark = (tmp_path / "report.html").read_text(), "has learnt from this defence</small>"
    assert page.count(f"no attack {mark}") == 3, "in every row of the summary"
    assert page.count("has not learnt from this defence</small>") == 3 * len(ATTACKS), "and of the details"
    assert text(report).count("NO ATTACK") == 3
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["learnt"] for row in rows] == ["True"] * 2 + ["False"] * 6
    assert "No figure" not in verdict(adapted(report)) and "NO ATTACK" not in text(report)


def test_a_ruler_that_has_not_learnt_says_so_with_the_commands() -> None:
    report = under_attack(fake_report())
    own = report["defenses"][2]["rulers"]["feature_to_id"]
    own["train"] = ["python -m crafter_pl predict ...", "python -m crafter_pl fit ..."]
    (first, second) = [text for text in warnings(report) if text.startswith("Ruler feature_to_id")]
    assert "has not learnt from crafter (beta 1)" in first and first.count("\n  python -m crafter_pl") == 2
    assert "crafter (beta 2)" in second
    assert text(report).count("NOT LEARNT FROM THIS DEFENCE") == 2


def test_a_report_of_before_says_what_has_learnt(written: Path) -> None:
    report = json.loads((written / "report.json").read_text())
    for entry in report["defenses"]:
        for result in entry["attacks"].values():
            del result["learnt"]
    (written / "report.json").write_text(json.dumps(report))
    assert read_report(written)["defenses"][1]["attacks"]["white_box"]["learnt"] is False
    assert "No figure of protection" in rebuild(str(written)).read_text()


def test_the_verdict_names_the_best_affordable_setting() -> None:
    report = fake_report()
    assert chosen(report)["beta"] == 1.0, "beta 0.5 costs more than 0.02"
    sentence = verdict(adapted(report))
    assert (
        "crafter (beta 1)" in sentence
        and "from 85.0 % to 37.5 %" in sentence
        and "0.012 of mean AUC" in sentence
    )
    assert "4.5 % would be by chance" in sentence and "240 faces of 60 people" in sentence
    assert chosen(fake_report(((0.1, 0.7, 0.1), (0.5, 0.85, 0.3))))["beta"] == 0.5, (
        "the cheapest if none is affordable"
    )


def test_the_verdict_does_not_flatter() -> None:
    assert verdict(fake_report(((1.0, 0.912, 0.67),))).startswith("No measurable protection")
    assert "no measured cost" in verdict(fake_report(((1.0, 0.915, 0.3),)))
    assert "not measurably more than by chance" in verdict(adapted(fake_report(((1.0, 0.91, 0.03),))))
    assert verdict(fake_report(())).startswith("Nothing protected")
    weak = fake_report()
    weak["defenses"][0]["worst_case"]["eval_acc"] = F(0.05)
    assert verdict(weak).startswith("This audit cannot show protection")


def test_the_curve_is_called_monotone_only_if_it_is() -> None:
    assert [curve["monotone"] for curve in curves(fake_report())] == [True]
    (bent,) = curves(fake_report(((2, 0.90, 0.45), (0.5, 0.88, 0.2), (1, 0.905, 0.3))))
    assert bent["monotone"] is False and bent["betas"] == [0.5, 1, 2]
    assert (
        "mean AUC falls from beta 1 to 2 (by 0.005)" in bent["sentence"]
        and "worst case never falls" in bent["sentence"]
    )
    assert curves(fake_report(((1, 0.9, 0.3),))) == []


def test_families_of_settings_have_a_curve_each(tmp_path: Path) -> None:
    report = fake_report()
    for beta, auc, rate in ((0.5, 0.87, 0.1), (1.0, 0.89, 0.26)):
        entry = fake_entry("crafter", beta, auc, rate)
        entry |= {
            "family": "crafter (critic per_batch)",
            "label": f"crafter (beta {beta:g}, critic per_batch)",
        }
        report["defenses"].append(entry)
    families = [curve["family"] for curve in curves(report)]
    assert families == ["crafter", "crafter (critic per_batch)"]
    write_report(tmp_path, report, fake_gallery(report))
    assert "critic per batch" in (tmp_path / "report.html").read_text()


def test_false_security_is_seen_everywhere(tmp_path: Path) -> None:
    report = under_attack(fake_report(((0.5, 0.88, 0.2), (1.0, 0.9, 0.2), (2, 0.905, 0.45))))
    report["defenses"][2]["worst_case"]["eval_acc"] = F(0.4)
    full = complete(report)
    assert chosen(report)["beta"] == 1.0
    sentence = "False security with crafter (beta 1): adaptive_black_box, which knows the defence, alone "
    sentence += "identifies 55.0 %"
    assert "from 86.0 % to 40.0 %" in full["verdict"], "the worst case over all attacks"
    assert sentence in full["verdict"] and full["warnings"][0].startswith(sentence)
    write_report(tmp_path, report, fake_gallery(report))
    page, rows = (tmp_path / "report.html").read_text(), list(csv.DictReader((tmp_path / "table.csv").open()))
    assert 'class="flag">False security with crafter (beta 1)' in page
    assert page.count('<small class="bad">false security</small>') == 1 and "False security" in text(report)
    flags = {row["features"]: row["false_security"] for row in rows if row["attack"]}
    assert flags == {
        "none": "",
        "crafter (beta 0.5)": "False",
        "crafter (beta 1)": "True",
        "crafter (beta 2)": "False",
    }
    assert {"worst_case_basic", "worst_case_basic_low", "adaptive_gain_high"} <= set(rows[0])
    shown = text(report).splitlines()
    assert "not adaptive" in shown[2] and "25.0 %" in shown[5]


def test_the_verdict_says_what_knowing_the_defence_gains() -> None:
    bad = fake_report(((1.0, 0.912, 0.67),))
    assert verdict(bad).endswith("No attack here has learnt from it: one that does may identify more.")
    report = under_attack(fake_report(((1.0, 0.9, 0.3),)))
    assert "gained nothing measurable" in verdict(report) and "difference -1.0 to 3.0 points" in verdict(
        report
    )
    del report["defenses"][1]["false_security"]
    assert verdict(report).endswith("All attacks here know the defence.")


def test_a_page_under_attack_stands_alone_and_has_its_sections(tmp_path: Path) -> None:
    report = under_attack(fake_report())
    write_report(tmp_path, report, fake_gallery(report))
    source = (tmp_path / "report.html").read_text()
    page = _Page()
    page.feed(source)
    assert page.stack == [] and "script" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert len(page.links) == 3 + 6 * (1 + 3 * 4) + 3 * 4 * (1 + 5), (
        "plots, the grid, a grid of rounds a defence"
    )
    for words in (
        "Under attack",
        "Rulers that hold private labels",
        "TAR at FAR",
        "without adaptive attacks",
    ):
        assert words in source
    assert "retrains encoder, cloud" in source and "is that of its own nets" in source
    before = (tmp_path / "report.html").read_bytes()
    assert rebuild(str(tmp_path)).read_bytes() == before
    for name in ("adaptation_round.png", "adaptation_pairs.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 400


def test_weak_rulers_and_weak_attacks_are_named() -> None:
    assert warnings(adapted(fake_report())) == []
    report = fake_report()
    report["oracles"] = report["oracles"][:1]
    report["oracles"][0]["accuracy_on_originals"] = 0.4
    report["defenses"][0]["attacks"]["black_box"]["panel_any"] = F(0.1)
    report["defenses"][1]["worst_case"]["eval_acc"] = {"value": 0.0, "ci95": [0.0, 0.0]}
    report["data"]["identities"] = 12
    found = " ".join(warnings(report))
    for words in (
        "Only one oracle",
        "names only 40.0 %",
        "black_box identifies only 10.0 %",
        "Only 12",
        "up to about 25.0 %",
    ):
        assert words in found


def test_the_terminal_table_has_everything_that_a_reader_needs() -> None:
    shown = text(fake_report())
    for words in (
        "mean AUC",
        "black_box",
        "white_box",
        "worst case",
        "chance of one guess",
        "colour 93.0 %",
        "monotone",
    ):
        assert words in shown
    assert max(len(line) for line in shown.splitlines()[:8]) <= 110


def test_small_faces_are_enlarged_without_blur() -> None:
    report = fake_report()
    gallery = fake_gallery(report, people=1)
    canvas = mosaic(gallery)
    face = canvas[4 : 4 + 64, 4 : 4 + 64]
    assert (face[::2, ::2] == face[1::2, 1::2]).all() and complete(report)["verdict"]
