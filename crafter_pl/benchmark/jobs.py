"""Runs commands that depend on one another, several at a time, each once; goes on where it was stopped."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from crafter_pl.commands import command
from crafter_pl.errors import UserError
from crafter_pl.files import read_json, sha256, to_json, write_file

DONE, FAILED, SKIPPED = "done", "failed", "skipped"
_TAIL = 4  # lines of a failed job's log that are shown


@dataclass
class Job:
    """Commands of `python -m crafter_pl`, run one after another in one process.

    Args:
        name: its log and its mark bear it.
        commands: their arguments; without any it is done.
        outputs: files that are there when it is done; their hashes tell whether it has to be done again.
        needs: names of the jobs whose outputs it works on.
        inputs: other files that it works on.
        wide: it shares its work out over processes itself, so that nothing else runs beside it.
    """

    name: str
    commands: list[list[str]]
    outputs: list[str]
    needs: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    wide: bool = False


class Jobs:
    """A set of jobs with their logs (``logs/``) and marks (``jobs/``) in a folder.

    Each is a process of its own, forked by a server that has imported what all need: starting one costs
    nothing, and one that dies takes no other with it.
    """

    def __init__(self, jobs: list[Job], folder: Path, workers: int, gpus: int = 0) -> None:
        """Take the jobs in an order in which each comes after what it needs.

        Args:
            jobs: names are unique.
            folder: for logs and marks.
            workers: processes at a time; they share the processor's cores.
            gpus: how many there are, to be dealt out.
        """
        self.jobs = {job.name: job for job in jobs}
        self.folder, self.workers, self.gpus = folder, workers, gpus
        self.state: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.due: set[str] = set()  # found not to be done: what they need is, and changes no more
        self.ran = 0
        self.places: dict[str, int] = {}  # which of the workers does a job

    def run(self) -> None:
        """Does what is not done; a job that fails takes those that need it with it, and no others."""
        running: dict[str, tuple[BaseProcess, float]] = {}
        began = time.monotonic()
        try:
            while len(self.state) < len(self.jobs):
                started = self._start(running)
                for name, (process, since) in list(running.items()):
                    if process.exitcode is None:
                        continue
                    del running[name]
                    self._finish(name, process.exitcode, time.monotonic() - since, began)
                    started = True
                if not started:
                    time.sleep(0.05)
        except BaseException:
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.join()
            raise

    def log(self, name: str) -> Path:
        """The file that a job's output goes to."""
        return self.folder / "logs" / f"{name}.log"

    def _start(self, running: dict[str, tuple[BaseProcess, float]]) -> bool:
        """Settles what is done or cannot be, and starts what has room; whether anything changed."""
        for name, job in self.jobs.items():
            if name in self.state or name in running:
                continue
            states = [self.state.get(need) for need in job.needs]
            if FAILED in states or SKIPPED in states:
                self.state[name] = SKIPPED
                return True
            if any(state != DONE for state in states):
                continue
            if name not in self.due and self._is_done(job):
                self.state[name] = DONE
                return True
            self.due.add(name)
            if len(running) < (1 if job.wide else self.workers) and not any(
                self.jobs[other].wide for other in running
            ):
                running[name] = (self._launch(job), time.monotonic())
                return True
        return False

    def _launch(self, job: Job) -> BaseProcess:
        log = self.log(job.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        used = {self.places[other] for other in self.places if other not in self.state}
        self.places[job.name] = min(set(range(self.workers)) - used)
        gpu = self.places[job.name] % self.gpus if self.gpus > 1 and not job.wide else None
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["crafter_pl.benchmark.work"])
        process = context.Process(target=_work, args=(job.commands, str(log), threads, gpu))
        process.start()
        return process

    def _finish(self, name: str, code: int, seconds: float, began: float) -> None:
        job = self.jobs[name]
        missing = [path for path in job.outputs if not Path(path).is_file()]
        self.state[name] = FAILED if code or missing else DONE
        self.seconds[name] = seconds
        self.ran += 1
        took = f"{seconds / 60:.1f} min"
        if self.state[name] == DONE:
            self._mark(job, seconds)
        else:
            took = f"failed after {took}, see {self.log(name)}"
            lines = self.log(name).read_text(errors="replace").strip().splitlines()
            took += "".join(f"\n    {line}" for line in lines[-_TAIL:])
        left = len(self.jobs) - len(self.state)
        rate = (time.monotonic() - began) / self.ran
        tail = f"; {left} to go, about {left * rate / 60:.0f} min" if left else ""
        print(f"[{len(self.state)}/{len(self.jobs)}] {name}: {took}{tail}", flush=True)

    # What is done

    def _marked(self, job: Job) -> Path:
        return self.folder / "jobs" / f"{job.name}.json"

    def _hashes(self, paths: list[str]) -> dict[str, str]:
        return {path: sha256(path) if Path(path).is_file() else "" for path in paths}

    def _inputs(self, job: Job) -> dict[str, str]:
        made = [path for need in job.needs for path in self.jobs[need].outputs]
        return self._hashes([*made, *job.inputs])

    def _mark(self, job: Job, seconds: float) -> None:
        mark = {"commands": job.commands, "inputs": self._inputs(job), "outputs": self._hashes(job.outputs)}
        write_file(self._marked(job), to_json({**mark, "seconds": seconds}))

    def _is_done(self, job: Job) -> bool:
        """Whether the same commands have made what is there from what is there."""
        if not job.commands:
            return True
        try:
            mark: dict[str, Any] = read_json(self._marked(job), "")
        except (OSError, UserError):
            return False
        outputs = self._hashes(job.outputs)
        same = mark.get("commands") == job.commands and mark.get("outputs") == outputs
        if not same or mark.get("inputs") != self._inputs(job) or "" in outputs.values():
            return False
        self.seconds[job.name] = float(mark.get("seconds", 0.0))
        return True

    def plan(self) -> str:
        """All jobs with their commands."""
        return "\n".join(
            line
            for job in self.jobs.values()
            for line in (f"{job.name}:", *map(_shown, job.commands), *([] if job.commands else ["  is done"]))
        )


def _shown(args: list[str]) -> str:
    return f"  {command(args)}"


def _work(*args: Any) -> None:  # noqa: ANN401
    from crafter_pl.benchmark.work import work  # heavy: for the forked processes alone

    work(*args)
