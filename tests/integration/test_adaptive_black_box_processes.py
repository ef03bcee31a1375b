import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest
from black_box_lab import fit
from experiment import in_subprocess, shards
from rounds import ROUNDS, TWO, WHOLE, same, weights

from crafter_pl.cli import main
from crafter_pl.data.store import read_manifest

# Several processes


@pytest.fixture(scope="module")
def tiny(tiny, tmp_path_factory):
    """The experiment with runs of its own: other files' tests look at all that there are."""
    runs = tmp_path_factory.mktemp("own") / "runs"
    shutil.copytree(tiny.runs_dir, runs, copy_function=os.link)
    return replace(tiny, runs_dir=runs)


@pytest.fixture(scope="module")
def pair(tiny, tmp_path_factory):
    """The same training by one process and by two: 5 steps, then 10; their own queries."""
    folder = tmp_path_factory.mktemp("pair")
    more = [*ROUNDS, *WHOLE, "--model.init_args.pairs_per_round", "40", "--trainer.callbacks+=ranks.Losses"]
    more += ["--model.init_args.lr", "1e-4"]  # that of the first steps of a round of ordinary length
    more += ["--trainer.precision", "64-true"]  # two processes add up in another order

    def command(name, *extra):
        return fit(tiny, name, *more, "--model.init_args.queries_dir", str(folder / name), *extra)

    assert main(command("one")) == 0
    two = in_subprocess(command("two", *TWO), twin=True)
    assert two.returncode == 0, two.stderr
    return folder, command, two


def losses(tiny, name):
    return json.loads((tiny.folder / name / "losses.json").read_text())


def test_two_processes_give_the_losses_of_one(tiny, pair):
    one, two = losses(tiny, "one"), losses(tiny, "two")
    assert len(one) == len(two) == 5 + 5 + 10 + 10
    assert one == pytest.approx(two, rel=1e-9)
    assert not same(weights(tiny.folder / "one", "round-00"), weights(tiny.folder / "one", "round-01"))


def test_two_processes_write_the_store_of_one(pair):
    folder, _, two = pair
    made = {name: sorted((folder / name).glob("*/public_*")) for name in ("one", "two")}
    assert [path.relative_to(folder / "one") for path in made["one"]] == [
        path.relative_to(folder / "two") for path in made["two"]
    ]
    for one, other in zip(made["one"], made["two"], strict=True):
        assert shards(one) == shards(other) and read_manifest(one) == read_manifest(other)
    assert "queries public_train" in two.stdout and "shard 5/5" in two.stdout  # each crafted 5 of the 10


@pytest.mark.parametrize("how", ["exit", "error", "crafting"])
def test_a_process_that_dies_ends_the_run_which_resumes(tiny, pair, how):
    folder, command, _ = pair
    plain = [*TWO, "--trainer.precision", "32-true"]  # what Lightning reads a checkpoint into
    died = in_subprocess(
        command(how, *plain, "--trainer.callbacks+=ranks.Die", f"--trainer.callbacks.how={how}"), twin=True
    )
    assert died.returncode != 0
    if how == "error":
        assert "[process 1] error: " in died.stderr
    else:
        assert "another process has ended" in died.stderr or "terminated with code 3" in died.stderr
    if how == "exit":
        resumed = in_subprocess(command(how, *plain, "--ckpt_path", "last"), twin=True)
        assert resumed.returncode == 0, resumed.stderr
        assert in_subprocess(command("straight", *plain), twin=True).returncode == 0
        assert same(weights(tiny.folder / how), weights(tiny.folder / "straight"))
        store = next((folder / "straight").glob("*/public_train"))
        assert shards(folder / how / store.relative_to(folder / "straight")) == shards(store)


def test_processes_that_cannot_share_a_batch(tiny, pair):
    _, command, _ = pair
    made = in_subprocess(command("odd", *TWO, "--model.init_args.batch_size", "7"), twin=True)
    assert made.returncode == 2 and "batch of 7" in made.stderr


LAUNCHER = """
import os, subprocess, sys
env = {**os.environ, "LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0", "MASTER_PORT": "1"}
env["CRAFTER_PL_LAUNCHER"] = str(os.getpid())
print(subprocess.Popen([sys.executable, "-m", "crafter_pl", *sys.argv[1:]], env=env).pid)
"""


def test_a_process_whose_launcher_is_gone_ends(tiny, tmp_path):
    """While it waits for the others to start, too: nobody listens at the port that it is given."""
    more = ["--model.init_args.queries_dir", str(tmp_path), *TWO]
    with open(tmp_path / "log", "w") as log:
        made = subprocess.run(
            [sys.executable, "-c", LAUNCHER, *fit(tiny, "orphan", *ROUNDS, *more)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            timeout=60,
        )
    process = int(made.stdout)
    try:
        for _ in range(300):
            if "is gone" in (tmp_path / "log").read_text():
                break
            time.sleep(0.5)
        assert "[process 1]" in (tmp_path / "log").read_text()
        time.sleep(1)
        # Nobody may be there to reap an orphan: gone, or dead and not yet reaped.
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], stdout=subprocess.PIPE, text=True)
        assert state.stdout.strip()[:1] in ("", "Z")
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
