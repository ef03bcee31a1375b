"""Runs commands that depend on one another, several at a time, each once; goes on where it was stopped."""

import os
import time
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from crafter_pl.commands import command
from crafter_pl.device import check_processes
from crafter_pl.errors import UserError
from crafter_pl.files import read_json, sha256, to_json, write_file

DONE, FAILED, SKIPPED = "done", "failed", "skipped"


@dataclass(frozen=True)
class Job:
    """Commands of `python -m crafter_pl`, run one after another in one process.

    Args:
        name: its log and its mark bear it.
        commands: their arguments; without any it is done.
        outputs: files that are there when it is done; their hashes tell whether it has to be done again.
        needs: names of the jobs whose outputs it works on.
        inputs: other files that it works on.
        what: what it is for, in words.
    """

    name: str
    commands: list[list[str]]
    outputs: list[str]
    needs: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    what: str = ""

    def made(self) -> bool:
        """Whether all that it makes is there."""
        return all(Path(path).is_file() for path in self.outputs)


def workers_of(given: int | None, gpus: int = 0) -> int:
    """Processes at a time: as given, else one for each GPU or, without any, for each processor core.

    Raises:
        UserError: none, or more than the machine bears.
    """
    workers = (gpus or os.cpu_count() or 1) if given is None else given
    if workers < 1:
        raise UserError(f"--workers is {workers}; give at least 1")
    if not gpus:
        check_processes(workers, "--workers")
    return workers


class Jobs:
    """A set of jobs with their logs (``logs/``) and marks (``jobs/``) in a folder.

    Each is a process of its own, forked by a server that has imported what all need: starting one costs
    nothing, and one that dies takes no other with it, as it would in a pool of `concurrent.futures`.

    Attributes:
        state: `DONE`, `FAILED`, or `SKIPPED` since what it needs has failed, by name.
        seconds: how long a job took, now or when it was done.
        ran: how many were not done before.
    """

    def __init__(
        self, jobs: list[Job], folder: Path, workers: int, gpus: int = 0, threads: int | None = None
    ) -> None:
        """Take the jobs, each after what it needs; of those that may start the first does.

        Args:
            jobs: names are unique.
            folder: for logs and marks.
            workers: processes at a time.
            gpus: how many there are, to be dealt out.
            threads: that each computes with; None: its share of the processor's cores.
        """
        self.jobs = {job.name: job for job in jobs}
        self.folder, self.workers, self.gpus = folder, workers, gpus
        self.threads = max(1, (os.cpu_count() or 1) // workers) if threads is None else threads
        self.state: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.ran = 0

    def run(self) -> None:
        """Does what is not done; a job that fails takes those that need it with it, and no others."""
        graph = TopologicalSorter({job.name: job.needs for job in self.jobs.values()})
        graph.prepare()
        due: set[str] = set()
        free = list(range(self.workers))
        running: dict[str, tuple[BaseProcess, int, float]] = {}  # the process, its place, since when
        began = time.monotonic()
        try:
            while True:
                while found := graph.get_ready():
                    due.update(found)
                    for name in filter(self._is_done, found):
                        due.remove(name)
                        graph.done(name)
                for name in [name for name in self.jobs if name in due][: len(free)]:
                    due.remove(name)
                    place = free.pop()
                    running[name] = self._start(self.jobs[name], place), place, time.monotonic()
                if not running:
                    return
                gone = connection.wait([process.sentinel for process, _, _ in running.values()])
                for name in [name for name, one in running.items() if one[0].sentinel in gone]:
                    process, place, since = running.pop(name)
                    free.append(place)
                    process.join()
                    self.seconds[name] = time.monotonic() - since
                    if self._finish(self.jobs[name], process.exitcode, began):
                        graph.done(name)
        finally:  # nothing runs any more, unless it was interrupted
            for process, _, _ in running.values():
                process.terminate()
            for process, _, _ in running.values():
                process.join()

    def undone(self) -> list[str]:
        """The jobs that are not done after `run`, each with its state and its log."""
        return [f"{name}: {state}, {self.log(name)}" for name, state in self.state.items() if state != DONE]

    def log(self, name: str) -> Path:
        """The file that a job's output goes to."""
        return self.folder / "logs" / f"{name}.log"

    def _start(self, job: Job, place: int) -> BaseProcess:
        log = self.log(job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        gpu = place % self.gpus if self.gpus > 1 else None
        context = get_context("forkserver")
        context.set_forkserver_preload(["crafter_pl.benchmark.work"])
        process = context.Process(target=_work, args=(job.commands, str(log), self.threads, gpu))
        process.start()
        return process

    def _finish(self, job: Job, code: int | None, began: float) -> bool:
        """Says how a job has ended; whether it is done."""
        done, seconds = code == 0 and job.made(), self.seconds[job.name]
        self.state[job.name] = DONE if done else FAILED
        self.ran += 1
        took = f"{seconds / 60:.1f} min"
        if done:
            write_file(self._marked(job), to_json({**self._mark(job), "seconds": seconds}))
        else:
            lines = self.log(job.name).read_text(errors="replace").strip().splitlines()
            took = "\n    ".join([f"failed after {took}, see {self.log(job.name)}", *lines[-4:]])
            for other in self.jobs.values():  # each comes after what it needs
                if any(self.state.get(need) in (FAILED, SKIPPED) for need in other.needs):
                    self.state[other.name] = SKIPPED
        left = len(self.jobs) - len(self.state)
        each = (time.monotonic() - began) / self.ran
        tail = f"; {left} to go, about {left * each / 60:.0f} min" if left else ""
        name = f"{job.name}, {job.what}" if job.what else job.name
        print(f"[{len(self.state)}/{len(self.jobs)}] {name}: {took}{tail}", flush=True)
        return done

    # What is done

    def _marked(self, job: Job) -> Path:
        return self.folder / "jobs" / f"{job.name}.json"

    def _mark(self, job: Job) -> dict[str, object]:
        """What a job does, from which files to which, by their hashes."""
        made = [path for need in job.needs for path in self.jobs[need].outputs]
        return {"commands": job.commands} | {
            kind: {path: sha256(path) if Path(path).is_file() else "" for path in paths}
            for kind, paths in {"inputs": [*made, *job.inputs], "outputs": job.outputs}.items()
        }

    def _is_done(self, name: str) -> bool:
        """Whether the same commands have made what is there from what is there; remembers that."""
        job = self.jobs[name]
        if job.commands:
            try:
                mark = read_json(self._marked(job), "")
            except (OSError, UserError):
                return False
            seconds = mark.pop("seconds", 0.0)
            if mark != self._mark(job) or not job.made():
                return False
            self.seconds[name] = float(seconds)
        self.state[name] = DONE
        return True

    def plan(self) -> str:
        """All jobs with their commands."""
        lines = []
        for job in self.jobs.values():
            lines += [f"{job.name}:", *([f"  {command(args)}" for args in job.commands] or ["  is done"])]
        return "\n".join(lines)


def _work(commands: list[list[str]], log: str, threads: int, gpu: int | None) -> None:
    from crafter_pl.benchmark.work import work  # heavy: for the forked processes alone

    work(commands, log, threads, gpu)
