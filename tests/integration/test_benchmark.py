"""The benchmark: its grid, its jobs, its tables, and a tiny one from the command line."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from experiment import CONF

from crafter_pl.benchmark.grid import Defended, Place, cells
from crafter_pl.benchmark.jobs import DONE, FAILED, SKIPPED, Job, Jobs
from crafter_pl.benchmark.summary import over_seeds, summarise, write_summary
from crafter_pl.cli import main
from crafter_pl.errors import UserError
from crafter_pl.metrics import Estimate
from crafter_pl.stages import sha256

PLACE = Place(CONF, "synthetic", CONF / "nowhere")
ALONE = ("--workers", "1")  # no second process to start: `done` has two


# The grid


def test_every_combination_is_a_cell_with_a_name_of_its_own():
    lines = [
        Defended("noise", {"scale": [0.5, 2.0], "kind": "laplace"}),
        Defended("crafter", protect={"beta": [0.1, 1], "critic": "adapted"}),
        Defended("adversarial_learning", {"lambda_": 0.5}, training=False),
    ]
    found = cells(lines, [0, 3])
    assert [(cell.name, cell.run, cell.title) for cell in found[:5]] == [
        ("noise-laplace-scale0.5", "noise-laplace-scale0.5", "noise (kind laplace, scale 0.5)"),
        ("noise-laplace-scale2", "noise-laplace-scale2", "noise (kind laplace, scale 2)"),
        ("crafter-beta0.1-adapted", "crafter", "crafter (beta 0.1, critic adapted)"),
        ("crafter-beta1-adapted", "crafter", "crafter (beta 1, critic adapted)"),
        ("adversarial_learning-lambda0.5",) * 2 + ("adversarial_learning (lambda 0.5)",),
    ]
    assert [cell.seed for cell in found] == [0] * 5 + [3] * 5
    assert found[5].name == found[5].run == "noise-laplace-scale0.5-seed3"
    assert found[7].run == "crafter-seed3" and found[7].title == found[2].title


@pytest.mark.parametrize(
    ("lines", "seeds", "said"),
    [
        ([], [0], "needs defences"),
        ([Defended("noise")], [], "needs defences and seeds"),
        ([Defended("noise"), Defended("noise")], [0], "the same: noise"),
        ([Defended("noise")], [1, 1], "the same: noise, seed 1"),
        (
            [
                Defended("noise", {"kind": "laplace", "scale": 2}),
                Defended("noise", {"scale": 2, "kind": "laplace"}),
            ],
            [0],
            r"the same: noise \(kind laplace, scale 2\)",
        ),
    ],
)
def test_a_grid_of_nothing_or_of_twice_the_same_is_refused(lines, seeds, said):
    with pytest.raises(UserError, match=said):
        cells(lines, seeds)


def test_commands():
    line = Defended("crafter", {"craft.steps": 3}, {"beta": 0.5, "critic": "adapted"})
    (cell,) = cells([line], [2])
    fit, protect = cell.fitted(PLACE), cell.protected(PLACE, "private_train")
    assert fit[:3] == ["fit", "--config", str(CONF / "crafter.yaml")]
    assert options(fit) >= {
        ("--name", "crafter-steps3-seed2"),
        ("--seed_everything", "2"),
        ("--data.order_seed", "2"),
        ("--model.init_args.craft.steps", "3"),
        ("--ckpt_path", "last"),
    }
    assert options(protect) >= {
        ("--protect.beta", "0.5"),
        ("--protect.critic", "adapted"),
        ("--protect.seed", "2"),
        ("--data.predict_split", "private_train"),
        ("--protect.out", cell.store(PLACE, "private_train")),
    }
    own = {"adaptive_black_box": {"trainer.max_epochs": 7}, "task": {"model.init_args.lr": 0.5}}
    place = replace(PLACE, fit_options=own)
    run, attack = cell.attacked(place, "adaptive_black_box")
    assert run == "adaptive_black_box-crafter-steps3-beta0.5-adapted-seed2"
    assert options(attack) >= {
        ("--model.init_args.defense_ckpt", PLACE.checkpoint(cell.run)),
        ("--model.init_args.protect.beta", "0.5"),
        ("--model.init_args.protect.critic", "adapted"),
        ("--trainer.max_epochs", "7"),
    }
    run, cloud = cell.cloud(PLACE)
    assert run == f"cloud-{cell.name}"
    assert ("--model.init_args.test_store", cell.store(PLACE)) in options(cloud)
    assert ("--model.init_args.lr", "0.5") in options(place.command("fit", "task", None, {}))
    assert "--model.init_args.lr" not in place.command("predict", "task", None, {})
    asked = ["fit", "--config", str(CONF / "task.yaml"), "--experiment", "synthetic"]
    assert place.upstream(asked) == [*asked, "--ckpt_path", "last", "--model.init_args.lr", "0.5"]
    with pytest.raises(UserError, match=r"no config .*unheard.yaml"):
        PLACE.command("fit", "unheard", None, {})


def options(args):
    return set(pairwise(args))


@pytest.mark.parametrize("fast", [True, False])
def test_crafting_in_bfloat16_where_the_processor_has_it(fast, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    given = ["--configs", str(CONF), "--audit", str(CONF / "benchmark_audit.yaml")]
    line = "--defenses=[{stage: crafter, protect: {precision: bf16, beta: 1}}]"
    budget = ["--budget", "tiny", "--oracles", "[oracle_plain]", "--attackers", "[adaptive_black_box]"]
    more = ["--device", "cpu", "--runs_dir", str(tmp_path), "--plan", "true"]
    assert main(["benchmark", *given, line, *budget, *more]) == 0
    printed = capsys.readouterr().out
    assert ("--protect.precision bf16" in printed) is fast
    assert ("--protect.precision float32" in printed) is not fast
    assert ("note: crafting runs in float32" in printed) is not fast


# The jobs


def job(name, *needs, code=0, outputs=()):
    return Job(name, [["--version"] if code == 0 else ["nonsense"]], list(map(str, outputs)), list(needs))


def endless(folder):
    """A training that goes on until somebody ends it."""
    args = ["fit", "--config", str(CONF / "task.yaml"), "--runs_dir", str(folder / "runs")]
    return Job("endless", [[*args, "--trainer.max_epochs", "1000000"]], [])


def go(folder, *made, workers=2):
    jobs = Jobs(list(made), folder, workers)
    jobs.run()
    return jobs


def test_a_job_that_fails_takes_those_that_need_it_and_no_others(tmp_path, capsys):
    jobs = go(
        tmp_path, job("a", code=2), job("b"), job("c", "a", "b"), job("d", "c"), job("e", "b"), job("f")
    )
    assert jobs.state == {"a": FAILED, "b": DONE, "c": SKIPPED, "d": SKIPPED, "e": DONE, "f": DONE}
    said = capsys.readouterr().out
    assert "unknown verb 'nonsense'" in said and str(jobs.log("a")) in said
    assert "crafter_pl" in jobs.log("b").read_text() and not jobs.log("c").exists()


def test_what_is_done_is_not_done_again_unless_something_has_changed(tmp_path):
    a, b = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    a.write_text("one")
    b.write_text("one")
    made = [job("first", outputs=[a]), job("second", "first", outputs=[b])]
    assert go(tmp_path, *made).ran == 2
    again = go(tmp_path, *made)
    assert (
        again.ran == 0 and set(again.state.values()) == {DONE} and set(again.seconds) == {"first", "second"}
    )
    a.write_text("another")  # made again by hand: what stands on it is stale
    assert go(tmp_path, *made).ran == 2
    b.unlink()
    assert go(tmp_path, *made).state["second"] == FAILED  # it did not make what it should
    b.write_text("one")  # the very file is back
    assert go(tmp_path, *made).ran == 0
    made[1] = replace(made[1], commands=[["--version"], ["--version"]])
    assert go(tmp_path, *made).ran == 1


def test_jobs_wait_for_room_and_the_first_comes_first(tmp_path, capsys):
    seen, done = [], threading.Event()

    def watch():
        while not done.wait(0.01):
            seen.append(len(multiprocessing.active_children()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    go(tmp_path / "two", *map(job, "abcde"))
    done.set()
    watcher.join()
    assert max(seen) == 2
    capsys.readouterr()
    go(tmp_path / "one", job("a"), job("b", "a"), job("c"), workers=1)
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["a:", "b:", "c:"]


def started(folder, process=None):
    """Waits until the job has begun."""
    log = folder / "logs" / "endless.log"
    for _ in range(1200):
        if log.is_file() and log.stat().st_size:
            return
        assert process is None or process.poll() is None
        time.sleep(0.1)
    raise AssertionError("the job has not begun")


def test_an_interruption_ends_the_processes(tmp_path):
    def interrupt():
        started(tmp_path)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, endless(tmp_path))
    assert not multiprocessing.active_children()
    assert "terminated" in (tmp_path / "logs" / "endless.log").read_text()


def test_a_benchmark_that_is_killed_leaves_nothing_running(tmp_path):
    code = "import sys, test_benchmark as t; from pathlib import Path; "
    code += "folder = Path(sys.argv[1]); t.go(folder, t.endless(folder))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CONF.parent), *sys.path])}
    killed = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=env, start_new_session=True)
    started(tmp_path, killed)
    killed.kill()
    killed.wait()
    for _ in range(200):
        if not alive(killed.pid):
            return
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    raise AssertionError("the job goes on")


def alive(group):
    """Whether a process of a group runs, which may wait to be reaped."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of = file.read_text().rpartition(") ")[2].split()[:3]
            if int(of) == group and state != "Z":
                return True
    return False


