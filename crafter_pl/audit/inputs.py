"""What an audit needs, loaded and checked: task model, oracles, attacks, sets of features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.base import Adversary, Attack, Ruler, fits
from crafter_pl.audit.oracle import load_oracle
from crafter_pl.audit.targets import Published
from crafter_pl.audit.verdict import title
from crafter_pl.commands import Commands, listed, trained
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.store import MANIFEST, read_manifest, read_store
from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.stages.base import load_stage, named_run, read_checkpoint
from crafter_pl.stages.cloud import CloudClassifier
from crafter_pl.stages.oracle import IdentityOracle
from crafter_pl.stages.task import TaskModel

SPLIT = "private_test"
PEOPLE_SHOWN = 8
PANEL = ("oracle_resnet", "oracle_plain")  # the least that is worth training
# An entry of `defenses` in the making. What is not written: "features", several queries `(K, N, C, h, w)`;
# "target", None for unprotected features; "verdicts", the panel's judgement of each attack; "cloud", in the
# training scenario the classifier that has learned from such features.
Entry = dict[str, Any]


def chosen_attacks(
    attacks: list[Attack] | Attack | None, budgets: dict[str, list[Attack]] | None, budget: str
) -> list[Attack]:
    """The attacks given, or those of the budget.

    Raises:
        UserError: neither is there.
    """
    if attacks is not None:
        return listed(attacks)
    if not budgets or budget not in budgets:
        known = ", ".join(budgets or {}) or "none"
        raise UserError(f"no attacks for --budget {budget}: choose from {known}, or give --attacks")
    return budgets[budget]


def check_arguments(attacks: list[Attack], rulers: list[Ruler], bootstrap: int, batch_size: int) -> None:
    """Refuse what cannot be audited before anything is computed.

    Raises:
        UserError: nothing to attack with, two attacks of one name, or a number under 1.
    """
    names = [adversary.name for adversary in (*attacks, *rulers)]
    if not attacks:
        raise UserError("an audit needs at least one attack: give --attacks or a --budget")
    if len(set(names)) < len(names):
        raise UserError(f"two attacks have one name ({', '.join(names)}): give each its own init_args.name")
    if bootstrap < 1 or batch_size < 1:
        raise UserError(f"--bootstrap is {bootstrap} and --batch_size {batch_size}; give at least 1 for both")


def found_checkpoints(home: Path, option: str, given: list[str]) -> list[str]:
    """Checkpoints by their paths, or by the names of runs of the experiment.

    Raises:
        UserError: there is no such run.
    """
    paths = []
    for one in given:
        run = named_run("", one)
        path = one if run is None else str(home / run / "checkpoints" / "best.ckpt")
        if not Path(path).is_file():
            runs = (
                ", ".join(sorted(file.parts[-3] for file in home.glob("*/checkpoints/best.ckpt")))
                or "no runs"
            )
            raise UserError(f"--{option} {one}: there is no {path}; {home} has {runs}")
        paths.append(path)
    return paths


def found_oracles(commands: Commands, given: list[str] | str | None) -> tuple[list[str], list[str]]:
    """The panel's checkpoints, and what the report must note.

    Args:
        commands: of the experiment.
        given: paths, or names of runs of the experiment, of which those that are not trained yet are left
            out; None: all finished oracles of the experiment.

    Raises:
        UserError: there is none at all, or a path or a name is wrong.
    """
    home, notes = commands.home, []
    if given is None:
        every = {path.parent.parent.name: str(path) for path in trained(home, IdentityOracle.stage_name)}
        paths = [every[name] for name in (*PANEL, *every) if name in every]
        paths = list(dict.fromkeys(paths))
    else:
        paths = []
        for one in listed(given):
            run = named_run("", one)
            if run is None or (home / run / "summary.json").is_file() or commands.config(run) is None:
                paths += found_checkpoints(home, "oracles", [one])
            else:
                notes.append(f"Oracle {one} is not trained, and not in the panel: {commands.fit(one)}")
    if not paths:
        train = [note.partition(": ")[2] for note in notes] or [commands.fit(name) for name in PANEL]
        raise UserError(
            "an audit needs an oracle, better two, and "
            f"{home} has none: give a checkpoint with --oracles, or train them first:\n  "
            + "\n  ".join(train)
        )
    return paths, notes


def found_task(commands: Commands, given: str | None) -> Path:
    """The task model's checkpoint: given by path or name, or the experiment's own.

    Raises:
        UserError: it is missing.
    """
    run = named_run("task", given)
    path = Path(str(given)) if run is None else commands.home / run / "checkpoints" / "best.ckpt"
    if not path.is_file():
        way = f"train it first: {commands.fit(run)}" if run else "give the right path (--task_ckpt)"
        raise UserError(f"the task model {path} is missing; {way}")
    return path


def found_stores(home: Path, given: list[str] | None) -> list[str]:
    """The feature stores to audit.

    Args:
        home: the experiment's folder.
        given: their paths, or names in the experiment: ``beta1`` or, of a certain run, ``crafter/beta1`` for
            ``crafter/features/private_test-beta1``; None: the only one that is there.

    Raises:
        UserError: none was given, and the experiment has none or several; or a name is not one store's.
    """
    there: dict[str, list[str]] = {}  # by name
    for folder in sorted(file.parent for file in home.glob(f"*/features/*/{MANIFEST}")):
        if _split_of(folder) == SPLIT:
            name, run = folder.name.removeprefix(f"{SPLIT}-"), folder.parent.parent.name
            for called in {name, folder.name, f"{run}/{name}"}:
                there.setdefault(called, []).append(str(folder))
    stores = sorted({store for own in there.values() for store in own})
    has = "\n  ".join([f"{home} has", *stores]) if stores else f"{home} has no store of {SPLIT}"
    if given is None:
        if len(stores) != 1:
            way = (
                "name one or several with --features"
                if stores
                else "make one with predict, or give --features"
            )
            raise UserError(f"which features are to be audited? {way}; {has}")
        return stores
    paths = []
    for one in given:
        own = [one] if Path(one).is_dir() else there.get(one, [])
        if len(own) != 1:
            raise UserError(f"--features {one}: there {'are several' if own else 'is no'} such store; {has}")
        paths += own
    return paths


def _split_of(folder: Path) -> str | None:
    try:
        return str(read_manifest(folder)["split"])
    except (UserError, OSError):
        return None


def trained_on(path: str | Path) -> str | None:
    """Hash of the split that a checkpoint was trained on; None if it does not say."""
    saved: str | None = read_checkpoint(path).get("split_hash")
    return saved


def load_task(path: Path, data: FacesDataModule) -> tuple[TaskModel, list[str]]:
    """The task model, and what the report must note about it.

    Raises:
        UserError: it is missing, or was made for other attributes or another picture size.
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


