"""docs/cluster.md and scripts/slurm: commands that parse, scripts that run, by stand-ins for SLURM."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import bench_ddp
import pytest
from experiment import DATA, PATHS, in_subprocess, shards

from crafter_pl.attacks import BlackBox, FeatureToIdentity
from crafter_pl.cli import main
from crafter_pl.cli.functions import parser
from crafter_pl.cli.stage import StageCLI
from crafter_pl.plugins import import_stages
from crafter_pl.stages import load_stage
from crafter_pl.stages.checkpoints import read_checkpoint

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "slurm" / "run.sbatch"
PAGE = (ROOT / "docs" / "cluster.md").read_text()
SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NAME": "test",
    "SLURM_NODELIST": "127.0.0.1",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "1",
    "SLURM_NTASKS": "2",
    "SLURM_CPUS_PER_TASK": "1",
}
RECORD = 'printf "%s\\n" "$@" > "$RECORD"'
# Every task of every node on this machine.
TASKS = """while [[ $1 == --* ]]; do shift; done
pids=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
  export SLURM_PROCID=$task SLURM_LOCALID=$((task % SLURM_NTASKS_PER_NODE))
  SLURM_NODEID=$((task / SLURM_NTASKS_PER_NODE)) "$@" &
  pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code"""


@pytest.fixture
def slurm(tmp_path):
    """Runs a script as SLURM would, with the `srun` given, and `scontrol` recorded."""

    def start(srun, *args, **more):
        folder = tmp_path / "bin"
        folder.mkdir()
        python = f'exec {shlex.quote(sys.executable)} "$@"'
        for name, text in {"srun": srun, "scontrol": 'echo "$*" >> "$SCONTROL"', "python": python}.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (folder / name).chmod(0o755)
        env = {**os.environ, **SLURM, **more, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS)}
        env |= {"PATH": f"{folder}{os.pathsep}{env['PATH']}"}
        env |= {"RECORD": str(tmp_path / "record"), "SCONTROL": str(tmp_path / "scontrol")}
        return subprocess.Popen(
            ["bash", str(SCRIPT), *args],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


class Parsed:
    """The options of one of our commands; its config is found from the root of the repository."""

    def __init__(self, words):
        assert words[:3] == ["python", "-m", "crafter_pl"]
        self.verb, *rest = words[3:]
        rest = [str(ROOT / word) if word.startswith("configs/") else word for word in rest]
        if self.verb == "audit":
            self.options = parser("audit").parse_args(rest)
            self.sizes = (self.options.devices, self.options.num_nodes, self.options.device)
        else:
            import_stages()
            self.cli = StageCLI([self.verb, *rest])
            trainer = self.cli.options.trainer
            self.sizes = (int(trainer.devices), trainer.num_nodes, trainer.accelerator)


def commands():
    """Every command line of the page, options of our own part, placeholders filled."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("one=")]


def test_the_script_asks_for_what_it_needs():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    settings = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SCRIPT.read_text(), flags=re.MULTILINE))
    assert "requeue" in settings and settings["signal"] == "B:USR1@120"
    assert settings["ntasks-per-node"] == settings["gpus-per-node"] and int(settings["nodes"]) > 1
    assert "gpus-per-task" not in settings


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        (["fit", "configs/attacks/adaptive_white_box.yaml", "--trainer.max_epochs", "40"], (1, 2, "gpu")),
        (["predict", "configs/crafter.yaml", "--protect.beta", "0.5"], (4, 2, "gpu")),
        (["audit", "configs/audit.yaml", "--budget", "exhaustive"], (4, 2, "cuda")),
    ],
)
def test_what_is_started(slurm, tmp_path, args, sizes):
    job = slurm(RECORD, *args, SLURM_NTASKS_PER_NODE=str(sizes[0]))
    assert job.wait(timeout=600) == 0
    launched = (tmp_path / "record").read_text().splitlines()
    assert launched[0] == "--kill-on-bad-exit=1"
    made = Parsed(launched[1:])
    assert made.verb == args[0] and made.sizes == sizes
    if made.verb == "fit":
        assert made.cli.name == "adaptive_white_box" and made.cli.multi_process
        assert made.cli.options.ckpt_path == "last" and made.cli.options.trainer.max_epochs == 40
    elif made.verb == "predict":
        assert made.cli.name == "crafter" and made.cli.options.protect.beta == 0.5
    else:
        assert made.options.budget == "exhaustive"


def test_a_job_without_a_command_is_refused(slurm, tmp_path):
    job = slurm(RECORD, "fit")
    assert job.wait(timeout=600) == 2 and not (tmp_path / "record").exists()


