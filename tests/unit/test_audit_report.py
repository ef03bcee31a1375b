"""The report's files: schema, verdict, page, table, plots, and building them again."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from fake_reports import ATTACKS, ORACLES, F, Page, fake_gallery, fake_report, made, under_attack, write
from PIL import Image
from report_lab import adapted

from crafter_pl.audit.record import from_json, read_report, to_json
from crafter_pl.audit.schema import Report
from crafter_pl.audit.show.gallery import mosaic
from crafter_pl.audit.show.page import rebuild
from crafter_pl.audit.show.tables import text
from crafter_pl.errors import UserError


@pytest.fixture
def written(tmp_path: Path) -> Path:
    report = fake_report()
    write(tmp_path, report)
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
    assert report["verdict"] == made(report).verdict


def test_the_page_stands_alone(written: Path) -> None:
    source = (written / "report.html").read_text()
    page = Page()
    page.feed(source)
    assert page.stack == [] and "script" not in page.tags
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in source and 'name="viewport"' in source
    assert "hat &lt;b&gt;" in source, "names from the data are escaped"
    assert len(page.links) == 1 + 6 * (1 + 2 * 4) + 6 * (1 + 4), "the plot, the grid, the strip"


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
        write(tmp_path, report)
    assert list(tmp_path.iterdir()) == []


def test_attacks_that_have_not_learnt_show_no_protection(tmp_path: Path) -> None:
    report = fake_report()
    said = made(report).verdict
    assert said.startswith("No figure of protection: no attack here has learnt from crafter (beta 1).")
    assert "falls" not in said and "37.5 %" in said
    write(tmp_path, report)
    page, mark = (tmp_path / "report.html").read_text(), "has learnt from this defence</small>"
    assert page.count(f"no attack {mark}") == 3, "in every row of the summary"
    assert page.count("has not learnt from this defence</small>") == 3 * len(ATTACKS), "and of the details"
    assert text(made(report)).count("NO ATTACK") == 3
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["learnt"] for row in rows] == ["True"] * 2 + ["False"] * 6
    assert "No figure" not in made(adapted(report)).verdict and "NO ATTACK" not in text(made(report))


def test_a_ruler_that_has_not_learnt_says_so_with_the_commands() -> None:
    report = under_attack(fake_report())
    own = report["defenses"][2]["rulers"]["feature_to_id"]
    own["train"] = ["python -m crafter_pl predict ...", "python -m crafter_pl fit ..."]
    (first, second) = [line for line in made(report).warnings if line.startswith("Reader feature_to_id")]
    assert "crafter (beta 1)" in first and first.count("\n  python -m crafter_pl") == 2
    assert "crafter (beta 2)" in second
    assert text(made(report)).count("NOT LEARNT FROM THIS DEFENCE") == 2


def test_a_report_is_read_as_it_was_written(written: Path) -> None:
    plain = under_attack(fake_report())
    report = made(plain)
    assert from_json(Report, to_json(report)) == report
    assert to_json(read_report(written)) == json.loads((written / "report.json").read_text())
    point = report.defenses[2].history["adaptive_black_box"][1]
    assert (point.round, point.pairs, point.eval_acc.value) == (1, 256, pytest.approx(0.26))
    assert point.by_oracle["eval_acc"].keys() == set(ORACLES) == point.by_oracle["tar"].keys()


def test_a_report_of_an_earlier_version_is_refused_with_the_way_out(written: Path) -> None:
    report = json.loads((written / "report.json").read_text())
    del report["defenses"][1]["attacks"]["white_box"]["learnt"]
    (written / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="--overwrite true"):
        read_report(written)
    (written / "report.json").write_text(json.dumps(report | {"schema": 2}))
    with pytest.raises(UserError, match="schema 2, expected 1"):
        read_report(written)


def test_a_page_under_attack_stands_alone_and_has_its_sections(tmp_path: Path) -> None:
    report = under_attack(fake_report())
    write(tmp_path, report)
    source = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(source)
    assert page.stack == [] and "script" not in page.tags
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert len(page.links) == 3 + 6 * (1 + 3 * 4) + 3 * 4 * (1 + 5) + 6 * (1 + 4), (
        "plots, the grid, a grid of rounds a defence, the strip"
    )
    for words in (
        "Under attack",
        "Without a picture",
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
    assert made(adapted(fake_report())).warnings == []
    report = fake_report()
    report["oracles"] = report["oracles"][:1]
    report["oracles"][0]["accuracy_on_originals"] = 0.4
    report["defenses"][0]["attacks"]["black_box"]["panel_any"] = F(0.1)
    report["defenses"][1]["worst_case"]["eval_acc"] = {"value": 0.0, "ci95": [0.0, 0.0]}
    report["data"]["identities"] = 12
    found = " ".join(made(report).warnings)
    for words in (
        "Only one judge",
        "names only 40.0 %",
        "black_box identifies only 10.0 %",
        "Only 12",
        "up to about 25.0 %",
    ):
        assert words in found


def test_the_terminal_table_has_everything_that_a_reader_needs() -> None:
    shown = text(made(fake_report()))
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
    assert (face[::2, ::2] == face[1::2, 1::2]).all() and made(report).verdict