def load_oracles(paths: list[str], data: FacesDataModule) -> dict[str, IdentityOracle]:
    """The panel by name; equal names are numbered.

    Raises:
        UserError: an oracle is there twice, or was trained on pictures of another size or on another split,
            where it may have seen the pictures that it is to judge.
    """
    loaded: dict[str, IdentityOracle] = {}
    files: dict[str, str] = {}
    for path in paths:
        oracle = load_oracle(path)
        if trained_on(path) != data.split_hash:
            raise UserError(
                f"oracle {path} was trained on another split and may have seen the pictures that it is to "
                "judge: give the same --data settings as in its training, or train it again"
            )
        if (size := oracle.hparams["image_size"]) != data.image_size:
            raise UserError(
                f"oracle {path} was trained on pictures of {size} pixels, the data have {data.image_size}: "
                f"give --data.image_size {size}, or train it again"
            )
        if (digest := sha256(path)) in files:
            raise UserError(
                f"oracles {files[digest]} and {path} are the same: leave one out, or give one of another "
                "backbone or input"
            )
        files[digest] = path
        name = base = str(oracle.hparams["name"])
        number = 2
        while name in loaded:
            name, number = f"{base} {number}", number + 1
        loaded[name] = oracle
    return loaded


def check_aims(
    attacks: list[Attack], rulers: list[Ruler], entries: list[Entry], split_hash: str
) -> list[str]:
    """Aim everybody at every set of features once, before anything is computed; what the report must note.

    Raises:
        UserError: attacks have nothing that fits a defence, or checkpoints are missing; all that is wrong at
            once.
    """
    notes, wrong = [], []
    for entry in entries:
        for adversary in (*attacks, *rulers):
            try:
                adversary.aim_at(entry["target"])
                notes += check_adversary(adversary, split_hash)
                for _, earlier in adversary.history() if isinstance(adversary, Attack) else ():
                    notes += check_adversary(earlier, split_hash)
            except UserError as error:
                wrong.append(str(error))
    if wrong := list(dict.fromkeys(wrong)):
        raise UserError("\n- ".join(["the attacks are not ready:", *wrong]) if wrong[1:] else wrong[0])
    return list(dict.fromkeys(notes))


