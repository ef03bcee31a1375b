"""The process of one job. A server that has imported everything once forks it: see `Jobs`."""

import os
import sys
from importlib.util import find_spec
from multiprocessing import parent_process

import torch

from crafter_pl.audit.audit import audit  # noqa: F401 (imported once, before the server forks)
from crafter_pl.cli import main
from crafter_pl.commands import command
from crafter_pl.plugins import import_stages
from crafter_pl.processes import end_after

import_stages()


def work(commands: list[list[str]], log: str, threads: int, gpu: int | None) -> None:
    """Runs commands one after another, and exits with the code of the first that fails, else 0.

    Args:
        commands: arguments of `python -m crafter_pl`.
        log: the file that takes all output.
        threads: how many to compute with.
        gpu: the only one to be seen; None leaves that as it is.
    """
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    if (parent := parent_process()) is not None:
        end_after(parent.join)  # a benchmark that is killed leaves nothing running
    # Lightning starts the other processes of a command by what __main__ and sys.argv say that this one is.
    sys.modules["__main__"].__spec__ = find_spec("crafter_pl.__main__")
    for args in commands:
        sys.argv = ["crafter_pl", *args]
        print(f"+ {command(args)}", flush=True)
        if code := main(args):
            sys.exit(code)
