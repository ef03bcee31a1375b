import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from experiment import CONF

from crafter_pl.benchmark.jobs import DONE, FAILED, SKIPPED, Job, Jobs

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
    slow = [["audit", "--help"], ["protect", "--help"]]  # long enough to be seen
    go(tmp_path / "two", *(replace(job(name), commands=slow) for name in "abcde"))
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
    code = "import sys, test_benchmark_jobs as t; from pathlib import Path; "
    code += "folder = Path(sys.argv[1]); t.go(folder, t.endless(folder))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
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
