"""The tiny experiment: every stage of tests/conf trained once through `main([...])`."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crafter_pl.cli import main
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.runner import StageCLI
from crafter_pl.stages.base import Stage

CONF = Path(__file__).parent / "conf"
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
    """Where the runs are, what was printed on the way, and the stages as training left them in memory."""

    runs_dir: Path
    printed: str = ""
    trained: dict[str, Stage] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.runs_dir / "synthetic"

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


def make(folder: Path) -> Experiment:
    """Trains Crafter alone (so its upstream stages first), then what the audit and the cloaks need."""
    made = Experiment(folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        go = StageCLI.go

        def watched(self, loaded):
            go(self, loaded)
            made.trained[self.name] = self.model

        patch.setattr(StageCLI, "go", watched)
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


def in_subprocess(args: list[str]) -> subprocess.CompletedProcess[str]:
    """`python -m crafter_pl ARGS`, able to import what lies in tests/."""
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "crafter_pl", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
