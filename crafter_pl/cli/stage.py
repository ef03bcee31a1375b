"""Lightning's command line, fitted to stages: run folders, upstream stages, the trainer's callbacks."""

import importlib
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment

from crafter_pl.cli import callbacks as cb
from crafter_pl.cli import options, resume
from crafter_pl.cli.entry import VERBS
from crafter_pl.commands import command, passed_on, resume_command, without
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses.base import Defense, defenses
from crafter_pl.defenses.options import declare
from crafter_pl.defenses.predict import FeatureWriter, Protecting
from crafter_pl.errors import UserError
from crafter_pl.files import lock
from crafter_pl.nets import bf16_is_slow
from crafter_pl.plugins import import_stages
from crafter_pl.processes import rank
from crafter_pl.progress import Board, LineProgress
from crafter_pl.stages.base import Stage, load_stage, named_run

# Trainer options that are not the user's: run folders and checkpoints are what stages find each other by.
OURS = {
    "default_root_dir",
    "enable_checkpointing",
    "enable_autolog_hparams",
    "model_registry",
    "barebones",
}


Loaded = dict[str, FacesDataModule]


def run(args: list[str]) -> None:
    """Runs fit, validate, test or predict; `fit` trains missing upstream stages first."""
    import_stages()
    cli = StageCLI(args)
    loaded: Loaded = {}
    if args[0] == "fit":
        cli.checkpoint()  # a refusal comes before upstream stages are trained
        todo = [] if cli.finished() else list(cli.missing_upstream({}).values())
        if todo and cli.multi_process:
            head = "several processes cannot share the training of upstream stages: first run, in this order,"
            one = [without(job, "--trainer.devices", "--trainer.num_nodes") for job in todo]
            raise UserError("\n  ".join([head, *(command([*job, "--trainer.devices", "1"]) for job in one)]))
        for number, job in enumerate(todo, 1):
            _say(f"[{number}/{len(todo)}] needed by {cli.name}, and missing: {command(job)}")
            StageCLI(job).go(loaded)
    cli.go(loaded)


def protecting(args: list[str]) -> tuple[type[Defense[Any]], set[str]]:
    """The class of defence that unparsed arguments name, in a config or as an option, and its options."""
    found, told = "Defense", set()
    for word, value in zip(args, [*args[1:], ""], strict=True):
        name, _, own = word.partition("=")
        value = own or value
        if name in ("--config", "-c") and Path(value).is_file():
            config = yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}
            model = config.get("model")
            found = str(model.get("class_path", found) if isinstance(model, dict) else model or found)
            told |= set(config.get("protect") or {})
        elif name in ("--model", "--model.class_path"):
            found = value
        elif name.startswith("--protect."):
            told.add(name.removeprefix("--protect."))
    return defenses().get(found.rpartition(".")[2], Defense), told


