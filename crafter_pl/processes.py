"""A process that must not outlive the one that started it."""

from __future__ import annotations

import os
import sys
import threading
import time

LAUNCHER = "CRAFTER_PL_LAUNCHER"  # the process that launches others, by its number, in their environment


def rank() -> int:
    """This process's number among those of one run.

    0 where it is alone, whatever a shell or an interactive allocation has left in the environment.
    """
    from lightning.fabric.plugins.environments import SLURMEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"])
    if SLURMEnvironment.detect():
        return int(os.environ["SLURM_PROCID"])
    launched = os.environ.get(LAUNCHER) not in (None, str(os.getpid()))
    return int(os.environ.get("LOCAL_RANK") or 0) if launched else 0


def end_with(parent: int, message: str = "") -> None:
    """Ends this process, with exit code 1, once the process ``parent`` that started it is gone.

    Args:
        parent: its process number.
        message: for standard error.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        if message:
            print(message, file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
