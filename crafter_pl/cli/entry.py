"""One entrance for all verbs: exit codes, signals, and what is printed.

This module is light on purpose: torch and Lightning are imported when a verb needs them.
"""

import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from crafter_pl import __version__
from crafter_pl.cli.verbs import FUNCTIONS, HELP, VERBS
from crafter_pl.errors import UserError
from crafter_pl.processes import end_with_launcher, leave_group, tells_of_another


class Terminated(BaseException):
    """SIGTERM arrived: like KeyboardInterrupt, no error of the program."""


def main(args: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Its exit code: 0 done, 2 a user's mistake, 130 Ctrl+C, 141 the output was closed, 143 SIGTERM.
    """
    args = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding has not is printed as its number
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    shown = {"-h": HELP, "--help": HELP, "--version": f"crafter_pl {__version__}"}
    if args and args[0] in shown:
        print(shown[args[0]])
        return 0
    if not args:
        print(HELP, file=sys.stderr)
        return 2
    try:
        with _signals():
            return run(args)
    except KeyboardInterrupt:
        return _interrupted("interrupted", args, 130)
    except Terminated:
        return _interrupted("terminated", args, 143)
    except UserError as error:
        return _fail(str(error))
    except BrokenPipeError:  # `| head -1`: nobody reads what is printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _interrupted("its output was closed", args, 141)
    except OSError as error:  # a folder that cannot be written, a full disk
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error) or type(error).__name__
        return _fail(f"{where}{reason}; give a place that can be read and written, with room on its disk")
    except RuntimeError as error:
        if not tells_of_another(error):
            raise
        return _interrupted(f"another process has ended, see its own message ({error})", args, 1)
    finally:
        leave_group()


def run(args: list[str]) -> int:
    """Runs one command; what ends it is raised.

    Returns:
        The code that `--help` and the like exit with, else 0.
    """
    if args[0] not in VERBS:
        raise UserError(
            f"unknown verb {args[0]!r}: choose from {', '.join(VERBS)} (python -m crafter_pl --help)"
        )
    from crafter_pl.cli.options import check_configs, expanded, located
    from crafter_pl.cli.parsing import blamed
    from crafter_pl.commands import running

    if args[0] in FUNCTIONS:
        from crafter_pl.cli.functions import call
    else:
        from crafter_pl.cli.run import call

    _quiet()
    end_with_launcher()
    told = running.set(args)
    try:
        args = located(expanded(args))
        check_configs(args)
        with blamed(args):
            call(args)
    except SystemExit as stop:
        # Lightning turns Ctrl+C into SystemExit(1); --help is SystemExit(0).
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        running.reset(told)
    return 0


def _fail(message: str) -> int:
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    where = "" if rank == "0" else f"[process {rank}] "
    print(f"{where}error: {message}", file=sys.stderr, flush=True)
    return 2


def _interrupted(what: str, args: list[str], code: int) -> int:
    try:
        from crafter_pl.commands import command, resume_command
    except (ImportError, AttributeError):  # the end came while this was being imported: nothing had begun
        args = [""]
    if args[0] == "fit":
        what += f"; finished epochs are kept, go on with: {resume_command(args)}"
    elif args[0] in ("predict", "protect", "audit", "benchmark", "sweep", "tune"):
        what += f"; go on with the same command: {command(args)}"
    print(what, file=sys.stderr, flush=True)
    return code


@contextmanager
def _signals() -> Iterator[None]:
    """Turns SIGTERM into `Terminated`; puts back the handlers that Lightning leaves changed after Ctrl+C."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which alone may set handlers: signals are the caller's business
        return

    def terminate(*_: object) -> None:
        raise Terminated

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _quiet() -> None:
    """Silences what Lightning says about itself and cannot be acted on; each filter has its reason."""
    # "GPU available: ...", "Seed set to 0", tips to install litlogger and litmodels.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # But it says which process has died before it kills the others.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    for message in (
        ".*does not have many workers.*",  # the data are in memory: workers would only copy them
        ".*is smaller than the logging interval.*",  # tiny runs: the epoch's values are what matters
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run: others are refused
        ".*isinstance\\(treespec, LeafSpec\\).*",  # inside Lightning, about torch's own interface
        ".*but have no logger configured.*",  # predict and --trainer.logger false
        ".*Couldn't infer the batch indices.*",  # batches carry their own numbers
        ".*torch.distributed._sharded_tensor will be deprecated.*",  # inside torch
        ".*contains no parameters.*",  # torchmetrics' LPIPS as LowKey loads it
    ):
        warnings.filterwarnings("ignore", message)
