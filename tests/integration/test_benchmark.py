"""The benchmark: its grid, its jobs, its tables, and a tiny one from the command line."""

import csv
import json
import os
import shutil
from dataclasses import replace

import pytest
from experiment import CONF

from crafter_pl.benchmark.grid import Defended, Place, cells
from crafter_pl.benchmark.summary import over_seeds, summarise, write_summary
from crafter_pl.cli import main
from crafter_pl.metrics import Estimate
from crafter_pl.stages import sha256

ALONE = ("--workers", "1")  # no second process to start: `done` has two


# The results


@pytest.fixture(scope="module", autouse=True)
def _one_core():
    """Two threads of a job would wait for one another, where pytest's other worker has the other core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        yield


@pytest.fixture(scope="module")
def runs_dir(tiny, tmp_path_factory):
    """The tiny experiment's stages, in a folder of their own."""
    runs = tmp_path_factory.mktemp("benchmark") / "runs"
    shutil.copytree(tiny.runs_dir, runs, ignore=shutil.ignore_patterns("features", "queries", "cloud*"))
    return runs


def command(runs_dir, *more):
    places = [
        "--configs",
        str(CONF),
        "--audit",
        str(CONF / "benchmark_audit.yaml"),
        "--runs_dir",
        str(runs_dir),
    ]
    return ["benchmark", "--config", str(CONF / "benchmark.yaml"), *places, *more]


@pytest.fixture(scope="module")
def done(runs_dir):
    assert main(command(runs_dir)) == 0
    return runs_dir / "synthetic" / "benchmark"


def test_a_figure_over_seeds():
    found = over_seeds([Estimate(0.2, 0.1, 0.3), Estimate(0.4, 0.2, 0.6)])
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high, found.seeds) == (0.1, 0.6, [0.2, 0.4])


def test_the_plan_runs_nothing(tiny, tmp_path, capsys):
    assert main(command(tmp_path / "runs", "--plan", "true", "--seeds", "[0,1]")) == 0
    said = capsys.readouterr().out
    for part in ("fit-task:", "fit-noise-scale0.5-seed1:", "cell-crafter-beta1:", "audit-seed1:", "--clouds"):
        assert part in said, part
    assert said.index("fit-task:") < said.index("fit-crafter:") < said.index("cell-crafter-beta1:")
    assert not (tmp_path / "runs").exists()


def test_data_and_a_fits_options_reach_every_command_that_they_are_for(tmp_path, capsys):
    data = tmp_path / "faces.yaml"
    data.write_text((CONF / "synthetic.yaml").read_text())
    own = "{amortizer: {trainer.max_epochs: 3}, noise: {trainer.max_epochs: 4}}"
    given = ["--data", str(data), "--fit_options", own]
    assert main(command(tmp_path / "runs", "--plan", "true", *given)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " --config " in line]
    assert {line.split(" --config ")[0].split()[-1] for line in lines} == {"fit", "predict", "audit"}
    assert all(f"--data {data} " in line for line in lines)
    assert any("prior.yaml" in line for line in lines), "a stage that another one needs"
    for stage, epochs in (("amortizer", 3), ("noise", 4)):
        fits = [line for line in lines if f"{stage}.yaml" in line and "crafter_pl fit " in line]
        assert fits and all(f"--trainer.max_epochs {epochs}" in line for line in fits), stage
    assert not [line for line in lines if "task.yaml" in line and "max_epochs" in line]


def test_a_tiny_benchmark(done, runs_dir):
    report = json.loads((done / "seed0" / "report.json").read_text())
    labels = ["none", "crafter (beta 1)", "disco", "noise (scale 0.5)", "noise (scale 2.0)"]
    assert [entry["label"] for entry in report["defenses"]] == labels
    assert ["utility_training" in entry for entry in report["defenses"]] == [True, False, False, True, True]
    assert (done / "seed0" / "pareto.png").is_file() and (done / "pareto.png").is_file()
    summary = json.loads((done / "benchmark.json").read_text())
    assert set(summary["areas"]) == {"inference", "training"}
    assert list(summary["areas"]["inference"]) == ["none", "crafter", "disco", "noise", "all"]
    areas = {row["defence"]: row for row in csv.DictReader((done / "areas.csv").open())}
    assert list(areas) == list(summary["areas"]["inference"])
    assert float(areas["noise"]["training"]) == summary["areas"]["training"]["noise"]["value"]
    assert {row["retrains"] for row in areas.values()} == {"", "any", "encoder cloud"} and areas["disco"][
        "retrains"
    ]
    rows = {row["defence"]: row for row in csv.DictReader((done / "table.csv").open())}
    assert list(rows) == ["unprotected", "crafter (beta 1)", "disco", "noise (scale 0.5)", "noise (scale 2)"]
    for row, entry in zip(rows.values(), report["defenses"], strict=True):
        worst, auc = entry["worst_case"]["eval_acc"], entry["utility"]["mean_auc"]
        assert float(row["worst_case"]) == worst["value"] and float(row["worst_case_low"]) == worst["ci95"][0]
        assert float(row["mean_auc"]) == auc["value"]
        listed = entry["worst_case_gallery"]["eval_acc"]["value"]
        assert float(row["worst_case_gallery"]) == listed == entry["rulers"]["gallery_lda"]["top1"]["value"]
        assert float(row["adaptive_black_box"]) == entry["attacks"]["adaptive_black_box"]["eval_acc"]["value"]
    markdown, latex = (done / "table.md").read_text(), (done / "table.tex").read_text()
    worst = 100 * float(rows["noise (scale 2)"]["worst_case"])
    assert f"{worst:.1f} % (" in markdown and rf"{worst:.1f} \% (" in latex
    assert markdown.count("| disco | encoder, cloud |") == 2, "in both tables"
    assert latex.count(r"\toprule") == 2 and "crafter\\_pl" not in latex and "| noise (scale 2)" in markdown


