"""Commands that train or make what an experiment lacks, so that they run as they stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from crafter_pl.commands import command
from crafter_pl.errors import UserError
from crafter_pl.files import expand, read_json

if TYPE_CHECKING:
    from crafter_pl.data.datamodule import FacesDataModule

CONFIGS = Path("configs")
_OF_PREDICT = ("predict_batch_size", "predict_split")  # settings of the data that no training hangs on


def finished(home: Path, stage: str) -> list[Path]:
    """The checkpoints of an experiment's finished runs of a stage, whatever the runs are called."""
    return [
        folder / "checkpoints" / "best.ckpt" for folder, own in _summaries(home) if own.get("stage") == stage
    ]


def _summaries(home: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(home.glob("*/summary.json")):
        try:
            content = read_json(file, "")
        except (OSError, UserError):
            continue
        if isinstance(content, dict) and (file.parent / "checkpoints" / "best.ckpt").is_file():
            yield file.parent, content


@dataclass(frozen=True)
class Commands:
    """The commands of one experiment.

    Attributes:
        home: RUNS_DIR/EXPERIMENT.
        data: the options that give them its data, see `data_options`.
    """

    home: Path
    data: Sequence[str] = ()

    def config(self, stage: str) -> Path | None:
        """The config of a stage: the experiment's own, or the one for all; None: there is neither."""
        folders = [CONFIGS / self.home.name, CONFIGS]
        files = [folder / part / f"{stage}.yaml" for folder in folders for part in (".", "attacks")]
        return next((file for file in files if file.is_file()), None)

    def args(self, verb: str, stage: str, *more: str) -> list[str]:
        """The arguments of a command by a stage's config."""
        config = self.config(stage) or CONFIGS / f"{stage}.yaml"
        experiment, runs_dir = self.home.name, str(self.home.parent)
        args = [verb, "--config", str(config)]
        args += ["--experiment", experiment] if experiment != "synthetic" else []
        args += ["--runs_dir", runs_dir] if runs_dir != "runs" else []
        return [*args, *self.data, *more]

    def fit(self, stage: str, *more: str) -> str:
        """The command that trains a stage, and about how long that took before."""
        return command(self.args("fit", stage, *more)) + self.minutes(stage)

    def minutes(self, stage: str) -> str:
        """How long a run or a stage took in this experiment, else in another of the folder; or nothing."""
        homes = [self.home, *sorted(path for path in self.home.parent.glob("*") if path != self.home)]
        for home in homes:
            for folder, own in _summaries(home):
                if stage in (folder.name, own.get("stage")) and isinstance(own.get("seconds"), (int, float)):
                    return f"  # about {max(1, round(own['seconds'] / 60))} min, as {folder} took"
        return ""


def data_options(data: FacesDataModule) -> list[str]:
    """The options that give a command these data: the config that is nearest to them, and what differs."""
    taken = {
        name: one.default for name, one in signature(type(data)).parameters.items() if name not in _OF_PREDICT
    }
    mine = _effective({name: getattr(data, name) for name in taken if hasattr(data, name)})
    found = []
    for file in sorted(CONFIGS.rglob("*.yaml")):
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
        if isinstance(told, dict) and told and told.keys() <= signature(type(data)).parameters.keys():
            other = _effective({**taken, **told})
            differs = [name for name in mine if mine[name] != other[name]]
            found.append((len(differs), len(file.parts), file, differs))
    _, _, file, differs = min(
        found, default=(0, 0, None, [name for name in mine if mine[name] != taken[name]])
    )
    options = [] if file is None else ["--data", str(file)]
    return options + [part for name in differs for part in (f"--data.{name}", _text(mine[name]))]


def _effective(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the data as they are used."""
    made = {name: expand(value) if isinstance(value, str) else value for name, value in settings.items()}
    if made.get("order_seed") is None and "seed" in made:
        made["order_seed"] = made["seed"]
    return made


def _text(value: Any) -> str:  # noqa: ANN401 (any setting)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    )
