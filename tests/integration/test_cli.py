import json
import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
import yaml
from experiment import CONF
from tiny_runs import assert_same_run, fit, metrics, subprocess_fit, weights

from crafter_pl.cli import main
from crafter_pl.cli.verbs import VERBS


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_help_without_torch(args):
    code = f"import sys; from crafter_pl.cli import main; main({args}); assert 'torch' not in sys.modules"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


def test_without_a_verb_all_are_listed(capsys):
    assert main([]) == 2
    said = capsys.readouterr()
    assert not said.out and all(f"\n  {verb} " in said.err for verb in VERBS)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("fit", ["--experiment", "--data.help", "--trainer.max_epochs", "--ckpt_path", "train one stage"]),
        ("validate", ["--runs_dir", "--ckpt_path"]),
        ("test", ["--name", "--ckpt_path"]),
        ("predict", ["--protect.transport", "--protect.out", "--data.help"]),
        ("export", ["--checkpoint", "--format", "ALONE DOES NOT PROTECT"]),
        ("audit", ["--config"]),
    ],
)
def test_help_of_verbs(verb, words, capsys):
    assert main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words)
    assert ("--protect" in out) == (verb in ("predict", "export")) and "--protect.beta" not in out


@pytest.mark.parametrize(
    ("name", "own"), [("crafter", "critic"), ("noise", "seed"), ("crafter_generator", "refine_steps")]
)
def test_help_of_predict_lists_the_options_of_the_defence(name, own, capsys):
    assert main(["predict", "--config", str(CONF / f"{name}.yaml"), "--help"]) == 0
    out = capsys.readouterr().out
    others = {"critic", "refine_steps"} - {own}
    assert f"--protect.{own}" in out and not any(f"--protect.{other}" in out for other in others)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train"], "unknown verb 'train'"),
        (["fit", "--nonsense", "3"], "--nonsense"),
        (["fit", "--config", "configs/absent.yaml"], "configs/absent.yaml"),
        (["fit", "--config", "configs/tiny.yaml", "--data.batch_size", "many"], "batch_size"),
        (["fit", "--config", "configs/tiny.yaml", "--data.batch_size", "0"], "--data.batch_size"),
        (["fit", "--config", "configs/tiny.yaml", "--trainer.accelerator", "abacus"], "abacus"),
        (["fit", "--config", "configs/tiny.yaml", "--ckpt_path", "absent.ckpt"], "absent.ckpt"),
        (["fit", "--config", "configs/tiny.yaml", "--runs_dir", "configs/tiny.yaml/x"], "Not a directory"),
        (["test", "--config", "configs/tiny.yaml"], "fit --config configs/tiny.yaml"),
        (["predict", "--config", "configs/top.yaml"], "fit --config configs/top.yaml"),
        (["fit", "--data.source", "celeba"], "model"),
    ],
)
def test_mistakes_are_one_message(args, words, conf, capsys):
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and words in captured.err
    assert "Traceback" not in captured.err


def test_fit_writes_its_run(conf, capsys):
    assert fit("tiny", "--trainer.max_epochs", "2") == 0
    out = capsys.readouterr().out
    assert "epoch 2/2" in out and "tiny is finished" in out and "/loss" not in out
    summary = json.load(open("runs/synthetic/tiny/summary.json"))
    assert summary["epochs"] == 2 and summary["metrics"]["val/loss"] > 0 and summary["peak_memory_mb"] > 10
    config = yaml.safe_load(open("runs/synthetic/tiny/fit.yaml"))
    assert config["data"]["init_args"]["people"] == 14 and config["trainer"]["max_epochs"] == 2
    assert "verbose" not in config  # predict and validate take it as it is
    files = {path.name.split(".")[0] for path in (conf.parent / "runs/synthetic/tiny").iterdir()}
    assert files == {"checkpoints", "events", "fit", "metrics", "split", "summary"}
    before = open("runs/synthetic/tiny/fit.yaml").read()

    assert fit("tiny") == 2
    assert "--ckpt_path last" in capsys.readouterr().err
    assert fit("tiny", "--trainer.max_epochs", "2", "--ckpt_path", "last") == 0
    said = capsys.readouterr().out
    assert "is finished" in said and f"loss {summary['metrics']['val/loss']:.4g}" in said
    assert fit("tiny", "--trainer.max_epochs", "2", "--ckpt_path", "last", "-v") == 0
    assert f"val/loss {summary['metrics']['val/loss']:.4g}" in capsys.readouterr().out
    # The written config trains the same run again.
    again = ["--experiment", "again", "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor"]
    assert main(["fit", "--config", "runs/synthetic/tiny/fit.yaml", *again]) == 0
    for key, value in weights("synthetic/tiny").items():
        assert torch.equal(value, weights("again/tiny")[key])
    # Training for longer: the same run goes on, and its first config stays.
    assert fit("tiny", "--trainer.max_epochs", "4", "--ckpt_path", "last") == 0
    assert fit("tiny", "--experiment", "straight") == 0
    assert_same_run("synthetic/tiny", "straight/tiny")
    assert open("runs/synthetic/tiny/fit.yaml").read() == before
    assert (conf.parent / "runs/synthetic/tiny/fit-2.yaml").is_file()


