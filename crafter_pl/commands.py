"""Commands as lists of arguments: shown, resumed, handed on; those that train what an experiment lacks.

No torch here.
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar

import yaml

from crafter_pl.errors import UserError
from crafter_pl.files import expand, read_json

T = TypeVar("T")
SHIPPED = Path(__file__).parent / "configs"  # in a clone a link
CONFIGS = Path("configs") if Path("configs").is_dir() else SHIPPED
running: ContextVar[list[str]] = ContextVar("running")  # arguments of the command that runs


def command(args: list[str]) -> str:
    """The shell command that `args` stand for."""
    return f"python -m crafter_pl {shlex.join(args)}"


def origin() -> dict[str, str]:
    """What a report comes from: the command that runs and the code's commit, as far as they are known.

    A commit ends with ``-dirty`` where files differ from it; outside a clone there is none.
    """
    args, root = running.get([]), Path(__file__).parents[1]
    found = {"command": command(args)} if args else {}
    if (root / ".git").exists():
        words = "describe --always --dirty --abbrev=12 --exclude=*".split()
        try:
            said = subprocess.run(
                ["git", "--no-optional-locks", "-C", root, *words], capture_output=True, text=True
            ).stdout.strip()
        except OSError:  # no git
            said = ""
        found |= {"commit": said} if said else {}
    return found


def pairs(args: list[str]) -> Iterator[tuple[str, str]]:
    """Each word of `args` with the value that it has as an option: `--option value` or `--option=value`."""
    for word, after in zip(args, [*args[1:], ""], strict=True):
        name, _, own = word.partition("=")
        yield name, own or after


def shipped(given: str) -> str:
    """A config or a folder of such as it is given; where there is none, this package's own of that name.

    Args:
        given: a path, such as ``configs/crafter.yaml``, or a config's name, such as ``crafter``.
    """
    if Path(given).exists():
        return given
    name = given.removeprefix("configs/")
    own = (f"{name}.yaml", name) if name == given else (name,)
    found = (folder / one for folder in (CONFIGS, SHIPPED) for one in own)
    return next((str(one) for one in found if one.exists()), given)


def configs(args: list[str]) -> list[Path]:
    """The config files that `args` name, in their order."""
    return [Path(value) for name, value in pairs(args) if name in ("--config", "-c")]


def with_bases(args: list[str]) -> list[str]:
    """`args` with, before each config, the one that it builds on: its entry `base`, a path beside it.

    Raises:
        UserError: a base is missing, or builds on itself.
    """
    before = [part for file in configs(args) for base in _bases(file, [file]) for part in ("--config", base)]
    return [*args[:1], *before, *args[1:]]


def _bases(file: Path, above: list[Path]) -> list[str]:
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    if not isinstance(content, dict) or content.get("base") is None:
        return []
    base = file.parent / str(content["base"])
    if not base.is_file() or base.resolve() in [one.resolve() for one in above]:
        wrong = "builds on it" if base.is_file() else "is missing"
        raise UserError(f"{file}: its base {base} {wrong}; name another")
    return [*_bases(base, [*above, base]), str(base)]


def overlays(args: list[str]) -> list[str]:
    """Those configs among `args` that are of no stage: upstream stages get them, too."""
    return [
        part
        for file in dict.fromkeys(configs(args))
        if not (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).keys() & {"model", "base", "name"}
        for part in ("--config", str(file))
    ]


def without(args: list[str], *options: str) -> list[str]:
    """`args` without some options and their values."""
    return [
        arg
        for before, arg in zip(["", *args], args, strict=False)
        if before not in options and arg.partition("=")[0] not in options
    ]


def resume_command(args: list[str]) -> str:
    """The shell command that goes on where `args` (of a `fit`) stopped."""
    return command([*without(args, "--ckpt_path"), "--ckpt_path", "last"])


def passed_on(args: list[str]) -> list[str]:
    """Those of `args` that upstream stages get, too: `--option value` or `--option=value`.

    The order of the pictures is each training's own.
    """
    passed = r"--(data|seed_everything|trainer\.(accelerator|devices|precision))(\..*)?"
    return [
        part
        for arg, (name, value) in zip(args, pairs(args), strict=True)
        if re.fullmatch(passed, name) and name != "--data.order_seed"
        for part in ([arg] if "=" in arg else [arg, value])
    ]


def listed(value: list[T] | T | None) -> list[T]:
    """The value of an option that takes one or many: one is a list of one, none an empty list."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


