"""One entrance: Lightning's verbs fit, validate, test and predict for every stage, and verbs of our own.

This module is light on purpose: torch and Lightning are imported when a verb needs them.
"""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pkgutil import resolve_name
from types import FrameType
from typing import TYPE_CHECKING, Any

from crafter_pl import __version__
from crafter_pl.commands import command, resume_command
from crafter_pl.errors import UserError
from crafter_pl.processes import LAUNCHER, end_with

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

FUNCTIONS = {  # the verbs that are functions, and where these are
    "protect": "crafter_pl.edge.protect:protect_photos",
    "export": "crafter_pl.edge.export:export",
    "serve": "crafter_pl.cloud.serve:serve",
    "audit": "crafter_pl.audit.audit:audit",
    "benchmark": "crafter_pl.benchmark.benchmark:benchmark",
    "report": "crafter_pl.audit.compare:report",
}
POSITIONAL = {  # what some of them are given without an option's name
    "protect": ("photos", "photographs, and folders of them"),
    "report": ("audits", "folders of audits to compare, see --out"),
}
VERBS = {
    "fit": "train one stage; upstream stages that are missing are trained first",
    "validate": "score a trained stage on its validation split",
    "test": "score a trained stage on its test split",
    "predict": "let a trained defence craft a split of the data and write the feature store",
    "protect": "find the faces in photographs, protect their features and write a feature store",
    "export": "write what runs on the edge as torch.export and ONNX graphs, checked and timed",
    "serve": "answer protected features with attributes, over HTTP: the cloud's classifier",
    "audit": "attack feature stores; write report.json, report.html, table.csv and the plots",
    "benchmark": "audit a grid of defences side by side; write tables and one report a seed",
    "report": "compare several audits on one page, or write one audit's page again",
}
HELP = "\n".join(
    [
        "usage: python -m crafter_pl VERB [--config FILE] [options]",
        "",
        *(f"  {verb:<9} {text}" for verb, text in VERBS.items()),
        "",
        "python -m crafter_pl VERB --help   the options of a verb",
        "python -m crafter_pl --version     the version",
        "",
        "Runs are kept in RUNS_DIR/EXPERIMENT/NAME (runs/synthetic/<stage> by default).",
    ]
)


class Terminated(BaseException):
    """SIGTERM arrived: like KeyboardInterrupt, no error of the program."""


def main(args: list[str] | None = None) -> int:
    """Runs one command.

    Returns:
        Its exit code: 0 done, 2 a user's mistake, 130 Ctrl+C, 141 the output was closed, 143 SIGTERM.
    """
    args = list(sys.argv[1:] if args is None else args)
    _print_anything()
    if args[:1] in (["-h"], ["--help"]):
        print(HELP)
        return 0
    if args[:1] == ["--version"]:
        print(f"crafter_pl {__version__}")
        return 0
    try:
        with _signals():
            return _run(args)
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
        if not _process_lost(error):
            raise
        return _interrupted(f"another process has ended, see its own message ({error})", args, 1)
    finally:
        _leave_process_group()


def _run(args: list[str]) -> int:
    if not args or args[0] not in VERBS:
        what = f"unknown verb {args[0]!r}" if args else "a verb is missing"
        raise UserError(f"{what}: choose from {', '.join(VERBS)} (python -m crafter_pl --help)")
    from crafter_pl.cli import stage
    from crafter_pl.cli.options import blamed, check_configs, expanded

    _quiet()
    _end_with_parent()
    args = expanded(args)
    check_configs(args)
    try:
        with blamed(args):
            _call(*args) if args[0] in FUNCTIONS else stage.run(args)
    except SystemExit as stop:
        # Lightning turns Ctrl+C into SystemExit(1); --help is SystemExit(0).
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise stop.__context__ from None
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def parser(verb: str, function: Callable[..., Any]) -> ArgumentParser:
    """The options of a verb that is a function: its arguments, or a YAML file with any of them."""
    from jsonargparse import ActionConfigFile

    from crafter_pl.cli.parsing import Parser
    from crafter_pl.plugins import import_stages

    import_stages()
    made = Parser(prog=f"crafter_pl {verb}", description=VERBS[verb], exit_on_error=False, allow_abbrev=False)
    made.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file with any of these options")
    positional: set[str | int] = set()
    if verb in POSITIONAL:
        name, text = POSITIONAL[verb]
        made.add_argument(name, nargs="*", type=str, default=[], help=text)
        positional = {name}
    made.add_function_arguments(
        function, fail_untyped=False, as_positional=False, sub_configs=True, skip=positional
    )
    return made


def _call(verb: str, *args: str) -> None:
    """Runs the function behind one of `FUNCTIONS` with the options given."""
    if verb == "serve" and any(re.match("--tok[a-z]*(=|$)", word) for word in args):
        raise UserError("a token on the command line can be seen by others: give --token_file FILE")
    from crafter_pl.cli.options import expanded

    function = resolve_name(FUNCTIONS[verb])
    made = parser(verb, function)
    config = made.instantiate(expanded(made.parse_args(list(args))))
    del config["config"]
    function(**config)


def _print_anything() -> None:
    """No character ends a program: what a terminal's encoding has not is printed as its number."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str) -> int:
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    where = "" if rank == "0" else f"[process {rank}] "
    print(f"{where}error: {message}", file=sys.stderr, flush=True)
    return 2


def _process_lost(error: RuntimeError) -> bool:
    """Whether a collective failed because another process is gone: gloo and NCCL notice it at once."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def _interrupted(what: str, args: list[str], code: int) -> int:
    message = what
    if args[0] == "fit":
        message = f"{what}; finished epochs are kept, go on with: {resume_command(args)}"
    elif args[0] in ("predict", "protect", "audit", "benchmark"):
        message = f"{what}; go on with the same command: {command(args)}"
    print(message, file=sys.stderr, flush=True)
    return code


@contextmanager
def _signals() -> Iterator[None]:
    """Turns SIGTERM into `Terminated`; puts back the handlers that Lightning leaves changed after Ctrl+C."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    try:
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGTERM, terminate)
    except (
        ValueError
    ):  # only the main thread may set handlers: in another one signals are the caller's business
        yield
        return
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


def _end_with_parent() -> None:
    """In a process that Lightning has launched beside another: ends when that one is gone.

    A collective notices a dead process at once, but one that waits for it at start-up would wait half an
    hour. torchrun and srun look after their processes themselves.
    """
    me = str(os.getpid())
    if "LOCAL_RANK" not in os.environ:
        os.environ[LAUNCHER] = me
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or launcher == me:
        return
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK")
    end_with(int(launcher), f"[process {rank}] the process that launched this one is gone")


def _leave_process_group() -> None:
    """Ends torch.distributed in order: else runs under torchrun on the CPU now and then abort at exit."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