def test_again_nothing_is_done_twice_and_a_lost_cell_alone_anew(done, runs_dir, capsys):
    assert main(command(runs_dir)) == 0
    assert "min" not in capsys.readouterr().out.split("| defence")[0]
    before = (done / "table.csv").read_bytes()
    shutil.rmtree(runs_dir / "synthetic" / "adaptive_black_box-noise-scale2")
    assert main(command(runs_dir, *ALONE)) == 0
    said = capsys.readouterr().out.split("| defence")[0]
    assert "cell-noise-scale2: " in said and "cell-noise-scale0.5" not in said and "fit-" not in said
    assert "audit-seed0: " in said
    assert (done / "table.csv").read_bytes() == before


def test_a_second_seed_shows_the_spread(done, runs_dir, capsys):
    only = ["--defenses", "[{stage: noise, fit: {scale: 2.0}, training: false}]", *ALONE]
    out = runs_dir / "synthetic" / "seeds"
    assert main(command(runs_dir, "--out", str(out), "--seeds", "[0,1]", *only)) == 0
    said = capsys.readouterr().out
    assert "fit-noise-scale2-seed1:" in said and "fit-noise-scale2:" not in said, "seed 0 is there already"
    rows = {row["defence"]: row for row in csv.DictReader((out / "table.csv").open())}
    values = [float(value) for value in rows["noise (scale 2)"]["mean_auc_seeds"].split()]
    assert len(set(values)) == 2 and float(rows["noise (scale 2)"]["mean_auc"]) == pytest.approx(
        sum(values) / 2
    )
    markdown = (out / "table.md").read_text()
    assert f" [{min(values):.3f} to {max(values):.3f}]" in markdown and "Means over 2 seeds" in markdown
    for seed, value in enumerate(values):
        report = json.loads((out / f"seed{seed}" / "report.json").read_text())
        assert report["defenses"][1]["utility"]["mean_auc"]["value"] == value
        # Noise has the same weights in all seeds: each audit is by the attacker of its own one.
        attacker = f"adaptive_black_box-noise-scale2{'-seed1' if seed else ''}"
        file = runs_dir / "synthetic" / attacker / "checkpoints" / "best.ckpt"
        assert report["settings"]["adapted"] == [str(file)]
        assert sha256(file) in json.dumps(report["defenses"][1]["attacks"]["adaptive_black_box"])


def test_a_cell_that_fails_is_named_and_the_others_are_in_the_table(done, runs_dir, capsys):
    spoilt = "[{stage: noise, fit: {scale: [0.5, -1.0]}, training: false}]"
    out = runs_dir / "synthetic" / "spoilt"
    assert main(command(runs_dir, "--defenses", spoilt, "--out", str(out), *ALONE)) == 2
    error = capsys.readouterr().err
    assert "fit-noise-scale-1: failed" in error and "cell-noise-scale-1: skipped" in error
    assert str(out / "logs" / "fit-noise-scale-1.log") in error
    rows = [row["defence"] for row in csv.DictReader((out / "table.csv").open())]
    assert rows == ["unprotected", "noise (scale 0.5)"]


