"""Lightning's command line, fitted to stages: run folders, upstream stages, resuming without surprises."""

import fcntl
import importlib
import json
import os
import pickle
import pkgutil
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from crafter_pl import callbacks as cb
from crafter_pl.cli import VERBS
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError
from crafter_pl.stages.base import Stage, load_stage

# Options of a command that its upstream stages are trained with, too (a prefix covers what is below it).
PASSED_ON = ("--data", "--experiment", "--runs_dir", "--seed_everything", "--trainer.accelerator", "--trainer.devices")
# Data settings that may change between the parts of an interrupted run: where things lie, not what they are.
FREE_DATA = {"root", "cache_dir", "max_memory_mb", "predict_split", "predict_batch_size"}


@dataclass
class Protect:
    """What `predict` hands to the defence (None: as it was trained).

    Args:
        beta: weight of utility against privacy.
        steps: outer crafting steps.
        critic: how the critic is treated during crafting (`fixed` or `per_batch`).
        seed: seed of the crafting noise.
        out: folder of the feature store.
        name: how reports call this set of features.
    """

    beta: float | None = None
    steps: int | None = None
    critic: str | None = None
    seed: int | None = None
    out: str | None = None
    name: str | None = None


def command(args: list[str]) -> str:
    """The shell command that `args` stand for."""
    return f"python -m crafter_pl {shlex.join(args)}"


def without_option(args: list[str], option: str) -> list[str]:
    """`args` less an option and its value (`--option value` or `--option=value`)."""
    kept: list[str] = []
    skip = False
    for arg in args:
        if not skip and arg != option and not arg.startswith(option + "="):
            kept.append(arg)
        skip = arg == option and not skip
    return kept


def run(args: list[str]) -> None:
    """Runs fit, validate, test or predict; `fit` trains missing upstream stages first."""
    _import_stages()
    cli = StageCLI(args)
    if args[0] == "fit":
        cli.checkpoint()  # a refusal comes before the upstream stages are trained
        if cli.finished():
            return
        todo = list(cli.missing_upstream({}).values())
        if todo and cli.multi_process:
            lines = "\n  ".join(command(job) for job in todo)
            raise UserError(f"train the upstream stages first, each with one process, in this order:\n  {lines}")
        for number, job in enumerate(todo, 1):
            _say(f"[{number}/{len(todo)}] needed by {cli.name}, and missing: {command(job)}")
            StageCLI(job).go()
    cli.go()