# The results


def test_a_figure_over_seeds():
    found = over_seeds([Estimate(0.2, 0.1, 0.3), Estimate(0.4, 0.2, 0.6)])
    assert found.value == pytest.approx(0.3)
    assert (found.low, found.high, found.seeds) == (0.1, 0.6, [0.2, 0.4])


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


def test_the_plan_runs_nothing(tiny, tmp_path, capsys):
    assert main(command(tmp_path / "runs", "--plan", "true", "--seeds", "[0,1]")) == 0
    said = capsys.readouterr().out
    for part in ("fit-task:", "fit-noise-scale0.5-seed1:", "cell-crafter-beta1:", "audit-seed1:", "--clouds"):
        assert part in said, part
    assert said.index("fit-task:") < said.index("fit-crafter:") < said.index("cell-crafter-beta1:")
    assert not (tmp_path / "runs").exists()


def test_data_of_its_own_is_that_of_every_command(tmp_path, capsys):
    data = tmp_path / "faces.yaml"
    data.write_text((CONF / "synthetic.yaml").read_text())
    assert main(command(tmp_path / "runs", "--plan", "true", "--data", str(data))) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " --config " in line]
    assert {line.split(" --config ")[0].split()[-1] for line in lines} == {"fit", "predict", "audit"}
    assert all(f"--data {data} " in line for line in lines)
    assert any("prior.yaml" in line for line in lines), "a stage that another one needs"