def check_adversary(adversary: Adversary, split_hash: str) -> list[str]:
    """What the report must note about an attack or ruler whose checkpoints are resolved.

    Raises:
        UserError: a checkpoint is missing; or a ruler was trained on another split, where it may have seen
            the pictures whose features it is to name.
    """
    files = {stage: path for stage, path in adversary.checkpoints.items() if path is not None}
    for path in files.values():
        if not Path(path).is_file():
            raise UserError(
                f"attack {adversary.name} needs {path}, which is missing: train it first: "
                f"{_train(adversary, Path(path))}"
            )
    others = [stage for stage, path in files.items() if trained_on(path) != split_hash]
    if not others:
        return []
    if isinstance(adversary, Ruler):
        raise UserError(
            f"ruler {adversary.name}: {files[others[0]]} was trained on another split and may have seen the "
            "audited pictures: give the --data settings that it was trained with, or train it again"
        )
    return [
        f"Attack {adversary.name}: {', '.join(others)} trained on another split. Make sure that it has seen "
        "none of the private people."
    ]


def _train(adversary: Adversary, path: Path) -> str:
    """The command that trains the run of a missing checkpoint."""
    run = path.absolute().parents[1]
    return (adversary.commands or Commands(run.parent)).fit(run.name)


def unprotected() -> Entry:
    """The entry of the encoder's own features, which `encode` computes."""
    cost = {"seconds_per_image": 0.0, "peak_memory_mb": 0.0}
    return {
        "name": "none",
        "settings": {},
        "cost": cost,
        "retrains": [],
        "attacks": {},
        "verdicts": [],
        "target": None,
    }


@torch.no_grad()
def encode(task: TaskModel, images: Tensor, device: str, batch_size: int) -> Tensor:
    """The encoder's features of the pictures, one query `(1, N, C, h, w)`: in memory, never written."""
    return torch.cat([task.edge(part.to(device)).float().cpu() for part in images.split(batch_size)])[None]


def protected(
    stores: list[str], published: Published, task: TaskModel, task_path: Path, split_hash: str, index: Tensor
) -> tuple[Entry, list[str]]:
    """The features of stores that differ in their seed alone, in the order of `index`; notes for the report.

    Raises:
        UserError: a store is damaged, was made for something else, or does not hold exactly these pictures;
            or its cloud was retrained and the defence, which holds it, is not at hand.
    """
    queries = []
    for store in stores:
        made, stored, _ = read_store(
            store,
            shape=task.feature_shape,
            encoder_sha256=sha256(task_path),
            split_hash=split_hash,
            split=SPLIT,
        )
        if not torch.equal(stored, index.sort().values):  # a store is sorted by index
            missing = len(set(index.tolist()) - set(stored.tolist()))
            raise UserError(
                f"{store} holds {len(stored)} features for the {len(index)} pictures of {SPLIT}, and "
                f"{missing} of these have none: run predict again with the same --data settings"
            )
        queries.append(made[torch.searchsorted(stored, index)])
    manifest = read_manifest(stores[0])
    target, notes = published.target(stores[0], manifest)
    retrains = manifest.get("retrains", [])
    if "cloud" in retrains and "cloud" not in target.backend:
        raise UserError(
            f"{stores[0]}: the features are for a cloud classifier that the defence retrained, so their "
            f"utility cannot be measured without it. {notes[0]} Bring its checkpoint to "
            f"{Path(stores[0]).parent.parent / 'checkpoints' / 'best.ckpt'}"
        )
    entry: Entry = {
        "name": manifest["defense"],
        "settings": manifest["settings"],
        "cost": manifest.get("cost") or {"seconds_per_image": None, "peak_memory_mb": None},
        "retrains": retrains,
        "attacks": {},
        "verdicts": [],
        "store": stores[0],
        "queries": len(stores),
        "target": target,
        "features": torch.stack(queries),
    }
    return entry, notes