def test_a_job_ends_with_the_code_of_its_tasks(slurm, tmp_path):
    job = slurm("exit 2", "fit", "configs/crafter.yaml")
    assert job.wait(timeout=600) == 2
    assert not (tmp_path / "scontrol").exists()  # a mistake is not repeated


def test_the_signal_puts_the_job_back_into_the_queue(slurm, tmp_path):
    job = slurm('touch "$RECORD"; sleep 600', "fit", "configs/crafter.yaml")
    until = time.monotonic() + 600
    while not (tmp_path / "record").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(job.pid, signal.SIGUSR1)  # the script alone
    while not (tmp_path / "scontrol").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert (tmp_path / "scontrol").read_text() == "requeue 4242\n"
    assert job.poll() is None  # it waits for SLURM to end it: a refused requeue loses nothing
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def test_two_nodes_craft_the_store_of_one(slurm, tiny, tiny_store, tmp_path):
    out = tmp_path / "store"
    verb, _, *args = tiny.command("predict", "crafter")
    args += ["--trainer.accelerator", "cpu", "--protect.out", str(out)]
    job = slurm(TASKS, verb, *args)
    said, _ = job.communicate(timeout=600)
    assert job.returncode == 0, said
    assert shards(out) == shards(tiny_store)


@pytest.mark.parametrize(
    ("name", "cls", "part"),
    [("black_box", BlackBox, "public_train"), ("feature_to_id", FeatureToIdentity, "oracle")],
)
def test_two_processes_share_a_pass_over_the_pictures(name, cls, part, tiny):
    run = f"{name}-two"
    more = ["--name", run, "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    more += ["--trainer.limit_train_batches", "1.0"]
    made = in_subprocess(tiny.command("fit", name, *more), twin=True)
    assert made.returncode == 0, made.stderr
    stage = load_stage(tiny.ckpt(run), cls)
    assert all(bool(value.isfinite().all()) for value in stage.state_dict().values())
    each = len(tiny.data().dataset(part)) // 2
    assert read_checkpoint(tiny.ckpt(run))["global_step"] == each // DATA["batch_size"] > 2


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_page(line, slurm, tmp_path, monkeypatch):
    words = shlex.split(line, comments=True)
    if words[0] == "sbatch":
        script = next(word for word in words if word.endswith(".sbatch"))
        assert ROOT / script == SCRIPT
        job = slurm(RECORD, *words[words.index(script) + 1 :])
        assert job.wait(timeout=600) == 0
        words = (tmp_path / "record").read_text().splitlines()[1:]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        launcher = get_args_parser().parse_args(words[1:])
        assert launcher.module and launcher.training_script == "crafter_pl"
        sizes = (int(launcher.nproc_per_node), int(launcher.nnodes.split(":")[0]))
        made = Parsed(["python", "-m", "crafter_pl", *launcher.training_script_args])
        assert made.sizes[:2] == sizes
    else:
        made = Parsed(words)
    assert made.verb in ("fit", "predict", "audit")


def test_the_store_that_is_crafted_is_the_one_that_is_attacked():
    lines = [shlex.split(line, comments=True) for line in commands() if line.startswith("sbatch")]
    adaptive = [words for words in lines if any("adaptive_" in word for word in words)]
    (crafted,) = [words[-1] for words in lines if "predict" in words]
    (audited,) = [words for words in lines if "audit" in words]
    assert len(adaptive) == 2 and {words[-1] for words in adaptive} == {crafted}
    assert audited[-1] == f"[runs/synthetic/crafter/features/private_test-beta{crafted}]"
    assert audited[audited.index("--budget") + 1] == "adaptive"


def test_a_longer_wait_can_be_set(tmp_path, monkeypatch, capsys):
    (words,) = re.findall(r"`(--trainer\.strategy DDPStrategy [^`]*)`", PAGE)
    monkeypatch.chdir(tmp_path)
    command = [
        "predict",
        "--config",
        str(ROOT / "configs" / "crafter.yaml"),
        *words.split(),
        "--print_config",
    ]
    assert main(command) == 0
    assert "timeout: '2:00:00'" in capsys.readouterr().out


def test_bench_ddp_trains_from_a_store(tmp_path):
    options = Namespace(side=16, width=4, steps=2)
    bench_ddp.write_store(tmp_path / "store", bench_ddp.shape_of(16))
    seconds = SimpleNamespace(value=0.0)
    bench_ddp.work(0, 1, 4, options, tmp_path / "store", tmp_path / "rendezvous", seconds)
    assert 0 < seconds.value < 60
