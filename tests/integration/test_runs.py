"""What a run keeps when it is cut short, goes on for longer, fails or is moved; options that cannot be."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import fit, metrics, weights

from crafter_pl import files
from crafter_pl.cli import main
from crafter_pl.cli.options import expanded
from crafter_pl.cli.stage import StageCLI
from crafter_pl.commands import without
from crafter_pl.device import check_processes
from crafter_pl.errors import UserError
from crafter_pl.processes import LAUNCHER, rank
from crafter_pl.stages.base import load_stage, sha256
from crafter_pl.stages.schedules import Cosine, OneCycle

RUN = Path("runs/synthetic/tiny")


def summary(run=RUN):
    return json.loads((run / "summary.json").read_text())


# A finished run


def test_a_finished_run_keeps_its_best_until_it_is_finished_again(conf, monkeypatch):
    assert fit("tiny", "--trainer.max_epochs", "1") == 0
    before = sha256(RUN / "checkpoints/best.ckpt"), summary()
    monkeypatch.setenv("TINY_SIGNAL", "SIGINT")  # in the third epoch
    assert fit("tiny", "--ckpt_path", "last") == 130
    assert (sha256(RUN / "checkpoints/best.ckpt"), summary()) == before
    monkeypatch.delenv("TINY_SIGNAL")
    assert fit("tiny", "--ckpt_path", "last") == 0
    assert summary()["epochs"] == 4 and summary()["best_sha256"] == sha256(RUN / "checkpoints/best.ckpt")
    assert not (RUN / "checkpoints/next.ckpt").exists()


@pytest.mark.parametrize("plan", [OneCycle, Cosine])
def test_a_plan_is_laid_anew_for_more_epochs(plan):
    def made(steps):
        optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        more = {"max_lr": 0.1, "total_steps": steps} if plan is OneCycle else {"epochs": steps}
        return optimizer, plan(optimizer, **more)

    def rates(optimizer, schedule, steps):
        seen = []
        for _ in range(steps):
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
            optimizer.step()
            schedule.step()
        return seen

    short, longer, straight = made(8), made(16), made(16)
    rates(*short, 8)  # all that it was planned for
    longer[0].load_state_dict(short[0].state_dict())
    longer[1].load_state_dict(short[1].state_dict())
    assert rates(*longer, 7) == rates(*straight, 15)[8:]


# A run that was cut short


@pytest.mark.parametrize("option", ["--trainer.max_steps=8", "--trainer.callbacks+=tiny_stage.Stop"])
def test_what_ends_a_run_early_does_not_finish_it(option, conf, capsys):
    assert fit("tiny", "--experiment", "straight") == 0
    capsys.readouterr()
    assert fit("tiny", option) == 0
    said = capsys.readouterr().out
    assert "not finished" in said and "--ckpt_path last" in said and "max_steps" not in said
    assert not (RUN / "summary.json").exists()
    kept = metrics("synthetic/tiny")
    assert kept == metrics("straight/tiny")[: len(kept)] and 0 < len(kept) < 4  # whole epochs alone
    assert fit("tiny", "--ckpt_path", "last") == 0
    straight = weights("straight/tiny")
    assert all(torch.equal(value, straight[key]) for key, value in weights("synthetic/tiny").items())


def test_a_run_without_one_whole_epoch_is_a_mistake(conf, capsys):
    assert fit("tiny", "--trainer.max_steps", "1") == 2
    assert "first epoch" in capsys.readouterr().err and not list(RUN.glob("checkpoints/*"))


def test_older_marks_of_runs_that_a_limit_ended_do_not_count(conf, capsys):
    assert fit("tiny", "--trainer.max_epochs", "2") == 0
    files.write_file(RUN / "summary.json", json.dumps({**summary(), "max_epochs": 4}))
    assert fit("other", "--trainer.max_epochs", "1") == 0
    assert "needed by other" in capsys.readouterr().out and summary()["epochs"] == 4


# Numbers that are none


def test_a_loss_that_is_no_number_ends_the_run(conf, capsys):
    assert fit("tiny", "--model.init_args.lr", "1e30", "--trainer.max_epochs", "3") == 2
    assert "no finite number in epoch" in capsys.readouterr().err
    assert not (RUN / "summary.json").exists()
    for file in RUN.glob("checkpoints/*"):  # of the epochs before
        assert all(value.isfinite().all() for value in torch.load(file)["state_dict"].values())


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--trainer.max_epochs", "0"], "max_epochs"),
        (["--trainer.max_epochs=-1"], "max_epochs"),
        (["--trainer.limit_train_batches", "0"], "limit_train_batches"),
        (["--trainer.accumulate_grad_batches", "0"], "accumulate_grad_batches"),
        (["--trainer.check_val_every_n_epoch", "9"], "check_val_every_n_epoch"),
        (["--seed_everything=-1"], "seed_everything"),
        (["--data.batch_size", "0"], "batch_size"),
        (["--trainer.val_check_interval", "1000"], "val_check_interval"),  # what Lightning raises
        (["--trainer.strategy", "nope"], "strategy"),
        (["--model.init_args.lr=-1"], "learning rate"),  # what torch raises
    ],
)
def test_impossible_options_are_one_message(options, words, conf, capsys):
    assert fit("tiny", *options) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert words in message


def test_an_error_of_our_own_stays_an_error(conf, monkeypatch):
    monkeypatch.setattr("crafter_pl.cli.loggers.rows_before", None)
    with pytest.raises(TypeError):
        fit("tiny")


def test_slurm_counts_as_lightning_counts_it(conf, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    cli = StageCLI(["fit", "--config", "configs/tiny.yaml"])
    assert cli.multi_process
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # an interactive allocation
    assert not cli.multi_process


# Paths


def test_a_path_from_home_is_one_everywhere(conf, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fit("tiny", "--runs_dir=~/r", "--trainer.max_epochs", "1") == 0
    run = tmp_path / "home/r/synthetic/tiny"
    assert list(run.glob("events*")) and (run / "checkpoints/best.ckpt").is_file() and not Path("~").exists()
    home = f"{tmp_path}/home"
    assert expanded(["--x=~/a", "a~b", {"k": ["$HOME/b"]}]) == [
        f"--x={home}/a",
        "a~b",
        {"k": [f"{home}/b"]},
    ]


def test_upstream_checkpoints_are_found_from_anywhere_and_in_a_moved_experiment(conf, monkeypatch, tmp_path):
    from tiny_stage import Other

    assert fit("other", "--trainer.max_epochs", "1") == 0
    best = Path("runs/synthetic/other/checkpoints/best.ckpt").absolute()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    below = best.parents[2] / "tiny/checkpoints/best.ckpt"
    assert load_stage(best, Other).upstream_files["tiny"][0] == str(below)
    (tmp_path / "runs").rename(elsewhere / "kept")
    moved = elsewhere / "kept/synthetic/other/checkpoints/best.ckpt"
    load_stage(moved, Other)
    (elsewhere / "kept/synthetic/tiny/checkpoints/best.ckpt").unlink()
    with pytest.raises(UserError, match="looked for"):
        load_stage(moved, Other)


# What is written


def test_a_full_disk_leaves_nothing_half_written(conf, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    assert fit("tiny") == 2
    assert "No space left" in (said := capsys.readouterr().err) and "runs/synthetic/tiny" in said
    assert not list(Path("runs").rglob("*.tmp"))


def test_json_from_outside_has_limits(tmp_path):
    for text in ("[" * 200_000, '{"a": 1, "a": 2}', "[NaN]", "[1e999]", "\x00", '"\xff"'):
        (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match="mend it"):
            files.read_json(tmp_path / "x.json", "mend it")
    with pytest.raises(ValueError, match="JSON"):
        files.to_json({"a": float("nan")})


def test_a_resumed_run_shows_no_step_twice(conf, monkeypatch):
    monkeypatch.setenv("TINY_SIGNAL", "SIGINT")
    log = "--trainer.log_every_n_steps=1"
    assert fit("tiny", log) == 130
    monkeypatch.delenv("TINY_SIGNAL")
    assert fit("tiny", log, "--ckpt_path", "last") == 0
    events = EventAccumulator(str(RUN)).Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert sorted(set(steps)) == steps and len(steps) > 4


# What is printed


def test_no_character_and_no_reader_ends_a_program(conf):
    code = "from crafter_pl.cli import main; main([]); print('…'); main(['--help'])"
    latin = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", code], env=latin, capture_output=True, check=True)
    assert b"\\u2026" in done.stdout
    code = "import sys; from crafter_pl.cli import entry; "
    code += "entry.run = lambda args: print('x' * 10**6, flush=True); "
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", code + "sys.exit(entry.main(['protect']))"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 141 and b"Traceback" not in done.stderr and b"same command" in done.stderr


def test_options_are_taken_out_with_their_values():
    assert without(["fit", "--a", "1", "--b=2", "--c", "3"], "--a", "--b") == ["fit", "--c", "3"]
    assert main(["nothing"]) == 2


def test_a_machine_is_not_buried_in_processes():
    check_processes(8, "--devices")
    with pytest.raises(UserError, match="--devices asks for"):
        check_processes(max(8, os.cpu_count() or 1) + 1, "--devices")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainer: {max_epochs: 1}\ntrainer: {max_epochs: 3}\n", "line 3: trainer"),
        ("trainer: _trainer.yaml\ndata: {image_size: null}\n", "data.image_size is null"),
        ("trainer: []\n", "trainer"),
        ("trainer: {max_epochs: null}\n", "max_epochs is missing"),
        ("experiment: null\ntrainer: _trainer.yaml\n", "--experiment"),
        ("trainer: {max_epochs: 1\n", "no YAML"),
        ("# caf\udce9\n", "no text in UTF-8"),
    ],
)
def test_configs_that_say_other_than_they_look(text, words, conf, capsys):
    model = "" if "UTF-8" in words else "model: {class_path: tiny_stage.Tiny}\n"
    (conf / "odd.yaml").write_bytes((model + text).encode("utf-8", "surrogateescape"))
    assert fit("odd") == 2
    assert words in capsys.readouterr().err


def test_what_is_kept_of_a_run_is_not_overwritten_or_misread(conf, capsys):
    """A run without its last.ckpt; what was trained on a checkpoint that a longer training has replaced."""
    assert fit("other", "--trainer.max_epochs", "1") == 0
    assert fit("tiny", "--ckpt_path", "last") == 0 and summary()["epochs"] == 4
    assert fit("top", "--trainer.max_epochs", "1", "--ckpt_path", "last") == 0  # on both
    (RUN / "checkpoints/last.ckpt").unlink()
    before = sha256(RUN / "checkpoints/best.ckpt")
    assert fit("tiny", "--ckpt_path", "last") == 2
    assert "last.ckpt is missing" in capsys.readouterr().err
    assert sha256(RUN / "checkpoints/best.ckpt") == before
    for content in ('{"epochs": 1, "max_epochs": 1}', "null", '{"epochs": "1"}'):
        (RUN / "summary.json").write_text(content)
        assert fit("other", "--ckpt_path", "last") == 2
        assert "is no summary" in capsys.readouterr().err


def test_a_process_is_not_taken_for_a_helper(conf, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
    assert rank() == 0
    monkeypatch.setenv(LAUNCHER, "1")
    assert rank() == 1