def hand_out_clouds(paths: list[str], entries: list[Entry], task_path: Path, split_hash: str) -> None:
    """Training scenario: give sets of features the classifier that has learned from such.

    Raises:
        UserError: a checkpoint is not of a cloud classifier of this experiment, two have learned from the
            same features, one from none of these, or none from the unprotected ones, the yardstick.
    """
    for path in paths:
        cloud = load_stage(path, CloudClassifier)
        if cloud.trained_on[0] != split_hash:
            raise UserError(
                f"{path} was trained on another split and may have seen the pictures that are audited: give "
                "the --data settings that it was trained with, or train it again"
            )
        cloud.expect_upstream(path, task=str(task_path))
        learned = cloud.hparams["learned_from"]
        theirs = [
            entry
            for entry in entries
            if (entry["target"] is None and learned is None)
            or (entry["target"] is not None and fits(learned, entry["target"]))
        ]
        for entry in theirs:
            if "cloud" in entry:
                raise UserError(
                    f"two of the cloud classifiers have learned from {title(entry)}: name one of them"
                )
            entry["cloud"] = cloud
        if not theirs:
            raise UserError(
                f"{path} has learned from none of these features: leave it out, or give its store"
            )
    if "cloud" not in entries[0]:
        raise UserError(
            "no cloud classifier has learned from unprotected features, the yardstick of the training "
            "scenario: train one without stores (fit --config configs/training_scenario.yaml), and name it "
            "in --clouds"
        )


def label(entries: list[Entry]) -> None:
    """Name entries by defence, by method if that is another, and by the settings in which stores differ.

    Adds `label` (unique), `family` (entries that differ in beta alone) and `beta` (None if there is none).
    Defences of the same settings are told apart by their weights.

    Raises:
        UserError: two stores cannot be told apart.
    """
    for entry in entries:
        own, peers = entry["settings"], [other for other in entries if other["name"] == entry["name"]]
        keys = [
            key
            for key in sorted(own)
            if (key not in ("beta", "seed") and any(peer["settings"].get(key) != own[key] for peer in peers))
            or (key == "method" and own[key] != entry["name"])
        ]
        entry["beta"] = own.get("beta")
        differs = [f"{key} {own[key]}" for key in keys]
        if any(_weights(peer) != _weights(entry) for peer in peers if _alike(peer, entry)):
            differs.append(f"weights {_weights(entry)}")
        beta = [] if entry["beta"] is None else [f"beta {entry['beta']:g}"]
        entry["family"] = f"{entry['name']} ({', '.join(differs)})" if differs else entry["name"]
        both = ", ".join(beta + differs)
        entry["label"] = f"{entry['name']} ({both})" if both else entry["name"]
    labels = [entry["label"] for entry in entries]
    twice = [name for name in labels if labels.count(name) > 1]
    if twice:
        raise UserError(f"two sets of features are the same, {twice[0]}: name each feature store once")


def _weights(entry: Entry) -> str:
    """The beginning of the hash of an entry's defence; empty for unprotected features and old stores."""
    return str(entry["target"].manifest.get("defense_sha256", ""))[:6] if entry["target"] else ""


def _alike(a: Entry, b: Entry) -> bool:
    return {**a["settings"], "seed": None} == {**b["settings"], "seed": None}


def people_shown(identity: Tensor, index: Tensor) -> list[int]:
    """Rows of the first picture of a few people, taken at even steps: not chosen by result."""
    people = identity.unique()
    steps = torch.linspace(0, len(people) - 1, min(PEOPLE_SHOWN, len(people))).round().long()
    rows = [(identity == person).nonzero()[:, 0] for person in people[steps]]
    return [int(own[index[own].argmin()]) for own in rows]
