"""May this command touch that run? Checkpoints against configs, finished runs."""

import inspect
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml

from crafter_pl.cli.loggers import shown
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import PUBLIC
from crafter_pl.errors import UserError
from crafter_pl.files import read_json
from crafter_pl.stages.base import Stage
from crafter_pl.stages.checkpoints import read_checkpoint


def plain_settings(dumped: str) -> dict[str, Any]:
    """A dumped command's options as plain values, those of the data without their class."""
    content: dict[str, Any] = yaml.safe_load(dumped)
    return {**content, "data": content["data"]["init_args"]}


def data_differences(old: dict[str, Any], new: dict[str, Any], where: str) -> list[str]:
    """Data settings that make another split: they differ between two configs; `where` names the first."""
    lines = differences({**old, "model": {}}, {**new, "model": {}}, f"for {where}")
    return [line for line in lines if not line.startswith(("data.batch_size:", "data.order_seed:"))]


def differences(saved: dict[str, Any], given: dict[str, Any], where: str = "in the checkpoint") -> list[str]:
    """Settings of the model and the data that differ between a checkpoint and a config.

    Upstream paths are left out: the stage itself compares the files' SHA-256 (`Stage.on_load_checkpoint`).

    Args:
        saved: the checkpoint's entry `config`, written by `callbacks.SaveConfig`.
        given: the config of this command as plain values.
        where: how to call the former.
    """
    # These may change between the parts of an interrupted run: where things lie, not what they are.
    free = {"root", "cache_dir", "max_memory_mb", "predict_split", "predict_batch_size"}
    free |= set() if saved["data"].get("source") == "synthetic" else {"people", "images_per_person"}
    old_model, new_model = (one["model"].get("init_args") or {} for one in (saved, given))
    classes = {"model": given["model"].get("class_path"), "data": FacesDataModule}
    lines = []
    for part, (old, new) in {"model": (old_model, new_model), "data": (saved["data"], given["data"])}.items():
        # An option that is younger than the checkpoint was at its default.
        old = {**{key: one for key, one in _defaults(classes[part]).items() if key in new}, **old}
        for key in sorted({*old, *new}):
            compared = not key.endswith("_ckpt") if part == "model" else key not in free
            if compared and old.get(key) != new.get(key):
                lines.append(f"{part}.{key}: {old.get(key)!r} {where}, {new.get(key)!r} here")
    return lines


def _defaults(kind: Any) -> dict[str, Any]:  # noqa: ANN401 (a class or its path)
    """The init arguments of a class that have a default; none of no class."""
    if not kind or (isinstance(kind, str) and "." not in kind):
        return {}
    found = inspect.signature(resolve_name(kind) if isinstance(kind, str) else kind).parameters.values()
    return {one.name: one.default for one in found if one.default is not one.empty}


def check_resume(path: Path, given: dict[str, Any]) -> None:
    """Refuses to train on from a checkpoint of another stage, or with other settings than it began with."""
    checkpoint = read_checkpoint(path)
    saved = checkpoint.get("config")
    if saved is None:
        raise UserError(f"{path} was not written by crafter_pl fit: it cannot be resumed")
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"{path} is for use, it has no optimizer's state: training goes on from the last one "
            "(--ckpt_path last)"
        )
    old, new = saved["model"]["class_path"], given["model"]["class_path"]
    if old != new:
        raise UserError(
            f"{path} is a checkpoint of {old}, this config trains {new}; "
            "upstream stages are given by --model.init_args.<stage>_ckpt"
        )
    if lines := differences(saved, given):
        message = f"{path} was trained with other settings; give the same, or start another --experiment:"
        raise UserError("\n  ".join([message, *lines]))


def check_evaluation(path: Path, given: dict[str, Any], model_options: bool) -> list[str]:
    """Refuses data that would be split otherwise than in training, and model options that would not count.

    Returns:
        The settings of the config that do not count, because the checkpoint's own do.
    """
    saved = read_checkpoint(path).get("config")
    if saved is None:  # trained by a program of the user's own
        return []
    lines = differences(saved, given)
    data = data_differences(saved, given, "training")
    kind: type[Stage] = resolve_name(saved["model"]["class_path"])
    if PUBLIC.issuperset((kind.train_split, kind.val_split)):
        data = [line for line in data if not line.startswith("data.test_images:")]  # of private people alone
    if data and saved["data"]["source"] == given["data"]["source"]:
        message = (
            f"{path} was trained on another split, whose public people may be private here; "
            "give the same data settings:"
        )
        raise UserError("\n  ".join([message, *data]))
    model = [line for line in lines if line.startswith("model.")]
    if model and model_options:
        raise UserError("\n  ".join([f"the settings in {path} are used here, not --model's:", *model]))
    return [line for line in model if not line.endswith(", None here")]  # null leaves it to the checkpoint


def finished(run_dir: Path, max_epochs: int | None = None, every: bool = False) -> str | None:
    """One line about a run that has reached `max_epochs` (None: whatever it was trained for), else None.

    It has the main figure, or ``every`` one.

    Raises:
        UserError: its `summary.json` is damaged.
    """
    path = run_dir / "summary.json"
    if not path.is_file():
        return None
    way_out = "delete that file and go on with --ckpt_path last: it is written anew"
    found = read_json(path, way_out)
    kinds: dict[str, Any] = {"epochs": int, "max_epochs": int, "seconds": (int, float), "metrics": dict}
    sound = isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in kinds.items())
    if not sound or not all(isinstance(value, (int, float)) for value in found["metrics"].values()):
        raise UserError(f"{path} is no summary of a run; {way_out}")
    # Earlier versions wrote one where a limit had ended a run.
    if found["epochs"] < found["max_epochs"] or found["max_epochs"] < (max_epochs or 0):
        return None
    figures = shown(found["metrics"], found.get("monitor"), every)
    took = f"{found['epochs']} epochs, {found['seconds']:.0f} s"
    return f"{run_dir.name} is finished ({took}) in {run_dir}{figures and ': '}{figures}"


def batches_done(checkpoint: Path) -> int:
    """How many batches a run had stepped through at a checkpoint: the step of its next entry in a log."""
    return int(
        read_checkpoint(checkpoint)["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]
    )