def test_options_of_a_fit_reach_it_wherever_it_is_trained(tmp_path, capsys):
    own = "{amortizer: {trainer.max_epochs: 3}, noise: {trainer.max_epochs: 4}}"
    assert main(command(tmp_path / "runs", "--plan", "true", "--fit_options", own)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " --config " in line]
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
    assert main(command(runs_dir)) == 0
    said = capsys.readouterr().out.split("| defence")[0]
    assert "cell-noise-scale2: " in said and "cell-noise-scale0.5" not in said and "fit-" not in said
    assert "audit-seed0: " in said
    assert (done / "table.csv").read_bytes() == before


def test_a_second_seed_shows_the_spread(done, runs_dir, capsys):
    only = ["--defenses", "[{stage: noise, fit: {scale: 2.0}}]", *ALONE]
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
    spoilt = "[{stage: noise, fit: {scale: [0.5, -1.0]}}]"
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
    assert "synthetic/task was trained for " in said and "asks for 9: give another --experiment" in said
    assert (runs_dir / "synthetic" / "task" / "summary.json").read_bytes() == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--audit", "nowhere.yaml"], "no config nowhere.yaml of the audit"),
        (["--data", "nowhere.yaml"], "no config nowhere.yaml of the data"),
        (["--defenses", "[{stage: unheard}]"], "unheard.yaml"),
        (["--fit_options", "{unheard: {trainer.max_epochs: 1}}"], "unheard.yaml"),
        (["--workers", "0"], "--workers is 0"),
        (["--seeds", "[]"], "needs defences and seeds"),
        (["--oracles", "[]"], "a benchmark needs an oracle"),
        (["--budget", "benchmrk"], "no attacks for --budget benchmrk: choose from "),
        (["--attackers", "[]"], "nobody trains adaptive_black_box against the defences"),
        (["--defenses", "[{stage: noise, fit: {scale: []}}]"], "the benchmark's grid is empty"),
        (["--defenses", "[{stage: task}]"], "the stage task of the benchmark is not a defence"),
        (
            ["--defenses", "[{stage: noise, fit: {scale: 2}}, {stage: noise, fit: {scael: 2}}]"],
            "scael",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(more, said, tmp_path, capsys):
    assert main([*command(tmp_path / "runs"), *more]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "runs").exists()