def test_other_settings_are_refused_on_resume(conf, capsys):
    assert fit("tiny", "--trainer.max_epochs", "1") == 0
    more = ["--model.init_args.lr", "0.5", "--data.people", "15", "--data.cache_dir", "elsewhere"]
    assert fit("tiny", "--ckpt_path", "last", *more) == 2
    err = capsys.readouterr().err
    assert "model.lr" in err and "data.people: 14" in err
    assert "cache_dir" not in err


def test_interrupted_in_process_and_resumed(conf, monkeypatch, capsys):
    assert fit("tiny", "--experiment", "straight") == 0
    monkeypatch.setenv("TINY_SIGNAL", "SIGINT")
    assert fit("tiny") == 130
    assert "fit --config configs/tiny.yaml --ckpt_path last" in capsys.readouterr().err
    assert not os.path.exists("runs/synthetic/tiny/summary.json")
    monkeypatch.delenv("TINY_SIGNAL")
    assert fit("tiny", "--ckpt_path", "last") == 0
    assert_same_run("synthetic/tiny", "straight/tiny")


def test_killed_and_resumed_equals_straight(conf):
    killed = subprocess_fit(TINY_SIGNAL="SIGKILL")
    assert killed.returncode == -9, killed.stderr
    assert len(metrics("synthetic/tiny")) == 2
    # A row that a kill left behind after its checkpoint's is dropped.
    with open("runs/synthetic/tiny/metrics.csv", "a") as file:
        file.write("2,0,9,9\n")
    assert fit("tiny", "--ckpt_path", "last") == 0
    assert fit("tiny", "--experiment", "straight") == 0
    assert_same_run("synthetic/tiny", "straight/tiny")


def test_the_files_of_an_attempt_without_a_checkpoint_are_replaced(conf):
    killed = subprocess_fit("--data.seed", "5", "--model.init_args.kill_at", "0", TINY_SIGNAL="SIGKILL")
    assert killed.returncode == -9, killed.stderr
    assert yaml.safe_load(open("runs/synthetic/tiny/fit.yaml"))["data"]["init_args"]["seed"] == 5
    more = ["--trainer.max_epochs", "1"]
    assert fit("tiny", *more) == 0 and fit("tiny", "--experiment", "straight", *more) == 0
    folder = conf.parent / "runs/synthetic/tiny"
    assert yaml.safe_load((folder / "fit.yaml").read_text())["data"]["init_args"]["seed"] == 0
    assert not (folder / "fit-2.yaml").exists()
    assert (folder / "split.csv").read_text() == open("runs/straight/tiny/split.csv").read()


def test_killed_before_the_summary(conf, capsys):
    assert fit("tiny") == 0
    path = conf.parent / "runs/synthetic/tiny/summary.json"
    before = json.loads(path.read_text())
    path.unlink()
    with open(path.with_name("metrics.csv"), "a") as file:  # as of a run that had been trained for longer
        file.write("4,0,9,9\n")
    capsys.readouterr()
    assert fit("tiny", "--ckpt_path", "last") == 0
    assert ": loss " in capsys.readouterr().out
    after = json.loads(path.read_text())
    assert after["metrics"] == pytest.approx(before["metrics"]) and after["epochs"] == before["epochs"] == 4


def test_sigterm_names_the_resume_command(conf):
    ended = subprocess_fit(TINY_SIGNAL="SIGTERM")
    assert ended.returncode == 143, ended.stderr
    assert (
        "terminated" in ended.stderr
        and "--ckpt_path last" in ended.stderr
        and "Traceback" not in ended.stderr
    )


class Ending(ModuleType):
    """A module that is ended while it is imported."""

    def __getattr__(self, name):
        raise KeyboardInterrupt


def test_what_is_ended_while_it_starts_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "crafter_pl.cli.options", Ending("crafter_pl.cli.options"))
    monkeypatch.setitem(sys.modules, "crafter_pl.commands", None)  # half imported: it cannot be used
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_checkpoint_of_another_class(conf, capsys):
    assert fit("other", "--trainer.max_epochs", "1") == 0
    assert fit("top", "--ckpt_path", "runs/synthetic/other/checkpoints/last.ckpt") == 2
    assert "tiny_stage.Other" in capsys.readouterr().err
    assert (
        main(
            [
                "test",
                "--config",
                "configs/tiny.yaml",
                "--ckpt_path",
                "runs/synthetic/other/checkpoints/last.ckpt",
            ]
        )
        == 2
    )
    assert "expected one of Tiny" in capsys.readouterr().err


