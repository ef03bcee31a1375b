"""Which device to use, and how many processes on it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from crafter_pl.errors import UserError


def pick_device(name: str) -> str:
    """The device that an option means, tried out.

    Args:
        name: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ...

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    with usable(name):
        torch.empty(0, device=name)
    return name


@contextmanager
def usable(name: str) -> Iterator[None]:
    """Turns what torch or Lightning says of a device that is not there into one message.

    Raises:
        UserError: names the device and the way out.
    """
    try:
        yield
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UserError(f"--device {name} cannot be used ({reason}): give auto, cpu or cuda") from error


def check_processes(count: int, option: str) -> None:
    """Refuses more processes on the CPU than a machine bears: each has a copy of everything.

    Raises:
        UserError: they are more than its processors, and more than eight.
    """
    if count > max(8, cores := os.cpu_count() or 1):
        raise UserError(
            f"{option} asks for {count} processes on {cores} processors: give at most {max(8, cores)}"
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute in one thread: for a picture at a time, where threads wait for each other.

    Beside other work two of them took fifty times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
