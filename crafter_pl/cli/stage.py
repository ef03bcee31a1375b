"""One command of Lightning's verbs, parsed: its options, its run folder, the upstream stages it needs."""

import os
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins.environments import SLURMEnvironment

from crafter_pl.cli import options, resume
from crafter_pl.cli.parsing import Parser, parser_settings
from crafter_pl.commands import command, configs, overlays, pairs, passed_on, resume_command, with_bases
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses.base import Defense
from crafter_pl.defenses.options import declare
from crafter_pl.errors import UserError
from crafter_pl.stages import Stage, named_run, stages

# Trainer options that are not the user's: run folders and checkpoints are what stages find each other by.
OURS: set[str | int] = {
    "default_root_dir",
    "enable_checkpointing",
    "enable_autolog_hparams",
    "model_registry",
    "barebones",
}
TRAINER = {  # where they are not Lightning's
    "inference_mode": False,  # crafting needs gradients in predict
    "use_distributed_sampler": False,  # data/datamodule.py deals batches to processes itself
    "devices": 1,
    "log_every_n_steps": 20,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}


def named(args: list[str]) -> tuple[type[Stage], set[str]]:
    """The stage that unparsed arguments name, in a config or as an option, and the options of a defence."""
    found, protect = "Stage", set()
    for name, value in pairs(args):
        if name in ("--config", "-c") and Path(value).is_file():
            config = yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}
            model = config.get("model")
            found = str(model.get("class_path", found) if isinstance(model, dict) else model or found)
            protect |= set(config.get("protect") or {})
        elif name in ("--model", "--model.class_path"):
            found = value
        elif name.startswith("--protect."):
            protect.add(name.removeprefix("--protect."))
    return stages().get(found.rpartition(".")[2], Stage), protect