# What an experiment lacks


def trained(home: Path, stage: str) -> list[Path]:
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
        data: the settings of its data, see `settings_of`.
    """

    home: Path
    data: dict[str, Any] = field(default_factory=dict)

    def config(self, stage: str) -> Path | None:
        """The config of a stage: the experiment's own, for photographs CelebA's, or the one for all."""
        photographs = self.data.get("source", "synthetic") != "synthetic"
        folders = [CONFIGS / self.home.name, *[CONFIGS / "celeba"] * photographs, CONFIGS]
        files = (folder / part / f"{stage}.yaml" for folder in folders for part in (".", "attacks"))
        return next(filter(Path.is_file, files), None)

    def args(self, verb: str, stage: str, *more: str) -> list[str]:
        """The arguments of a command by a stage's config."""
        experiment, runs_dir = self.home.name, str(self.home.parent)
        return [
            *(verb, "--config", str(self.config(stage) or CONFIGS / f"{stage}.yaml")),
            *(["--experiment", experiment] if experiment != "synthetic" else []),
            *(["--runs_dir", runs_dir] if runs_dir != "runs" else []),
            *(data_options(self.data) if self.data else []),
            *more,
        ]

    def fit(self, stage: str, *more: str) -> str:
        """The command that trains a stage, and about how long that took before."""
        run = more[more.index("--name") + 1] if "--name" in more else stage
        begun = (self.home / run / "checkpoints" / "last.ckpt").is_file()
        return command(self.args("fit", stage, *more, *["--ckpt_path", "last"] * begun)) + self.minutes(stage)

    def minutes(self, stage: str) -> str:
        """How long a run or a stage took in this experiment, else in another of the folder; or nothing."""
        for home in [self.home, *sorted(path for path in self.home.parent.glob("*") if path != self.home)]:
            for folder, own in _summaries(home):
                if stage in (folder.name, own.get("stage")) and isinstance(own.get("seconds"), (int, float)):
                    return f"  # about {max(1, round(own['seconds'] / 60))} min, as {folder} took"
        return ""


def settings_of(data: object) -> dict[str, Any]:
    """The settings that a `FacesDataModule` was made with and trainings hang on, for `Commands`."""
    return {
        name: getattr(data, name)
        for name in signature(type(data)).parameters
        if not name.startswith("predict_")
    }


def data_options(settings: dict[str, Any]) -> list[str]:
    """The options that give a command these data: the config that is nearest to them, and what differs."""
    from crafter_pl.data.datamodule import FacesDataModule

    default = {name: one.default for name, one in signature(FacesDataModule).parameters.items()}
    mine, found = _effective(settings), []
    for file in [None, *sorted(CONFIGS.rglob("*.yaml"))]:
        given = {} if file is None else yaml.safe_load(file.read_text(encoding="utf-8"))
        if file is None or (isinstance(given, dict) and given and given.keys() <= default.keys()):
            other = _effective({**default, **given})
            differs = [name for name in mine if mine[name] != other[name]]
            found.append((file is None, len(differs), ["--data", str(file)] if file else [], differs))
    _, _, options, differs = min(found, key=lambda one: one[:2])
    return options + [part for name in differs for part in (f"--data.{name}", yaml_text(mine[name]))]


def _effective(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the data as they are used."""
    made = {name: expand(value) if isinstance(value, str) else value for name, value in settings.items()}
    if made.get("order_seed") is None and "seed" in made:
        made["order_seed"] = made["seed"]
    return made


def yaml_text(value: Any) -> str:  # noqa: ANN401 (any setting)
    """A value on one line of YAML."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    )
