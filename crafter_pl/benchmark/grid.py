"""The grid of a benchmark: which defences with which settings, and the commands that each cell stands for."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from crafter_pl.errors import UserError

SCENARIO = "training_scenario"  # the config of the cloud classifier that learns from protected features


def check_files(**given: str | None) -> None:
    """Refuses configs, by their options, that are not there.

    Raises:
        UserError: one is not.
    """
    for name, file in given.items():
        if file is not None and not Path(file).is_file():
            raise UserError(f"there is no config {file} of the {name} (--{name} FILE)")


@dataclass
class Defended:
    """One line of the grid: a defence and the values of its settings; every combination is a cell.

    Args:
        stage: its config's name, ``noise`` for ``noise.yaml``.
        fit: init arguments that it is trained with (``{scale: [0.5, 1]}``); a list holds values to be tried.
        protect: options of `predict` (``{beta: [0.1, 1]}``), likewise.
        attack: options of the `fit` of the attackers, where they can do more than with others: whoever has a
            cheap defence makes as many pairs as there are public faces.
        training: also in the training scenario.
    """

    stage: str
    fit: dict[str, Any] = field(default_factory=dict)
    protect: dict[str, Any] = field(default_factory=dict)
    attack: dict[str, Any] = field(default_factory=dict)
    training: bool = True


@dataclass(frozen=True)
class Place:
    """Where configs and runs are.

    Args:
        configs: folder of the stages' configs.
        experiment: folder of the runs under ``runs_dir``.
        runs_dir: folder of all runs.
        data: config of the data of every command; None leaves that to the stages' configs.
        fit_options: options of the `fit` of a stage, by the stage's name.
    """

    configs: Path
    experiment: str
    runs_dir: Path
    data: str | None = None
    fit_options: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The experiment's folder."""
        return self.runs_dir / self.experiment

    @property
    def shared(self) -> list[str]:
        """Options of every command."""
        own = [] if self.data is None else ["--data", self.data]
        return ["--experiment", self.experiment, "--runs_dir", str(self.runs_dir), *own]

    def checkpoint(self, run: str) -> str:
        """The checkpoint of a run."""
        return str(self.home / run / "checkpoints" / "best.ckpt")

    def command(self, verb: str, stage: str, run: str | None, options: dict[str, Any]) -> list[str]:
        """`python -m crafter_pl` these arguments; ``run`` None leaves the name to the config.

        Raises:
            UserError: there is no config of that stage.
        """
        args = [verb, "--config", str(self.config(stage)), *self.shared]
        args += [] if run is None else ["--name", run]
        if verb == "fit":
            args += ["--ckpt_path", "last"]
            options = {**self.fit_options.get(stage, {}), **options}
        return [*args, *flags(options)]

    def upstream(self, args: list[str]) -> list[str]:
        """A `fit` that another stage asks for, with that stage's own options and so that it goes on."""
        config = Path(args[args.index("--config") + 1])
        own = [options for stage, options in self.fit_options.items() if self.config(stage) == config]
        last = [] if "--ckpt_path" in args else ["--ckpt_path", "last"]
        return [*args, *last, *(flag for options in own for flag in flags(options))]

    def config(self, stage: str) -> Path:
        """The config of a stage.

        Raises:
            UserError: there is none.
        """
        config = self.configs / f"{stage}.yaml"
        if not config.is_file():
            raise UserError(f"there is no config {config} for the stage {stage!r} (--configs FOLDER)")
        return config