def test_an_old_report_does_not_stand_in_for_a_failed_audit(done, runs_dir, capsys):
    shutil.copytree(done / "seed0", (out := runs_dir / "synthetic" / "failed") / "seed0")
    shutil.copytree(done / "jobs", out / "jobs")
    (out / "jobs" / "audit-seed0.json").unlink()
    broken = out.parent / "audit.yaml"
    broken.write_text((CONF / "benchmark_audit.yaml").read_text().replace("bootstrap: 20", "bootstrap: 0"))
    shutil.copy(CONF / "synthetic.yaml", out.parent)
    assert main(command(runs_dir, "--out", str(out), "--audit", str(broken))) == 2
    said = capsys.readouterr()
    assert "audit-seed0: failed" in said.err and "nothing could be audited" in said.err
    assert "worst case" not in said.out and not (out / "table.md").exists()


def test_the_front_and_the_areas_are_over_all_seeds(done, runs_dir):
    """A row that a seed lacks says so; one seed's front is not everybody's."""
    grid = cells([Defended("noise", {"scale": [1, 2]})], [0, 1])
    place, folder = Place(CONF, "synthetic", runs_dir), runs_dir / "synthetic" / "made"
    report = json.loads((done / "seed0" / "report.json").read_text())
    none, entry = (next(e for e in report["defenses"] if e["name"] == name) for name in ("none", "noise"))
    figures = {0: {"none": (0.9, 0.9), 1: (0.8, 0.5), 2: (0.7, 0.6)}, 1: {"none": (0.9, 0.9), 1: (0.8, 0.7)}}

    def made(base, auc, worst, **more):
        new = json.loads(json.dumps(base | more))
        new["utility"]["mean_auc"]["value"], new["worst_case"]["eval_acc"]["value"] = auc, worst
        return new

    for seed, rows in figures.items():
        entries = [made(none, *rows["none"])]
        for cell in (cell for cell in grid if cell.seed == seed and cell.fit["scale"] in rows):
            entries.append(made(entry, *rows[cell.fit["scale"]], store=cell.store(place)))
        (folder / f"seed{seed}").mkdir(parents=True)
        areas = {"inference": {"none": entry["utility"]["mean_auc"]}}
        if seed:
            areas["inference"]["noise"] = entry["utility"]["mean_auc"]
        text = json.dumps({**report, "defenses": entries, "areas": areas})
        (folder / f"seed{seed}" / "report.json").write_text(text)
    found = summarise(folder, grid, place, {})
    rows = {row.defence: row for row in found.rows}
    assert rows["noise (scale 1)"].worst_case.value == pytest.approx(0.6)
    assert rows["noise (scale 1)"].on_front["utility"] and rows["unprotected"].on_front["utility"]
    assert not rows["noise (scale 2)"].on_front["utility"]
    assert list(found.areas["inference"]) == ["none", "noise"]
    assert (folder / "pareto.png").is_file() is False
    assert "| noise (scale 2) (1 of 2 seeds) |" in write_summary(folder, found).read_text()
    flagged = [
        replace(row, false_security=1) if row.defence == "noise (scale 1)" else row for row in found.rows
    ]
    assert "| noise (scale 1) (! 1 of 2) |" in write_summary(folder, replace(found, rows=flagged)).read_text()


def test_a_stage_trained_for_other_epochs_is_not_taken_for_it(runs_dir, capsys):
    before = (runs_dir / "synthetic" / "task" / "summary.json").read_bytes()
    assert main(command(runs_dir, "--plan", "true", "--fit_options", "{task: {trainer.max_epochs: 9}}")) == 2
    said = capsys.readouterr().err
    assert "synthetic/task" in said and "--experiment" in said
    summary = runs_dir / "synthetic" / "task" / "summary.json"
    assert summary.read_bytes() == before
    summary.write_text(json.dumps({**json.loads(before), "max_epochs": 0}))  # as `adopt` writes it
    assert main(command(runs_dir, "--plan", "true", "--fit_options", "{task: {trainer.max_epochs: 9}}")) == 0
    summary.write_bytes(before)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--audit", "nowhere.yaml"], "nowhere.yaml of the audit"),
        (["--data", "nowhere.yaml"], "nowhere.yaml of the data"),
        (["--defenses", "[{stage: unheard}]"], "unheard.yaml"),
        (["--fit_options", "{unheard: {trainer.max_epochs: 1}}"], "unheard.yaml"),
        (["--workers", "0"], "--workers is 0"),
        (["--seeds", "[]"], "needs defences and seeds"),
        (["--oracles", "[]"], "--oracles"),
        (["--budget", "benchmrk"], "--budget benchmrk"),
        (["--attackers", "[]"], "adaptive_black_box"),
        (["--defenses", "[{stage: noise, fit: {scale: []}}]"], "grid"),
        (["--defenses", "[{stage: task}]"], "stage task"),
        (
            ["--defenses", "[{stage: noise, fit: {scale: 2}}, {stage: noise, fit: {scael: 2}}]"],
            "scael",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(more, said, tmp_path, capsys):
    assert main([*command(tmp_path / "runs"), *more]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "runs").exists()
