"""What an audit needs, loaded and checked: task model, oracles, attacks, sets of features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.store import read_store
from crafter_pl.errors import UserError
from crafter_pl.stages.base import load_stage, read_checkpoint, sha256
from crafter_pl.stages.oracle import IdentityOracle
from crafter_pl.stages.task import TaskModel

SPLIT = "private_test"
PEOPLE_SHOWN = 8
Entry = dict[str, Any]  # an entry of `defenses` in the making; "features" is taken out before it is written


def check_arguments(attacks: list[Attack], oracles: list[str], bootstrap: int, batch_size: int) -> None:
    """Refuse what cannot be audited before anything is computed.

    Raises:
        UserError: nothing to attack or to judge with, two attacks of one name, or a number under 1.
    """
    names = [attack.name for attack in attacks]
    if not attacks:
        raise UserError("an audit needs at least one attack: give --attacks")
    if len(set(names)) < len(names):
        raise UserError(f"two attacks have one name ({', '.join(names)}): give each its own init_args.name")
    if not oracles:
        raise UserError("an audit needs an oracle, better two: give their checkpoints with --oracles")
    if bootstrap < 1 or batch_size < 1:
        raise UserError(f"--bootstrap is {bootstrap} and --batch_size {batch_size}; give at least 1 for both")


def trained_on(path: str | Path) -> str | None:
    """Hash of the split that a checkpoint was trained on; None if it does not say."""
    saved: str | None = read_checkpoint(path).get("split_hash")
    return saved


def load_task(path: Path, data: FacesDataModule) -> tuple[TaskModel, list[str]]:
    """The task model, and what the report must note about it.

    Raises:
        UserError: it was made for other attributes or another picture size.
    """
    task = load_stage(path, TaskModel)
    if list(task.hparams["attribute_names"]) != list(data.attribute_names):
        raise UserError(
            f"the task model {path} knows the attributes {', '.join(task.hparams['attribute_names'])}, but "
            f"the data have {', '.join(data.attribute_names) or 'none'}: train it on these data, or choose "
            "the same --data.attribute_columns"
        )
    if task.hparams["image_size"] != data.image_size:
        raise UserError(
            f"the task model {path} was trained on pictures of {task.hparams['image_size']} pixels, the data "
            f"have {data.image_size}: give --data.image_size {task.hparams['image_size']}"
        )
    if trained_on(path) == data.split_hash:
        return task, []
    return task, [
        "The task model was trained on another split: make sure that it has seen none of the private people."
    ]


def load_oracles(paths: list[str], split_hash: str) -> dict[str, IdentityOracle]:
    """The panel by name; equal names are numbered.

    Raises:
        UserError: an oracle was trained on another split, where it may have seen the pictures that it is to
        judge.
    """
    loaded: dict[str, IdentityOracle] = {}
    for path in paths:
        oracle = load_stage(path, IdentityOracle)
        if trained_on(path) != split_hash:
            raise UserError(
                f"oracle {path} was trained on another split and may have seen the pictures that it is to "
                "judge: give the same --data settings as in its training, or train it again"
            )
        name = base = str(oracle.hparams["name"])
        number = 2
        while name in loaded:
            name, number = f"{base} {number}", number + 1
        loaded[name] = oracle
    return loaded


def check_attack(attack: Attack, split_hash: str) -> list[str]:
    """What the report must note about an attack whose checkpoints are resolved.

    Raises:
        UserError: a checkpoint is missing.
    """
    files = {stage: path for stage, path in attack.checkpoints.items() if path is not None}
    for stage, path in files.items():
        if not Path(path).is_file():
            raise UserError(
                f"attack {attack.name} needs {path}, which is missing: train the stage {stage!r} first"
            )
    others = [stage for stage, path in files.items() if trained_on(path) != split_hash]
    if not others:
        return []
    return [
        f"Attack {attack.name}: {', '.join(others)} trained on another split. Make sure that it has seen "
        "none of the private people."
    ]


@torch.no_grad()
def unprotected(task: TaskModel, images: Tensor, device: str, batch_size: int) -> Entry:
    """The encoder's own features of the pictures, in memory only: they are never written."""
    made = torch.cat([task.edge(part.to(device)).float().cpu() for part in images.split(batch_size)])
    cost = {"seconds_per_image": 0.0, "peak_memory_mb": 0.0}
    return {"name": "none", "settings": {}, "cost": cost, "attacks": {}, "features": made}


def protected(store: str, task: TaskModel, task_path: Path, split_hash: str, index: Tensor) -> Entry:
    """The features of a store in the order of `index`.

    Raises:
        UserError: the store is damaged, was made for something else, or does not hold exactly these pictures.
    """
    made, stored, manifest = read_store(
        store, shape=task.feature_shape, encoder_sha256=sha256(task_path), split_hash=split_hash, split=SPLIT
    )
    if not torch.equal(stored, index.sort().values):  # a store is sorted by index
        missing = len(set(index.tolist()) - set(stored.tolist()))
        raise UserError(
            f"{store} holds {len(stored)} features for the {len(index)} pictures of {SPLIT}, and {missing} "
            "of these have none: run predict again with the same --data settings"
        )
    return {
        "name": manifest["defense"],
        "settings": manifest["settings"],
        "cost": manifest.get("cost") or {"seconds_per_image": None, "peak_memory_mb": None},
        "attacks": {},
        "store": store,
        "features": made[torch.searchsorted(stored, index)],
    }


def label(entries: list[Entry]) -> None:
    """Name entries by their defence and the settings in which the stores of that defence differ.

    Adds `label` (unique), `family` (entries that differ in beta alone) and `beta` (None if there is none).

    Raises:
        UserError: two stores cannot be told apart.
    """
    for entry in entries:
        own = entry["settings"]
        peers = [other["settings"] for other in entries if other["name"] == entry["name"]]
        keys = sorted(
            key for key in own if key != "beta" and any(peer.get(key) != own[key] for peer in peers)
        )
        entry["beta"] = own.get("beta")
        differs = [f"{key} {own[key]}" for key in keys]
        beta = [] if entry["beta"] is None else [f"beta {entry['beta']:g}"]
        entry["family"] = f"{entry['name']} ({', '.join(differs)})" if differs else entry["name"]
        both = ", ".join(beta + differs)
        entry["label"] = f"{entry['name']} ({both})" if both else entry["name"]
    labels = [entry["label"] for entry in entries]
    twice = [name for name in labels if labels.count(name) > 1]
    if twice:
        raise UserError(f"two sets of features are the same, {twice[0]}: name each feature store once")


def people_shown(identity: Tensor, index: Tensor) -> list[int]:
    """Rows of the first picture of a few people, taken at even steps: not chosen by result."""
    people = identity.unique()
    steps = torch.linspace(0, len(people) - 1, min(PEOPLE_SHOWN, len(people))).round().long()
    rows = [(identity == person).nonzero()[:, 0] for person in people[steps]]
    return [int(own[index[own].argmin()]) for own in rows]