class StageCLI(LightningCLI):
    """A command, parsed and checked; nothing is built.

    Attributes:
        args, verb: the command, and its first word.
        every: whether `fit` shows every figure.
        options: by name.
        stage: the class that it names.
        name, run_dir, experiment_dir: of its run.
        upstream: the runs of the same experiment that its checkpoint arguments mean, with their folders.
    """

    _dumped: tuple[Any, str] | None = None

    def __init__(self, args: list[str]) -> None:
        """Parse a command, the verb first.

        Raises:
            UserError: names the option that is wrong.
        """
        self.args, self.verb, given = args, args[0], with_bases(args)
        self.named, self.protect_options = named(given)
        super().__init__(
            model_class=Stage,
            subclass_mode_model=True,
            datamodule_class=FacesDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            trainer_defaults=TRAINER,
            seed_everything_default=0,
            parser_class=Parser,
            parser_kwargs=parser_settings(self.verb),
            args=given[1:],
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # stages save plain init arguments, which load anywhere
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the trainer, the stage and the data, whose class the stage names."""
        parser.add_class_arguments(Trainer, "trainer", instantiate=False, sub_configs=True, skip=OURS)
        parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER.items()})
        parser.add_lightning_class_args(Stage, "model", subclass_mode=True)
        parser.add_lightning_class_args(FacesDataModule, "data", subclass_mode=True, required=False)
        data = self.named.data_class
        parser.set_defaults({"data": {"class_path": f"{data.__module__}.{data.__qualname__}"}})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds where runs are kept, which checkpoint to start from, and for predict the defence's options."""
        parser.add_argument("--base", type=str | None, help="in a config: another one, which it builds on")
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
        if self.verb == "fit":
            parser.add_argument("-v", "--verbose", action="store_true", help="print every figure by its name")
        if self.verb in ("validate", "test"):
            parser.add_argument("--verbose", type=bool, default=True, help="print the figures")
        if self.verb == "predict":
            parser.add_argument("--protect.out", type=str | None, help="folder of the feature store")
            parser.add_argument("--protect.name", type=str | None, help="ends the name of the store's folder")
            defense = self.named if issubclass(self.named, Defense) else Defense
            defense.refuse_unknown(self.protect_options - {"out", "name"})
            declare(parser, defense.options_class)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 (as inherited)
        """Parses and checks ``args``; unlike the inherited method, without a warning in a program."""
        self.config = self.options = options.expanded(parser.parse_args(args))
        self.options.base = None  # what is dumped has all of it
        self.every = self.verb == "fit" and bool(self.options.pop("verbose"))  # no other verb takes it
        self.stage: type[Stage] = resolve_name(self.options.model.class_path)
        options.check(self.verb, self.options, self.stage.monitor)

    def before_instantiate_classes(self) -> None:
        """Finds the run's folder and the default checkpoints of its upstream stages."""
        self.name: str = self.options.name or self.stage.stage_name
        self.experiment_dir = Path(self.options.runs_dir, self.options.experiment)
        self.run_dir = self.experiment_dir / self.name
        self.upstream: dict[str, Path] = {}
        init = self.options.model.get("init_args") or Namespace()
        for key, value in [pair for pair in init.items() if pair[0].endswith("_ckpt")]:
            if (run := named_run(key.removesuffix("_ckpt"), value)) is not None:
                self.upstream[run] = self.experiment_dir / run
                init[key] = str(self.experiment_dir / run / "checkpoints" / "best.ckpt")

    def instantiate_classes(self) -> None:
        """Waits for `run.go`: upstream stages may have to be trained first."""

    def dump(self) -> str:
        """All options as YAML, for the command again; of those that were parsed only the seed may change."""
        if self._dumped is None or self._dumped[0] != self.options.seed_everything:
            text = str(self.parser.dump(self.options, skip_unset=False))
            self._dumped = self.options.seed_everything, text
        return self._dumped[1]

    def settings(self) -> dict[str, Any]:
        """All options as plain values, those of the data without their class."""
        return resume.plain_settings(self.dump())

    # Upstream stages

    @property
    def multi_process(self) -> bool:
        """Whether this command runs, or will start, more than one process."""
        world = int(os.environ.get("WORLD_SIZE") or 1)
        if SLURMEnvironment.detect():  # as Lightning decides it: not in an interactive allocation
            world = max(world, int(os.environ["SLURM_NTASKS"]))
        trainer = self.options.trainer
        return max(world, int(trainer.num_nodes), options.device_count(trainer)) > 1

    def missing_upstream(self, found: dict[Path, list[str]]) -> dict[Path, list[str]]:
        """Adds to `found` the commands that train unfinished upstream stages, in the order to run them."""
        for stage, folder in self.upstream.items():
            if folder in found or resume.finished(folder) is not None:
                continue
            cli = StageCLI(self.upstream_command(stage))
            if cli.run_dir != folder:
                raise UserError(
                    f"{command(cli.args)} would write {cli.run_dir}, {self.name} needs it in {folder}"
                )
            if other := resume.data_differences(cli.settings(), self.settings(), stage):
                head = f"{command(cli.args)} would train {stage} on other data than {self.name}:"
                raise UserError("\n  ".join([head, *other]))
            cli.missing_upstream(found)
            found[folder] = cli.args
        return found

    def upstream_command(self, stage: str) -> list[str]:
        """Trains an upstream stage with the data, places and devices of this command."""
        folders = [
            folder
            for path in configs(self.args)
            for folder in (path.parent, path.parent.parent, path.parent / "attacks")
        ]
        config = next(filter(Path.is_file, (folder / f"{stage}.yaml" for folder in folders)), None)
        if config is None:
            places = ", ".join(dict.fromkeys(map(str, folders))) or "no --config was given"
            raise UserError(
                f"{self.name} needs the stage {stage!r}, which is not in {self.experiment_dir}, and there "
                f"is no {stage}.yaml to train it with ({places}): train it first, or name its checkpoint by "
                f"--model.init_args.{stage}_ckpt PATH"
            )
        begun = (self.experiment_dir / stage / "checkpoints" / "last.ckpt").is_file()
        return ["fit", "--config", str(config), *self._shared(), *["--ckpt_path", "last"] * begun]

    def _shared(self, overlaid: bool = True) -> list[str]:
        """Options of this command that others of its experiment get; ``overlaid``: configs among them."""
        runs_dir = self.options.runs_dir
        return [
            *(overlays(self.args) if overlaid else []),
            *("--experiment", self.options.experiment),
            *([] if runs_dir == "runs" else ["--runs_dir", runs_dir]),
            *passed_on(self.args),
        ]

    # Its run

    def finished(self) -> str | None:
        """One line about the run if `fit` has nothing left to do, else None."""
        epochs = self.options.trainer.max_epochs
        return resume.finished(self.run_dir, epochs, self.every) if self.verb == "fit" else None

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
                files = [part for file in configs(self.args) for part in ("--config", str(file))]
                train = command(["fit", *files, *self._shared(overlaid=False)])
                raise UserError(
                    f"no checkpoint {path}: train {self.name} first ({train}), or give --ckpt_path FILE"
                )
            return path
        other = "choose another --experiment or --name, or delete the folder"
        if any(folder.glob("*.ckpt")):
            if path is None or path.parent.resolve() != folder.resolve():
                raise UserError(
                    f"{self.run_dir} holds a run already: go on with it "
                    f"({resume_command(self.args)}), {other}"
                )
            if given == "last" and not path.is_file():
                raise UserError(
                    f"{path} is missing, and {self.run_dir} holds a run that cannot be gone on with without "
                    f"it: bring it back, {other}"
                )
        if path is None or (given == "last" and not path.is_file()):
            return None
        resume.check_resume(path, self.settings())
        return path
