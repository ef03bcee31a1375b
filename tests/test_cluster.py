"""docs/cluster.md and scripts/slurm: commands that parse, scripts that run, by stand-ins for SLURM."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from experiment import shards

from crafter_pl.cli import main
from crafter_pl.runner import StageCLI, import_stages

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))
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

    def start(script, srun, *args, **more):
        folder = tmp_path / "bin"
        folder.mkdir()
        python = f'exec {shlex.quote(sys.executable)} "$@"'
        for name, text in {"srun": srun, "scontrol": 'echo "$*" >> "$SCONTROL"', "python": python}.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (folder / name).chmod(0o755)
        env = {**os.environ, **SLURM, **more, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        env |= {"PATH": f"{folder}{os.pathsep}{env['PATH']}"}
        env |= {"RECORD": str(tmp_path / "record"), "SCONTROL": str(tmp_path / "scontrol")}
        return subprocess.Popen(
            ["bash", str(ROOT / "scripts" / "slurm" / script), *args],
            env=env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def parse(args):
    """The options of one of our commands; its config is found from the root of the repository."""
    import_stages()
    args = [str(ROOT / arg) if arg.startswith("configs/") else arg for arg in args]
    return StageCLI(args)


def commands():
    """Every command line of the page, options of our own part, placeholders filled."""
    text = "\n".join(re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("one=")]


def test_the_scripts_are_two_and_bash_can_read_them():
    assert [path.name for path in SCRIPTS] == ["fit.sbatch", "predict.sbatch"]
    for path in SCRIPTS:
        subprocess.run(["bash", "-n", str(path)], check=True)
        settings = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", path.read_text(), flags=re.MULTILINE))
        assert "requeue" in settings and settings["signal"] == "B:USR1@120"
        assert settings["ntasks-per-node"] == settings["gpus-per-node"] and int(settings["nodes"]) > 1
        assert "gpus-per-task" not in settings


@pytest.mark.parametrize(
    "args", [[], ["configs/attacks/adaptive_white_box.yaml", "--trainer.max_epochs", "40"]]
)
def test_what_fit_starts(slurm, tmp_path, args):
    job = slurm("fit.sbatch", RECORD, *args)
    assert job.wait(timeout=60) == 0
    launched = (tmp_path / "record").read_text().splitlines()
    assert launched[:4] == ["--kill-on-bad-exit=1", "python", "-m", "crafter_pl"]
    cli = parse(launched[4:])
    assert cli.verb == "fit" and cli.options.ckpt_path == "last"
    assert cli.name == ("adaptive_white_box" if args else "adaptive_black_box")
    assert (int(cli.options.trainer.devices), cli.options.trainer.num_nodes) == (1, 2)
    assert cli.options.trainer.accelerator == "gpu" and cli.multi_process
    assert not args or cli.options.trainer.max_epochs == 40


def test_what_predict_starts(slurm, tmp_path):
    job = slurm(
        "predict.sbatch", RECORD, "configs/crafter.yaml", "--protect.beta", "0.5", SLURM_NTASKS_PER_NODE="4"
    )
    assert job.wait(timeout=60) == 0
    launched = (tmp_path / "record").read_text().splitlines()
    cli = parse(launched[4:])
    assert cli.verb == "predict" and cli.name == "crafter" and cli.options.protect.beta == 0.5
    assert (int(cli.options.trainer.devices), cli.options.trainer.num_nodes) == (4, 2)


def test_a_job_ends_with_the_code_of_its_tasks(slurm, tmp_path):
    job = slurm("fit.sbatch", "exit 2")
    assert job.wait(timeout=60) == 2
    assert not (tmp_path / "scontrol").exists()  # a mistake is not repeated


@pytest.mark.parametrize("script", [path.name for path in SCRIPTS])
def test_the_signal_puts_the_job_back_into_the_queue(slurm, tmp_path, script):
    job = slurm(script, 'touch "$RECORD"; sleep 5')
    until = time.monotonic() + 60
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
    args = tiny.command("predict", "crafter")[2:]
    args += ["--trainer.accelerator", "cpu", "--protect.out", str(out)]
    job = slurm("predict.sbatch", TASKS, *args)
    said, _ = job.communicate(timeout=200)
    assert job.returncode == 0, said
    assert shards(out) == shards(tiny_store)


@pytest.mark.parametrize("line", commands())
def test_the_commands_of_the_page(line, slurm, tmp_path, monkeypatch):
    words = shlex.split(line, comments=True)
    if words[0] == "sbatch":
        script = next(word for word in words if word.endswith(".sbatch"))
        job = slurm(Path(script).name, RECORD, *words[words.index(script) + 1 :])
        assert job.wait(timeout=60) == 0
        words = (tmp_path / "record").read_text().splitlines()[1:]
    if words[0] == "torchrun":
        from torch.distributed.run import get_args_parser

        launcher = get_args_parser().parse_args(words[1:])
        assert launcher.module and launcher.training_script == "crafter_pl"
        sizes = (int(launcher.nproc_per_node), int(launcher.nnodes.split(":")[0]))
        cli = parse(launcher.training_script_args)
        assert (int(cli.options.trainer.devices), cli.options.trainer.num_nodes) == sizes
    else:
        assert words[:3] == ["python", "-m", "crafter_pl"]
        cli = parse(words[3:])
    assert cli.verb in ("fit", "predict")


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