def test_evaluation_uses_the_checkpoint_alone(conf, capsys):
    assert fit("tiny", "--trainer.max_epochs", "1", "--model.init_args.lr", "0.02") == 0
    evaluate = ["--config", "configs/tiny.yaml"]
    assert main(["test", *evaluate]) == 0
    captured = capsys.readouterr()
    assert "model.lr: 0.02" in captured.out
    assert main(["validate", *evaluate, "--model.init_args.lr", "0.5"]) == 2
    assert main(["predict", *evaluate, "--data.seed", "1"]) == 2
    assert "data.seed" in capsys.readouterr().err
    assert main(["predict", *evaluate]) == 2
    assert "Tiny does not predict" in capsys.readouterr().err


def test_a_config_may_build_on_another_and_data_may_be_laid_over_both(conf, capsys):
    (conf / "longer.yaml").write_text("base: tiny.yaml\nname: longer\nmodel: {init_args: {lr: 0.02}}\n")
    (conf / "mine.yaml").write_text("experiment: mine\ndata: {people: 12}\n")
    assert main(["fit", "--config", "configs/longer.yaml", "--config", "configs/mine.yaml"]) == 0
    run = conf.parent / "runs" / "mine" / "longer"
    config = yaml.safe_load((run / "fit.yaml").read_text())
    assert config["base"] is None and config["model"]["init_args"]["lr"] == 0.02
    assert config["data"]["init_args"]["people"] == 12 and config["data"]["init_args"]["image_size"] == 8
    assert main(["fit", "--config", "configs/top.yaml", "--config", "configs/mine.yaml"]) == 0
    assert "--config configs/mine.yaml" in capsys.readouterr().out  # of the upstream stages' commands
    for base, words in (("nowhere.yaml", "is missing"), ("looped.yaml", "builds on it")):
        (conf / "looped.yaml").write_text(f"base: {base}\n")
        assert main(["fit", "--config", "configs/looped.yaml"]) == 2
        assert words in capsys.readouterr().err


def test_a_moved_runs_folder_keeps_its_best(conf):
    assert fit("tiny", "--trainer.max_epochs", "2") == 0
    os.rename("runs", "moved")
    assert fit("tiny", "--ckpt_path", "last", "--runs_dir", "moved") == 0
    assert fit("tiny") == 0
    for name in ("best", "last"):
        a, b = (
            torch.load(f"{runs}/synthetic/tiny/checkpoints/{name}.ckpt", weights_only=True)
            for runs in ("moved", "runs")
        )
        assert a["epoch"] == b["epoch"]


def test_best_and_last(conf, capsys):
    assert fit("tiny", "--trainer.max_epochs", "3") == 0
    losses = [float(row["val/loss"]) for row in metrics("synthetic/tiny")]
    assert losses.index(min(losses)) != 2  # else this test shows nothing
    best, last = (
        torch.load(f"runs/synthetic/tiny/checkpoints/{name}.ckpt", weights_only=True)
        for name in ("best", "last")
    )
    assert best["epoch"] == losses.index(min(losses)) and last["epoch"] == 2
    assert last["optimizer_states"] and "optimizer_states" not in best
    capsys.readouterr()
    assert fit("tiny", "--ckpt_path", "best", "--trainer.max_epochs", "4") == 2
    assert "best.ckpt is for use" in (said := capsys.readouterr().err) and "--ckpt_path last" in said
    assert fit("tiny", "--experiment", "blind", "--trainer.limit_val_batches", "0") == 2
    assert "limit_val_batches" in capsys.readouterr().err


def test_two_fits_in_one_folder(conf, capsys):
    import fcntl

    os.makedirs("runs/synthetic/tiny")
    with open("runs/synthetic/tiny/.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert fit("tiny") == 2
    assert "another process" in capsys.readouterr().err
    assert fit("tiny", "--trainer.max_epochs", "1") == 0


def test_fast_dev_run_leaves_nothing_behind(conf):
    assert fit("tiny", "--trainer.fast_dev_run", "true") == 0
    assert not os.path.exists("runs/synthetic/tiny")


def test_truncated_checkpoint(conf, capsys):
    assert fit("tiny", "--trainer.max_epochs", "1") == 0
    path = conf.parent / "runs/synthetic/tiny/checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:1000])
    assert fit("tiny", "--ckpt_path", "last") == 2
    assert "last.ckpt" in capsys.readouterr().err
