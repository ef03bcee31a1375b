"""The second process of a command, forked before it begins: a new interpreter would import for seconds."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from unittest.mock import patch

LAUNCHERS = ("lightning.pytorch", "lightning.fabric")  # of commands that train, and of the audit


class Twin:
    """A copy of this process that waits for its environment; stands in for Lightning's `subprocess.Popen`.

    What the command does before it starts the other process is not in the copy, as it is not in a new one.
    """

    def __init__(self, go: Callable[[], object]) -> None:
        self.returncode: int | None = None
        self.started = False
        told, self.tell = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(told)
            return
        os.close(self.tell)
        with open(told) as file:
            environment = file.read()
        if not environment:  # the command has ended, and has started no other process
            os._exit(0)
        os.environ.clear()
        os.environ.update(json.loads(environment))
        go()

    def start(self, args: Sequence[str], *, env: dict[str, str], cwd: str | None) -> "Twin":
        assert not self.started and cwd is None and list(args[3:]) == sys.argv[1:]
        self.started = True
        with open(self.tell, "w") as file:
            json.dump(env, file)
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def with_twin(go: Callable[[], object]) -> None:
    """Runs ``go``; the other process that it starts is a twin, which runs it, too."""
    twin = Twin(go)
    stand_in = SimpleNamespace(Popen=twin.start)
    for package in LAUNCHERS:
        patch(f"{package}.strategies.launchers.subprocess_script.subprocess", stand_in).start()
    go()
