"""Runs Lightning's verbs: upstream stages first, then the trainer with what every run does and keeps."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar

from crafter_pl.cli import resume
from crafter_pl.cli.callbacks import (
    AtomicCheckpointIO,
    BestAndLast,
    EpochStart,
    Finite,
    SaveConfig,
    Summary,
)
from crafter_pl.cli.loggers import Board, LineProgress, MetricsCSV
from crafter_pl.cli.parsing import blamed
from crafter_pl.cli.stage import StageCLI
from crafter_pl.commands import command, listed, resume_command, without
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses.base import Defense
from crafter_pl.defenses.predict import FeatureWriter, Protecting
from crafter_pl.errors import UserError
from crafter_pl.files import lock
from crafter_pl.nets import bf16_is_slow
from crafter_pl.plugins import import_stages
from crafter_pl.processes import rank
from crafter_pl.stages.base import Stage, load_stage
from crafter_pl.stages.task import TaskModel

Loaded = dict[str, FacesDataModule]  # by their settings
BATCHES = ("batch_size", "predict_batch_size", "predict_split")  # settings that no picture hangs on


def call(args: list[str]) -> None:
    """Runs fit, validate, test or predict; `fit` trains missing upstream stages first."""
    import_stages()
    cli = StageCLI(args)
    loaded: Loaded = {}
    if cli.verb == "fit":
        cli.checkpoint()  # a refusal comes before upstream stages are trained
        todo = [] if cli.finished() else list(cli.missing_upstream({}).values())
        if todo and cli.multi_process:
            head = "several processes cannot share the training of upstream stages: first run, in this order,"
            one = [without(job, "--trainer.devices", "--trainer.num_nodes") for job in todo]
            raise UserError("\n  ".join([head, *(command([*job, "--trainer.devices", "1"]) for job in one)]))
        fits = partial(cli.stage.check_task, cli.options.model.get("init_args") or {})
        if todo and Path(task := cli.options.model.get("init_args.task_ckpt") or "").is_file():
            fits(load_stage(task, TaskModel))
        for number, job in enumerate(todo, 1):
            _say(f"[{number}/{len(todo)}] needed by {cli.name}, and missing: {command(job)}")
            go(StageCLI(job), loaded, fits)
    go(cli, loaded)


def go(cli: StageCLI, loaded: Loaded, fits: Callable[[TaskModel], None] | None = None) -> Stage | None:
    """Runs one command.

    Args:
        cli: the command.
        loaded: data of earlier stages, which are not loaded again; these data are added.
        fits: refuses a task model, before it is trained, for a stage that comes after it.

    Returns:
        The stage as the run has left it; None: the run was finished before.
    """
    with lock(cli.run_dir) if cli.verb == "fit" else nullcontext(), blamed(cli.args, cli.run_dir):
        start = cli.checkpoint()
        if line := cli.finished():
            _say(line)
            return None
        model, data, trainer = build(cli, start, loaded)
        if fits is not None and isinstance(model, TaskModel):
            fits(model)
        if cli.verb == "fit":
            _say(f"{cli.name}: {(type(model).__doc__ or 'a stage').strip().splitlines()[0]}")
            trainer.fit(model, data, ckpt_path=start, weights_only=True)
            if line := cli.finished():
                _say(line)
            elif trainer.is_global_zero:
                _stopped_early(cli, trainer)
        elif cli.verb == "predict":
            _predict(cli, model, data, trainer)
        else:
            evaluate = trainer.validate if cli.verb == "validate" else trainer.test
            evaluate(model, datamodule=data, verbose=cli.options.verbose)
    return model


def _say(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)


def _stopped_early(cli: StageCLI, trainer: Trainer) -> None:
    """Says how to go on with a run that a limit or a callback has ended.

    Raises:
        UserError: it has not finished a single epoch.
    """
    if cli.options.trainer.fast_dev_run:
        _say(f"{cli.name}: fast_dev_run, nothing is kept")
        return
    longer = without(cli.args, "--trainer.max_time", "--trainer.max_steps")
    if not (cli.run_dir / "checkpoints" / "last.ckpt").is_file():
        raise UserError(
            f"{cli.name} was stopped before its first epoch was finished, so nothing is kept; without "
            f"what stopped it: {command(longer)}"
        )
    done, of = trainer.fit_loop.epoch_progress.current.completed, trainer.max_epochs
    _say(
        f"{cli.name} was stopped early, after {done} of {of} epochs, and is not finished: go on without "
        f"what stopped it ({resume_command(longer)})"
    )


def _predict(cli: StageCLI, defense: Stage, data: FacesDataModule, trainer: Trainer) -> None:
    """Protects a split and writes its feature store; goes on with one that was interrupted.

    Raises:
        UserError: there are more processes than batches, the defence has no such option, or the store's
            folder holds something else.
    """
    if not isinstance(defense, Defense):
        trainer.predict(defense, data)  # says that it does not predict
        return
    given = dict(vars(cli.options.protect))  # which the saved config keeps
    out, name = given.pop("out"), given.pop("name")
    options = defense.options(**given)
    data.setup("predict")
    writer = FeatureWriter(defense, options, data, out, name, cli.run_dir)
    if len(writer.batches) < trainer.world_size:
        raise UserError(
            f"{len(writer.batches)} batches of {data.predict_batch_size} pictures cannot be shared by "
            f"{trainer.world_size} processes: use fewer processes, or a smaller --data.predict_batch_size"
        )
    if not writer.finished():
        trainer.callbacks.append(writer)  # type: ignore[attr-defined]
        trainer.predict(Protecting(defense, options), data, return_predictions=False)


# What is built


def build(cli: StageCLI, start: Path | None, loaded: Loaded) -> tuple[Stage, FacesDataModule, Trainer]:
    """Makes stage, data and trainer; but for `fit` the stage comes from its checkpoint ``start`` alone."""
    options = cli.options
    if (seed := options.seed_everything) is not False:  # what was parsed or trained before has drawn numbers
        options.seed_everything = seed_everything(None if seed is True else seed, workers=True, verbose=False)
    config = options.clone()
    given, config.model = config.model, None
    init = cli.parser.instantiate(config)
    data, settings = init.data, cli.settings()["data"]
    key = json.dumps({name: value for name, value in settings.items() if name not in BATCHES})
    data.share(loaded.setdefault(key, data))
    if cli.verb == "fit":
        data.setup("fit")
        for name, value in cli.stage.from_data(data, given.init_args).items():
            given.init_args[name] = value if given.init_args[name] is None else given.init_args[name]
        config.data, config.model = None, given
        model: Stage = cli.parser.instantiate(config).model
    else:
        assert start is not None  # `StageCLI.checkpoint` has raised otherwise
        model = load_stage(start, cli.stage)
        model_options = any(arg.startswith("--model") for arg in cli.args)
        for line in resume.check_evaluation(start, cli.settings(), model_options):
            _say(f"note: the checkpoint's own setting is used: {line}")
    model.run_dir = None if init.trainer["fast_dev_run"] else cli.run_dir
    model.experiment_dir = cli.experiment_dir
    return model, data, _trainer(cli, init.trainer, start, model.monitor)


def _trainer(cli: StageCLI, given: dict[str, Any], start: Path | None, monitor: str | None) -> Trainer:
    """The trainer, with logger, callbacks and checkpoint writer beside the config's own settings."""
    folder, terminal = cli.run_dir, sys.stderr.isatty()
    fit, dry = cli.verb == "fit", given["fast_dev_run"]
    bar = given["enable_progress_bar"] is not False
    callbacks: list[Callback] = [*listed(given["callbacks"])]
    if bar:
        callbacks.append(
            TQDMProgressBar(10) if terminal else LineProgress(f"{cli.verb} {cli.name}", every=cli.every)
        )
    if fit and not dry:
        seed = cli.options.seed_everything
        extends = resume.finished(folder) is not None
        callbacks += [
            EpochStart(torch.initial_seed() if seed is False else seed),
            Finite(),
            Summary(folder / "summary.json"),
            MetricsCSV(folder / "metrics.csv"),
            BestAndLast(folder / "checkpoints", monitor, cli.stage.mode, extends),
        ]
    if not dry:
        callbacks.append(SaveConfig(cli.dump(), folder, cli.verb))
    logger = given["logger"]
    if logger is None:
        step = resume.batches_done(start) if fit and start is not None else None
        logger = False if cli.verb == "predict" else Board(folder, step)
    return Trainer(
        **{
            **given,
            "default_root_dir": str(folder),
            "logger": logger,
            "callbacks": callbacks,
            "plugins": [*listed(given["plugins"]), AtomicCheckpointIO()],
            "precision": precision(cli),
            "enable_progress_bar": bar and terminal,
            "enable_checkpointing": fit and not dry,
            "enable_autolog_hparams": False,  # <verb>.yaml has them; Lightning's merge fails on equal names
        }
    )


def precision(cli: StageCLI) -> Any:  # noqa: ANN401 (Lightning's union)
    """The precision to compute in: the config's, or float32 for bfloat16 where that would be slow."""
    given = cli.options.trainer.precision
    if not str(given).startswith("bf16") or not bf16_is_slow(str(cli.options.trainer.accelerator)):
        return given
    _say(f"note: {cli.name} runs in float32: this processor has no instructions for {given}")
    return "32-true"