@dataclass(frozen=True)
class Cell:
    """One defence with one setting and one seed.

    Attributes:
        name: of its runs and stores.
        run: of the defence's own `fit`, which cells may share.
        title: for tables.
        line: of the grid.
        fit: init arguments.
        protect: options of `predict`.
        seed: of training and of the crafting noise.
    """

    name: str
    run: str
    title: str
    line: Defended
    fit: dict[str, Any]
    protect: dict[str, Any]
    seed: int

    def fitted(self, place: Place) -> list[str]:
        """The command that trains the defence."""
        options = {f"model.init_args.{key}": value for key, value in self.fit.items()}
        return place.command("fit", self.line.stage, self.run, _seeded(options, self.seed))

    def store(self, place: Place, part: str = "private_test") -> str:
        """Its feature store of a part of the data."""
        return str(place.home / self.run / "features" / f"{part}-{self.name}")

    def protected(self, place: Place, part: str = "private_test") -> list[str]:
        """The command that protects a part of the data."""
        options = {
            **{f"protect.{key}": value for key, value in self.protect.items()},
            **({"protect.seed": self.seed} if self.seed else {}),
            "protect.out": self.store(place, part),
            "data.predict_split": part,
        }
        return place.command("predict", self.line.stage, self.run, options)

    def attacked(self, place: Place, attacker: str) -> tuple[str, list[str]]:
        """The run of an attack that adapts to it, and the command that trains it."""
        run = f"{Path(attacker).name}-{self.name}"
        options = {
            "model.init_args.defense_ckpt": place.checkpoint(self.run),
            **{f"model.init_args.protect.{key}": value for key, value in self.protect.items()},
            **self.line.attack,
        }
        return run, place.command("fit", attacker, run, _seeded(options, self.seed))

    def cloud(self, place: Place) -> tuple[str, list[str]]:
        """The run of the cloud classifier that learns from it, and the command that trains it."""
        stores = {"train_store": "private_train", "test_store": "private_test"}
        options = {f"model.init_args.{key}": self.store(place, part) for key, part in stores.items()}
        run = f"cloud-{self.name}"
        return run, place.command("fit", SCENARIO, run, _seeded(options, self.seed))


def cells(lines: list[Defended], seeds: list[int]) -> list[Cell]:
    """Every combination of the lines' settings, for every seed.

    Raises:
        UserError: there is nothing, or two cells are the same.
    """
    if not lines or not seeds:
        raise UserError("a benchmark needs defences and seeds: give --defenses and --seeds")
    found = []
    for seed, line in product(seeds, lines):
        for fit, protect in product(_combinations(line.fit), _combinations(line.protect)):
            tail = f"-seed{seed}" if seed else ""
            run = "-".join([line.stage, *_words(fit)])
            name = "-".join([run, *_words(protect)])
            said = [f"{key.rstrip('_')} {option(value)}" for key, value in {**fit, **protect}.items()]
            title = f"{line.stage} ({', '.join(said)})" if said else line.stage
            found.append(Cell(name + tail, run + tail, title, line, fit, protect, seed))
    if not found:
        raise UserError("the benchmark's grid is empty: a setting has no values (--defenses)")
    names = [cell.title + (f", seed {cell.seed}" if cell.seed else "") for cell in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two cells of the benchmark are the same: {', '.join(twice)} (--defenses, --seeds)")
    return found


def _combinations(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Every choice of values, the settings by name: a cell has one name however they are written."""
    settings = dict(sorted(settings.items()))
    values = [value if isinstance(value, list) else [value] for value in settings.values()]
    return [dict(zip(settings, choice, strict=True)) for choice in product(*values)]


def _words(settings: dict[str, Any]) -> list[str]:
    """What a setting adds to a name: ``beta0.1``, and a word for itself."""
    return [
        value if isinstance(value, str) else f"{key.rpartition('.')[2].rstrip('_')}{option(value)}"
        for key, value in settings.items()
    ]


def flags(options: dict[str, Any]) -> list[str]:
    """Options as the command line takes them."""
    return [part for key, value in options.items() for part in (f"--{key}", option(value))]


def option(value: Any) -> str:  # noqa: ANN401 (any setting)
    """A setting as the command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(option, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seeded(options: dict[str, Any], seed: int) -> dict[str, Any]:
    return {"seed_everything": seed, "data.order_seed": seed, **options} if seed else options