def _say(text: str) -> None:
    if rank() == 0:
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
            # Crafting needs gradients in predict; data/datamodule.py deals batches to processes itself.
            trainer_defaults={
                "inference_mode": False,
                "use_distributed_sampler": False,
                "devices": 1,
                "log_every_n_steps": 20,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,
            },
            parser_kwargs={
                **quiet,
                "prog": "crafter_pl",
                self.verb: {**quiet, "description": VERBS[self.verb]},
            },
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # stages save plain init arguments, which load anywhere
        )

    # Parsing

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verb at hand alone: building the other parsers takes time."""
        return {
            self.verb: super().subcommands()[self.verb] | {"ckpt_path", "weights_only", "return_predictions"}
        }

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the trainer, the stage and the data."""
        parser.add_class_arguments(
            self.trainer_class, "trainer", instantiate=False, sub_configs=True, skip=OURS
        )
        parser.set_defaults({f"trainer.{name}": value for name, value in self.trainer_defaults.items()})
        parser.add_lightning_class_args(Stage, "model", subclass_mode=True)
        parser.add_lightning_class_args(FacesDataModule, "data")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds where runs are kept, which checkpoint to start from, and for predict the defence's options."""
        parser.add_argument("--experiment", default="synthetic", help="folder of runs that belong together")
        parser.add_argument(
            "--name", type=str | None, help="folder of this run (default: the stage's own name)"
        )
        parser.add_argument("--runs_dir", default="runs", help="folder of all experiments")
        start = (
            "`last` (or a file like it): go on with this run where it stopped"
            if self.verb == "fit"
            else "checkpoint: a file, `last` or `best`; default: the run's best"
        )
        parser.add_argument("--ckpt_path", type=str | None, help=start)
        if self.verb == "predict":
            parser.add_argument("--protect.out", type=str | None, help="folder of the feature store")
            parser.add_argument("--protect.name", type=str | None, help="how reports call these features")
            defense, told = protecting(self.args)
            defense.refuse_unknown(told - {"out", "name"})
            declare(parser, defense.options_class)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 (as inherited)
        """Parses and checks `args`; unlike the inherited method, without a warning in a program."""
        self.config = options.expanded(parser.parse_args(args))
        self.options: Namespace = self.config[self.verb]
        module, _, name = self.options.model.class_path.rpartition(".")
        self.stage: type[Stage] = getattr(importlib.import_module(module), name)
        options.check(self.verb, self.options, self.stage.monitor)

    def _parse_ckpt_path(self) -> None:
        """Leaves the settings alone: the inherited method replaces those given by the checkpoint's."""

    def before_instantiate_classes(self) -> None:
        """Finds the stage, its folder and the default checkpoints of its upstream stages."""
        self.name: str = self.options.name or self.stage.stage_name
        self.experiment_dir = Path(self.options.runs_dir, self.options.experiment)
        self.run_dir = self.experiment_dir / self.name
        self.upstream: dict[str, Path] = {}
        init = self.options.model.get("init_args") or Namespace()
        for key, value in [pair for pair in init.items() if pair[0].endswith("_ckpt")]:
            upstream = named_run(key.removesuffix("_ckpt"), value)
            if upstream is None:
                continue
            self.upstream[upstream] = self.experiment_dir / upstream
            init[key] = str(self.experiment_dir / upstream / "checkpoints" / "best.ckpt")

    def instantiate_classes(self) -> None:
        """Waits for `go`: upstream stages may have to be trained first."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Waits for `go`."""

    def _settings(self) -> dict[str, Any]:
        text = self._parser(self.verb).dump(self.options, skip_unset=False)
        settings: dict[str, Any] = yaml.safe_load(text)
        return settings

    # Upstream stages

    @property
    def multi_process(self) -> bool:
        """Whether this command runs, or will start, more than one process."""
        world = int(os.environ.get("WORLD_SIZE") or 1)
        if SLURMEnvironment.detect():  # as Lightning decides it: not in an interactive allocation
            world = max(world, int(os.environ["SLURM_NTASKS"]))
        count = options.device_count(self.options.trainer)
        return world > 1 or int(self.options.trainer.num_nodes) > 1 or count > 1

    def missing_upstream(self, found: dict[Path, list[str]]) -> dict[Path, list[str]]:
        """Adds to `found` the commands that train unfinished upstream stages, in the order to run them."""
        for stage, folder in self.upstream.items():
            if resume.summary(folder) is not None or folder in found:
                continue
            cli = StageCLI(self.upstream_command(stage))
            if cli.run_dir != folder:
                raise UserError(
                    f"{command(cli.args)} would write {cli.run_dir}, {self.name} needs it in {folder}"
                )
            other = resume.data_differences(cli._settings(), self._settings(), stage)
            if other:
                head = f"{command(cli.args)} would train {stage} on other data than {self.name}:"
                raise UserError("\n  ".join([head, *other]))
            cli.missing_upstream(found)
            found[folder] = cli.args
        return found

    def upstream_command(self, stage: str) -> list[str]:
        """Trains an upstream stage with the data, places and devices of this command."""
        configs = [Path(str(path)) for path in self.options.get("config") or []]
        folders = [
            folder
            for path in configs
            for folder in (path.parent, path.parent.parent, path.parent / "attacks")
        ]
        config = next(
            (folder / f"{stage}.yaml" for folder in folders if (folder / f"{stage}.yaml").is_file()), None
        )
        if config is None:
            places = ", ".join(dict.fromkeys(str(folder) for folder in folders)) or "no --config was given"
            raise UserError(
                f"{self.name} needs the stage {stage!r}, which is not in {self.experiment_dir}, and there "
                f"is no {stage}.yaml to train it with ({places}): train it first, or name its checkpoint by "
                f"--model.init_args.{stage}_ckpt PATH"
            )
        last = self.experiment_dir / stage / "checkpoints" / "last.ckpt"
        start = ["--ckpt_path", "last"] if last.is_file() else []
        return ["fit", "--config", str(config), *self._passed_on(), *start]

    def _passed_on(self) -> list[str]:
        runs_dir = [] if self.options.runs_dir == "runs" else ["--runs_dir", self.options.runs_dir]
        return ["--experiment", self.options.experiment, *runs_dir, *passed_on(self.args)]

    # Running

    def ended(self) -> bool:
        """Whether `fit` has nothing left to do.

        Raises:
            UserError: what is there was trained with other settings.
        """
        line = self._last_line()
        if line:
            self.checkpoint()
        return line is not None

    def finished(self) -> bool:
        """The same; says so."""
        line = self._last_line()
        if line:
            _say(f"{self.name} {line}")
        return line is not None

    def stopped_early(self) -> None:
        """Says how to go on with a run that a limit or a callback has ended.

        Raises:
            UserError: it has not finished a single epoch.
        """
        if self.options.trainer.fast_dev_run:
            _say(f"{self.name}: fast_dev_run, nothing is kept")
            return
        limits = ("--trainer.max_time", "--trainer.max_steps")
        longer = without(self.args, *limits)
        if not (self.run_dir / "checkpoints" / "last.ckpt").is_file():
            raise UserError(
                f"{self.name} was stopped before its first epoch was finished, so nothing is kept; without "
                f"what stopped it: {command(longer)}"
            )
        done, of = self.trainer.fit_loop.epoch_progress.current.completed, self.trainer.max_epochs
        _say(
            f"{self.name} was stopped early, after {done} of {of} epochs, and is not finished: go on without "
            f"what stopped it ({resume_command(longer)})"
        )

    def _last_line(self) -> str | None:
        if self.verb != "fit":
            return None
        return resume.finished(self.run_dir, self.options.trainer.max_epochs)

    def checkpoint(self) -> Path | None:
        """The checkpoint to start from; None: train from the beginning.

        Raises:
            UserError: `fit` would overwrite a run or go on with other settings than it began with, or there
                is no checkpoint for the other verbs.
        """
        folder, given = self.run_dir / "checkpoints", self.options.ckpt_path
        path = folder / f"{given}.ckpt" if given in ("last", "best") else Path(given) if given else None
        if self.verb != "fit":
            path = path or folder / "best.ckpt"
            if not path.is_file():
                configs = [
                    part for file in self.options.get("config") or [] for part in ("--config", str(file))
                ]
                train = command(["fit", *configs, *self._passed_on()])
                raise UserError(
                    f"no checkpoint {path}: train {self.name} first ({train}), or give --ckpt_path FILE"
                )
            return path
        if any(folder.glob("*.ckpt")) and (path is None or path.parent.resolve() != folder.resolve()):
            raise UserError(
                f"{self.run_dir} holds a run already: go on with it ({resume_command(self.args)}), "
                "choose another --experiment or --name, or delete the folder"
            )
        if given == "last" and not path.is_file() and any(folder.glob("*.ckpt")):  # type: ignore[union-attr]
            raise UserError(
                f"{path} is missing, and {self.run_dir} holds a run that cannot be gone on with without it: "
                "bring it back, choose another --experiment or --name, or delete the folder"
            )
        if path is None or (given == "last" and not path.is_file()):
            return None
        resume.check_resume(path, self._settings())
        return path

    def go(self, loaded: Loaded) -> None:
        """Builds everything and runs the verb; data that upstream stages have loaded are not loaded again."""
        alone = lock(self.run_dir) if self.verb == "fit" else nullcontext()
        with alone, options.blamed(self.args, self.run_dir):
            checkpoint = self.checkpoint()
            if self.finished():
                return
            self._set_seed()  # again: what was parsed or trained since then has drawn numbers
            self._build(checkpoint)
            self.datamodule = self._share(loaded)
            if self.verb == "fit":
                self.trainer.fit(self.model, self.datamodule, ckpt_path=checkpoint, weights_only=True)
                if not self.finished() and self.trainer.is_global_zero:
                    self.stopped_early()
            elif self.verb == "predict":
                self.predict()
            else:
                getattr(self.trainer, self.verb)(self.model, self.datamodule)

    def _share(self, loaded: Loaded) -> FacesDataModule:
        """The data module of an earlier stage of this command if it differs in nothing but batches."""
        batches = ("batch_size", "predict_batch_size", "predict_split")
        settings = self._settings()["data"]
        key = json.dumps({name: value for name, value in settings.items() if name not in batches})
        data = loaded.setdefault(key, self.datamodule)
        for name in batches:
            setattr(data, name, settings[name])
        return data

    def predict(self) -> None:
        """Protects a split and writes its feature store; goes on with one that was interrupted.

        Raises:
            UserError: there are more processes than batches, the defence has no such option, or the store's
                folder holds something else.
        """
        if not isinstance(self.model, Defense):
            self.trainer.predict(self.model, self.datamodule)  # says that it does not predict
            return
        told = dict(vars(self.options.protect))  # which the saved config keeps
        out, name = told.pop("out"), told.pop("name")
        options = self.model.options(**told)
        self.datamodule.setup("predict")
        writer = FeatureWriter(self.model, options, self.datamodule, out, name, self.run_dir)
        batches, world = len(writer.batches), self.trainer.world_size
        if batches < world:
            raise UserError(
                f"{batches} batches of {self.options.data.predict_batch_size} pictures cannot be shared by "
                f"{world} processes: use fewer processes, or a smaller --data.predict_batch_size"
            )
        if not writer.finished():
            self.trainer.callbacks.append(writer)  # type: ignore[attr-defined]
            self.trainer.predict(Protecting(self.model, options), self.datamodule, return_predictions=False)

    def _build(self, checkpoint: Path | None) -> None:
        """Makes data, trainer and stage; but for `fit` the stage comes from its checkpoint alone."""
        config = self.config.clone()
        if self.verb != "fit":
            config[self.verb].model = None
        self.config_init = self.parser.instantiate(config)
        self.datamodule = self.config_init[self.verb].data
        if self.verb == "fit":
            self.model = self.config_init[self.verb].model
        else:
            assert checkpoint is not None  # `checkpoint()` has raised otherwise
            self.model = load_stage(checkpoint, self.stage)
            model_options = any(arg.startswith("--model") for arg in self.args)
            for line in resume.check_evaluation(checkpoint, self._settings(), model_options):
                _say(f"note: the checkpoint's own setting is used: {line}")
        self.model.run_dir, self.model.experiment_dir = self.run_dir, self.experiment_dir
        self.save_config_kwargs = {"folder": self.run_dir, "verb": self.verb}
        self.trainer = self.instantiate_trainer(**self._trainer_options(checkpoint))

    def _precision(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """The config's precision; float32 for bfloat16 where that would be slow."""
        given = self.options.trainer.precision
        if not str(given).startswith("bf16") or not bf16_is_slow(str(self.options.trainer.accelerator)):
            return given
        _say(f"note: {self.name} runs in float32: this processor has no instructions for {given}")
        return "32-true"

    def _trainer_options(self, checkpoint: Path | None) -> dict[str, Any]:
        """What the trainer gets beside the config's own settings: logger, callbacks, checkpoint writer."""
        given, init, folder = self.options.trainer, self.config_init[self.verb].trainer, self.run_dir
        seed = self.options.seed_everything
        keep = self.verb == "fit" and not given.fast_dev_run
        more: list[Any] = []
        if keep:
            more = [
                cb.EpochStart(torch.initial_seed() if seed is False else seed),
                cb.Finite(),
                cb.Summary(folder / "summary.json"),
                cb.MetricsCSV(folder / "metrics.csv"),
                cb.BestAndLast(
                    folder / "checkpoints",
                    self.stage.monitor,
                    self.stage.mode,
                    resume.summary(folder) is not None,
                ),
            ]
        bar = given.enable_progress_bar is not False
        if bar:
            tty = sys.stderr.isatty()
            more.insert(0, TQDMProgressBar(10) if tty else LineProgress(f"{self.verb} {self.name}"))
        step = resume.batches_done(checkpoint) if self.verb == "fit" and checkpoint is not None else None
        logger = False if self.verb == "predict" else Board(folder, step)
        return {
            "default_root_dir": str(folder),
            "logger": logger if given.logger is None else init.logger,
            "callbacks": [*_as_list(init.callbacks), *more],
            "plugins": [*_as_list(init.plugins), cb.AtomicCheckpointIO()],
            "precision": self._precision(),
            "enable_progress_bar": bar and sys.stderr.isatty(),
            "enable_checkpointing": keep,
            "enable_autolog_hparams": False,  # <verb>.yaml has them; Lightning's merge fails on equal names
        }


def _as_list(value: Any) -> list[Any]:  # noqa: ANN401 (the trainer takes one or many)
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
