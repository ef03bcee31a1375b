"""Processes that belong together: which is which, and none outlives the one that started it."""

import os
import sys
import threading
import time
from collections.abc import Callable

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


def end_after(wait: Callable[[], object], message: str = "") -> None:
    """Ends this process, with exit code 1, once ``wait`` returns.

    Args:
        wait: returns when the process that started this one is gone.
        message: for standard error.
    """

    def watch() -> None:
        wait()
        if message:
            print(message, file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def end_with_launcher() -> None:
    """In a process that Lightning has launched beside another: ends when that one is gone.

    A collective notices a dead process at once, but one that waits for it at start-up would wait half an
    hour. torchrun and srun look after their processes themselves.
    """
    me = str(os.getpid())
    if "LOCAL_RANK" not in os.environ:
        os.environ[LAUNCHER] = me
    launcher = os.environ.get(LAUNCHER, me)
    if launcher == me:
        return

    def gone() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1)

    number = os.environ.get("RANK") or os.environ.get("LOCAL_RANK")
    end_after(gone, f"[process {number}] the process that launched this one is gone")


def tells_of_another(error: Exception) -> bool:
    """Whether a collective failed because another process is gone: gloo and NCCL notice it at once."""
    noticed = isinstance(error, getattr(sys.modules.get("torch.distributed"), "DistError", ()))
    return noticed or (isinstance(error, RuntimeError) and "gloo" in str(error))


def leave_group() -> None:
    """Ends torch.distributed in order: else runs under torchrun on the CPU now and then abort at exit."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