def audit(args: list[str]) -> None:
    """Runs `crafter_pl.audit.audit.audit` with options from the command line and from `--config` files."""
    _import_stages()
    from crafter_pl.audit.audit import audit as function

    parser = ArgumentParser(prog="crafter_pl audit", description=VERBS["audit"], exit_on_error=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a YAML file with any of these options")
    added = parser.add_function_arguments(function, fail_untyped=False)
    config = parser.instantiate_classes(parser.parse_args(args))
    function(**{name: config[name] for name in added})


def _import_stages() -> None:
    """Imports every stage, so that a config names a class without its module, and dropped-in files are found."""
    for package in ("stages", "defenses", "attacks"):
        module = importlib.import_module(f"crafter_pl.{package}")
        for info in pkgutil.iter_modules(module.__path__):
            importlib.import_module(f"{module.__name__}.{info.name}")


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


class StageCLI(LightningCLI):
    """Parses one command; nothing is built before `go`."""

    def __init__(self, args: list[str]) -> None:
        self.args, self.verb = args, args[0]
        quiet: dict[str, Any] = {"exit_on_error": False}
        super().__init__(
            model_class=Stage,
            subclass_mode_model=True,
            datamodule_class=FacesDataModule,
            save_config_callback=cb.SaveConfig,
            seed_everything_default=0,
            # Trained ones must act on gradients (crafting) and deal their own batches (data/datamodule.py).
            trainer_defaults={"inference_mode": False, "use_distributed_sampler": False},
            parser_kwargs={**quiet, self.verb: {**quiet, "description": VERBS[self.verb]}},
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # stages save plain init arguments, which load anywhere
        )

    # ---- parsing -----------------------------------------------------------------------------------------------------
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verb at hand alone: building the other parsers takes time."""
        return {self.verb: super().subcommands()[self.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds where runs are kept, and for predict the options of the defence."""
        parser.add_argument("--experiment", default="synthetic", help="folder of runs that belong together")
        parser.add_argument("--name", type=str | None, help="folder of this run (default: the stage's own name)")
        parser.add_argument("--runs_dir", default="runs", help="folder of all experiments")
        if self.verb == "predict":
            parser.add_class_arguments(Protect, "protect")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 (as the base class)
        """Parses `args`; unlike the base class it does not warn where a program calls `main([...])`."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Leaves the settings alone: the base class would let a checkpoint's settings replace those given."""

    def before_instantiate_classes(self) -> None:
        """Finds the stage, its folder and the default checkpoints of its upstream stages."""
        self.options: Namespace = self.config[self.verb]
        module, _, name = self.options.model.class_path.rpartition(".")
        self.stage: type[Stage] = getattr(importlib.import_module(module), name)
        self.name: str = self.options.name or self.stage.stage_name
        self.experiment_dir = Path(self.options.runs_dir, self.options.experiment)
        self.run_dir = self.experiment_dir / self.name
        self.upstream: dict[str, Path] = {}
        init = self.options.model.get("init_args") or Namespace()
        for key in [key for key, value in init.items() if key.endswith("_ckpt") and value is None]:
            upstream = key.removesuffix("_ckpt")
            self.upstream[upstream] = self.experiment_dir / upstream
            init[key] = str(self.experiment_dir / upstream / "checkpoints" / "best.ckpt")

    def instantiate_classes(self) -> None:
        """Waits for `go`: upstream stages may have to be trained first."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Waits for `go`."""

    # ---- upstream stages ---------------------------------------------------------------------------------------------
    @property
    def multi_process(self) -> bool:
        """Whether this command runs, or will start, more than one process."""
        world = max(int(os.environ.get(name) or 1) for name in ("WORLD_SIZE", "SLURM_NTASKS"))
        trainer = self.options.trainer
        devices = str(trainer.devices)
        if devices in ("auto", "-1"):
            count = torch.cuda.device_count()
        else:
            count = len(devices.strip("[], ").split(",")) if not devices.isdigit() else int(devices)
        return world > 1 or int(trainer.num_nodes) > 1 or count > 1

    def missing_upstream(self, found: dict[Path, list[str]]) -> dict[Path, list[str]]:
        """The commands that train the unfinished upstream stages, by run folder, in the order to run them."""
        for stage, folder in self.upstream.items():
            if (folder / "summary.json").is_file() or folder in found:
                continue
            cli = StageCLI(self.upstream_command(stage))
            if cli.run_dir != folder:
                raise UserError(f"{command(cli.args)} would write {cli.run_dir}, but {self.name} needs it in {folder}")
            cli.missing_upstream(found)
            found[folder] = cli.args
        return found

    def upstream_command(self, stage: str) -> list[str]:
        """The arguments that train an upstream stage with the data, places and devices of this command."""
        configs = [Path(str(path)) for path in self.options.get("config") or []]
        folders = [folder for path in configs for folder in (path.parent, path.parent.parent)]
        config = next((folder / f"{stage}.yaml" for folder in folders if (folder / f"{stage}.yaml").is_file()), None)
        if config is None:
            places = ", ".join(dict.fromkeys(str(folder) for folder in folders)) or "no --config was given"
            raise UserError(
                f"{self.name} needs the stage {stage!r}, which is not in {self.experiment_dir}, and there is no "
                f"{stage}.yaml to train it with ({places}): train it first, or name its checkpoint by "
                f"--model.init_args.{stage}_ckpt PATH"
            )
        args = ["fit", "--config", str(config), *self._passed_on()]
        last = self.experiment_dir / stage / "checkpoints" / "last.ckpt"
        return [*args, "--ckpt_path", "last"] if last.is_file() else args

    def _passed_on(self) -> list[str]:
        kept = ["--experiment", self.options.experiment]
        if self.options.runs_dir != "runs":
            kept += ["--runs_dir", self.options.runs_dir]
        wanted = [name for name in PASSED_ON if name not in ("--experiment", "--runs_dir")]
        args = iter(self.args[1:])
        for arg in args:
            name, has_value, _ = arg.partition("=")
            if any(name == option or name.startswith(option + ".") for option in wanted):
                kept += [arg] if has_value else [arg, next(args, "")]
        return kept

    # ---- running -----------------------------------------------------------------------------------------------------
    def go(self) -> None:
        """Builds everything and runs the verb."""
        with _lock(self.run_dir) if self.verb == "fit" else nullcontext():
            checkpoint = self.checkpoint()
            if self.finished():
                return
            self._set_seed()  # again: what was parsed or trained since then has drawn numbers
            self.model = self._model(checkpoint)
            self.model.run_dir, self.model.experiment_dir = self.run_dir, self.experiment_dir
            self.trainer = self.instantiate_trainer(**self._trainer_options())
            if self.verb == "fit":
                self.trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
                self.finished()
            elif self.verb == "predict":
                self.trainer.predict(self.model, self.datamodule, return_predictions=False)
            else:
                getattr(self.trainer, self.verb)(self.model, self.datamodule)

    def finished(self) -> bool:
        """Whether `fit` has nothing left to do; says so."""
        path = self.run_dir / "summary.json"
        if self.verb != "fit" or not path.is_file():
            return False
        summary = json.loads(path.read_text(encoding="utf-8"))
        wanted, done = self.options.trainer.max_epochs, summary["max_epochs"]
        if wanted is not None and done is not None and 0 <= done < wanted:
            return False
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in summary["metrics"].items())
        cost = f"{summary['epochs']} epochs, {summary['seconds']:.0f} s"
        _say(f"{self.name} is finished ({cost}) in {self.run_dir}: {metrics}")
        return True

    def checkpoint(self) -> Path | None:
        """The checkpoint to start from; None: train from the beginning.

        Raises:
            UserError: `fit` would overwrite a run or go on with other settings than it began with, or there is no
                checkpoint for the other verbs.
        """
        folder, given = self.run_dir / "checkpoints", self.options.ckpt_path
        path = folder / f"{given}.ckpt" if given in ("last", "best") else Path(given) if given else None
        if self.verb != "fit":
            path = path or folder / "best.ckpt"
            if not path.is_file():
                configs = [part for file in self.options.get("config") or [] for part in ("--config", str(file))]
                train = command(["fit", *configs, *self._passed_on()])
                raise UserError(f"no checkpoint {path}: train {self.name} first ({train}), or give --ckpt_path FILE")
            return path
        if any(folder.glob("*.ckpt")) and (path is None or path.parent.resolve() != folder.resolve()):
            resume = command([*without_option(self.args, "--ckpt_path"), "--ckpt_path", "last"])
            raise UserError(
                f"{self.run_dir} holds a run already: go on with it ({resume}), "
                "choose another --experiment or --name, or delete the folder"
            )
        if given == "last" and path is not None and not path.is_file():
            return None
        if path is not None:
            self._compare(path)
        return path

    def _compare(self, path: Path) -> None:
        """Refuses to go on with a checkpoint of another stage, or with other settings."""
        saved = _read(path).get("config")
        if saved is None:
            raise UserError(f"{path} was not written by crafter_pl fit: it cannot be resumed")
        if saved["model"]["class_path"] != self.options.model.class_path:
            raise UserError(
                f"{path} is a checkpoint of {saved['model']['class_path']}, this config trains "
                f"{self.options.model.class_path}; upstream stages are given by --model.init_args.<stage>_ckpt"
            )
        lines = self._differences(saved)
        if lines:
            raise UserError(
                f"{path} was trained with other settings; give the same, or start another --experiment:\n  "
                + "\n  ".join(lines)
            )

    def _differences(self, saved: dict[str, Any]) -> list[str]:
        """Settings of the model and the data that differ from a checkpoint's.

        Upstream paths are left out: the stage itself compares the files' SHA-256 (`Stage.on_load_checkpoint`).
        """
        lines = []
        for part, old in (("model", saved["model"].get("init_args") or {}), ("data", saved["data"])):
            new = self.options[part].get("init_args") or {} if part == "model" else self.options.data
            new = _plain(new)
            for key in sorted({*old, *new}):
                free = key.endswith("_ckpt") if part == "model" else key in FREE_DATA
                if not free and old.get(key) != new.get(key):
                    lines.append(f"{part}.{key}: {old.get(key)!r} in the checkpoint, {new.get(key)!r} here")
        return lines

    def _model(self, checkpoint: Path | None) -> Stage:
        """The stage from the config for `fit`; from its own checkpoint alone for the other verbs."""
        config = self.config.clone()
        if self.verb != "fit":
            assert checkpoint is not None  # `checkpoint()` has raised otherwise
            model: Stage = load_stage(checkpoint, self.stage)
            self._refuse_ignored(checkpoint)
            config[self.verb].model = None
        self.config_init = self.parser.instantiate_classes(config)
        self.datamodule = self.config_init[self.verb].data
        if self.verb == "fit":
            model = self.config_init[self.verb].model
        elif self.verb == "predict":
            model.protect_options = asdict(self.config_init.predict.protect)
        return model

    def _refuse_ignored(self, checkpoint: Path) -> None:
        """Says which settings of the config do not count, because the checkpoint's do; refuses them as options."""
        lines = [line for line in self._differences(_read(checkpoint)["config"]) if line.startswith("model.")]
        if lines and any(arg.startswith("--model") for arg in self.args):
            raise UserError(f"{self.verb} uses the settings in {checkpoint}, not --model's:\n  " + "\n  ".join(lines))
        for line in lines:
            _say(f"note: the checkpoint's own setting is used: {line}")

    def _trainer_options(self) -> dict[str, Any]:
        """What the trainer gets beside the config's own settings: logger, callbacks, checkpoint writer."""
        given, folder = self.options.trainer, self.run_dir
        seed = self.options.seed_everything
        more: list[Any] = []
        if self.verb == "fit" and not given.fast_dev_run:
            more = [
                cb.EpochSeed(torch.initial_seed() if seed is False else seed),
                cb.Summary(folder / "summary.json"),
                cb.MetricsCSV(folder / "metrics.csv"),
                cb.BestAndLast(folder / "checkpoints", self.stage.monitor, self.stage.mode),
            ]
        bar = given.enable_progress_bar is not False
        if bar:
            more.insert(0, TQDMProgressBar(10) if sys.stderr.isatty() else cb.LineProgress(f"{self.verb} {self.name}"))
        self.save_config_kwargs = {"folder": folder, "verb": self.verb}
        init = self.config_init[self.verb].trainer
        logger = TensorBoardLogger(str(folder), name="", version="", default_hp_metric=False)
        return {
            "default_root_dir": str(folder),
            "logger": logger if given.logger is None else init.logger,
            "callbacks": [*_as_list(init.callbacks), *more],
            "plugins": [*_as_list(init.plugins), cb.AtomicCheckpointIO()],
            "enable_progress_bar": bar and sys.stderr.isatty(),
            "enable_checkpointing": self.verb == "fit" and not given.fast_dev_run,
            "enable_autolog_hparams": False,  # <verb>.yaml has them all; Lightning's merge fails on equal names
        }


def _as_list(value: Any) -> list[Any]:  # noqa: ANN401 (Trainer takes one or many)
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _plain(value: Any) -> dict[str, Any]:  # noqa: ANN401 (a Namespace or a dict)
    return value.as_dict() if isinstance(value, Namespace) else dict(value)


def _read(path: Path) -> dict[str, Any]:
    """Reads a checkpoint on the CPU."""
    if not path.is_file():
        raise UserError(f"no checkpoint {path}")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is no readable checkpoint ({str(error).splitlines()[0]})") from error
    return content


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lets one process (and its helpers) train in a folder; the system lifts the lock when the process dies."""
    if rank_zero_only.rank != 0:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}: wait for it, or choose another --experiment") from None
        yield
