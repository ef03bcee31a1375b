"""The tiny experiment: every stage of tests/helpers/conf trained once through `main([...])`."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from quick import quick
from twin import with_twin

from crafter_pl.cli import main, run
from crafter_pl.commands import Commands
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses import Defense
from crafter_pl.stages import load_stage

CONF = Path(__file__).parent / "conf"
PATHS = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
OTHERS = ("oracle_resnet", "oracle_plain", "black_box", "embedder", "embedder_plain")
STAGES = ("task", "prior", "amortizer", "crafter", *OTHERS)
DATA = {
    "people": 16,
    "images_per_person": 8,
    "image_size": 32,
    "private_people": 4,
    "min_private_images": 8,
    "test_images": 4,
    "batch_size": 8,
    "predict_batch_size": 4,
}


@dataclass
class Experiment:
    """Where the runs are, what was printed on the way, and what training left in memory.

    Attributes:
        trained: the entries of each stage's `state_dict`.
        outputs: what each stage gives, see `stages_lab.outputs`.
        touched: stages whose training changed a net upstream, or left it to be trained.
    """

    runs_dir: Path
    printed: str = ""
    trained: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    touched: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.runs_dir / "synthetic"

    @property
    def commands(self) -> Commands:
        """What attacks are bound to, for their checkpoints."""
        return Commands(self.folder)

    def command(self, verb: str, name: str, *more: str) -> list[str]:
        return [verb, "--config", str(CONF / f"{name}.yaml"), "--runs_dir", str(self.runs_dir), *more]

    def ckpt(self, stage: str) -> str:
        return str(self.folder / stage / "checkpoints" / "best.ckpt")

    def upstream(self, *stages: str) -> dict[str, str]:
        return {f"{stage}_ckpt": self.ckpt(stage) for stage in stages}

    def store(self) -> Path:
        return self.folder / "crafter" / "features" / "private_test-beta1"

    def audit(self, *more: str) -> list[str]:
        oracles = f"[{self.ckpt('oracle_resnet')}, {self.ckpt('oracle_plain')}]"
        return self.command("audit", "audit", "--features", f"[{self.store()}]", "--oracles", oracles, *more)

    def trainer(self, kind: str, runs_dir: Path) -> Callable[..., str]:
        """`train(name, setting=value, ...)` fits one of a kind in ``runs_dir``; returns its checkpoint."""

        def go(name: str, *more: str, code: int = 0, **settings: Any) -> str:
            settings = {"task_ckpt": self.ckpt("task"), **settings}
            given = [f"--model.init_args.{key}={value}" for key, value in settings.items()]
            config = self.command("fit", kind)[1:3]
            assert main(["fit", *config, "--runs_dir", str(runs_dir), "--name", name, *given, *more]) == code
            return str(runs_dir / "synthetic" / name / "checkpoints" / "best.ckpt")

        return go

    def data(self) -> FacesDataModule:
        data = FacesDataModule(**DATA)
        data.setup()
        return data


class Told:
    """A defence with its options: `protect(images, index)`, `settings()`, `store_name()` as they are told."""

    def __init__(self, stage: Defense, **options: Any) -> None:
        self.stage, self.options = stage, stage.options(**options)

    def protect(self, images: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return self.stage.protect(images, index, self.options)

    def settings(self) -> dict[str, Any]:
        return self.stage.settings(self.options)

    def store_name(self) -> str:
        return self.stage.store_name(self.options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stage, name)


def copy_of(folder: Path, own: Path) -> Experiment:
    """The experiment in a folder that workers share, trained by the first of them; its runs are copied."""
    kept = folder / "experiment.pt"
    with FileLock(f"{folder}.lock"):
        if not kept.is_file():
            torch.save(make(folder), kept)
    shutil.copytree(folder / "runs", own / "runs")
    made: Experiment = torch.load(kept, weights_only=False)  # our own file
    made.runs_dir, made.printed = own / "runs", made.printed.replace(str(folder), str(own))
    return made


def make(folder: Path) -> Experiment:
    """Trains Crafter alone (so its upstream stages first), then what the audit and the cloaks need."""
    from stages_lab import outputs  # which imports this module

    made = Experiment(folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        go = run.go

        def watched(cli, *more):
            stage = go(cli, *more)
            stage.train()
            for key, upstream in stage.upstream.items():
                fresh = load_stage(made.ckpt(key), type(upstream)).state_dict()
                same = all(torch.equal(value, fresh[name]) for name, value in upstream.state_dict().items())
                if (
                    not same
                    or any(module.training for module in upstream.modules())
                    or any(parameter.requires_grad for parameter in upstream.parameters())
                ):
                    made.touched.append(f"{cli.name}: {key}")
            made.trained[cli.name], made.outputs[cli.name] = stage.state_dict(), outputs(stage.eval())

        patch.setattr(run, "go", watched)
        text = io.StringIO()
        with redirect_stdout(text):
            for stage in ("crafter", *OTHERS):
                assert main(made.command("fit", stage)) == 0, stage
    made.printed = text.getvalue()
    assert sorted(made.trained) == sorted(STAGES)
    return made


def shards(folder: Path) -> dict[str, bytes]:
    """The bytes of a store's shards by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.safetensors"))}


def in_subprocess(
    args: list[str], twin: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python -m crafter_pl ARGS`, able to import what lies in tests/helpers, in the present folder.

    Args:
        args: of a command.
        twin: the other process that the command starts is a fork, too, see `twin`; Lightning's is a new one.
        environment: variables more.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("out", "err")]
        process = forked(args, *files, twin=twin, **environment)
        process.join(900)  # a slow machine is no fault
        if process.exitcode is None:
            process.kill()
            process.join()
            raise AssertionError(f"{args} did not end in time:\n{files[1].read_text()}")
        return subprocess.CompletedProcess(args, process.exitcode, *(file.read_text() for file in files))


def start_server() -> ForkServerContext:
    """The server that forks commands, ours and those of a benchmark, started; it imports `preload`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(PATHS))
        multiprocessing.set_forkserver_preload(["preload"])
        forkserver.ensure_running()
    return multiprocessing.get_context("forkserver")


def forked(
    args: list[str],
    out: Path,
    err: Path,
    before: Callable[[], None] | None = None,
    twin: bool = False,
    **environment: str,
) -> BaseProcess:
    """Starts `python -m crafter_pl ARGS`, which writes into two files, after calling `before` in its process.

    The process is forked by a server that has imported everything: an import takes seconds.
    """
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "OMP_NUM_THREADS": "1", **environment}
    context = start_server()
    process = context.Process(target=_forked, args=(args, env, out, err, before, twin))
    process.start()
    return process


def _forked(
    args: list[str],
    env: dict[str, str],
    out: Path,
    err: Path,
    before: Callable[[], None] | None,
    twin: bool,
) -> None:
    for number, path in ((1, out), (2, err)):
        with open(path, "wb", buffering=0) as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    sys.path[:0] = env["PYTHONPATH"].split(os.pathsep)
    quick()
    if before is not None:
        before()
    # Lightning starts the other processes of a command by what __main__ and sys.argv say that this one is.
    sys.modules["__main__"].__spec__ = find_spec("crafter_pl.__main__")
    sys.argv = ["crafter_pl", *args]
    if twin:
        with_twin(lambda: sys.exit(main(args)))
    sys.exit(main(args))
