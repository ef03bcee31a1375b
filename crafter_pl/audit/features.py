"""The sets of features that an audit compares: stores read and named, with their targets and classifiers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from crafter_pl.attacks.base import Target, fits
from crafter_pl.audit.find import SPLIT
from crafter_pl.audit.load import Published
from crafter_pl.audit.schema import FeatureSet
from crafter_pl.data.provenance import present, seedless
from crafter_pl.data.store import read_manifest, read_store
from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.stages import CloudClassifier, TaskModel, load_stage

COST = ("seconds_per_image", "peak_memory_mb")
Classifier = Callable[[Tensor], Tensor]  # features (N, C, h, w) -> attribute logits (N, A)
_NOT_SETTINGS = ("seed", "shards", "count", "cost", "fingerprint")  # one protection may differ in these


@dataclass(frozen=True)
class Loaded:
    """A set of features in memory.

    Attributes:
        about: what it is.
        target: what made it, as attackers may know it; None: the features are unprotected.
        queries: protected features of each face, ``(K, N, C, h, w)``, from one store or several.
        cloud: the classifier that answers to these features.
        trained_cloud: in the training scenario, the one that has learned from such features.
    """

    about: FeatureSet
    target: Target | None
    queries: Tensor
    cloud: Classifier
    trained_cloud: Classifier | None = None


def same_protection(stores: Sequence[str]) -> list[list[str]]:
    """Groups stores that are equal in everything except the seed: several queries of each face.

    Raises:
        UserError: two stores of a group have one seed, too: they are the same.
    """
    groups: dict[str, dict[int | None, str]] = {}
    for store in stores:
        manifest = read_manifest(store)
        plan = {key: value for key, value in manifest.items() if key not in _NOT_SETTINGS}
        plan["settings"] = seedless(manifest["settings"])
        group, seed = groups.setdefault(json.dumps(plan, sort_keys=True), {}), manifest.get("seed")
        if seed in group:
            raise UserError(
                f"two sets of features are the same, {group[seed]} and {store}: name each feature store once"
            )
        group[seed] = store
    return [list(group.values()) for group in groups.values()]


def load_features(
    stores: list[str],
    published: Published,
    task: TaskModel,
    task_path: Path,
    split_hash: str,
    index: Tensor,
    clouds: list[str] | None = None,
) -> tuple[list[Loaded], list[str]]:
    """All sets of features, and what the report must note.

    The unprotected ones come first, and are left empty for `encode`; then by family and beta. Stores that
    differ in their seed alone are one set.

    Args:
        stores: the feature stores.
        published: finds the defences behind them.
        task: the task model.
        task_path: its checkpoint.
        split_hash: of the data.
        index: the pictures' stable indices ``(N,)``, in the order in which the features are returned.
        clouds: checkpoints of cloud classifiers of the training scenario.

    Raises:
        UserError: a store is damaged, was made for something else, or does not hold exactly these pictures;
            its cloud was retrained and is not at hand; two stores cannot be told apart; or a cloud classifier
            does not fit.
    """
    about = FeatureSet(name="none", beta=None, settings={}, cost=dict.fromkeys(COST, 0.0))
    made, notes = [Loaded(about, None, torch.empty(0), task.cloud)], []
    for group in same_protection(stores):
        queries = [_read(store, task, task_path, split_hash, index) for store in group]
        manifest = read_manifest(group[0])
        target, remarks = published.target(group[0], manifest)
        notes += remarks
        retrains = manifest.get("retrains", [])
        if "cloud" in retrains and "cloud" not in target.backend:
            raise UserError(
                f"{group[0]}: the features are for a cloud classifier that the defence retrained, so their "
                f"utility cannot be measured without it. {remarks[0]} Bring its checkpoint to "
                f"{Path(group[0]).parent.parent / 'checkpoints' / 'best.ckpt'}"
            )
        net = target.backend["cloud"].to(published.device).eval() if "cloud" in retrains else task.cloud
        about = FeatureSet(
            name=manifest["defense"],
            beta=manifest["settings"].get("beta"),
            settings=manifest["settings"],
            cost=manifest.get("cost") or dict.fromkeys(COST),
            retrains=retrains,
            store=group[0],
            queries=len(group),
        )
        made.append(Loaded(about, target, torch.stack(queries), net))
    made = _labelled(made)
    if clouds:
        made = _with_clouds(clouds, made, task_path, split_hash, published.device)
    return [made[0], *sorted(made[1:], key=lambda one: (one.about.family, one.about.beta or 0.0))], notes


def _read(store: str, task: TaskModel, task_path: Path, split_hash: str, index: Tensor) -> Tensor:
    """The features of one store ``(N, C, h, w)``, in the order of ``index``."""
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
    return made[torch.searchsorted(stored, index)]


@torch.no_grad()
def encode(task: TaskModel, images: Tensor, device: str, batch_size: int) -> Tensor:
    """The encoder's features of the pictures, one query `(1, N, C, h, w)`: in memory, never written."""
    return torch.cat([task.edge(part.to(device)).float().cpu() for part in images.split(batch_size)])[None]


def _labelled(sets: list[Loaded]) -> list[Loaded]:
    """Named by defence, and by the settings in which sets differ.

    Defences of the same settings are told apart by their weights.

    Raises:
        UserError: two sets cannot be told apart.
    """
    named = []
    for one in sets:
        about, own = one.about, one.about.settings
        peers = [other for other in sets if other.about.name == about.name]
        differs = [
            f"{key} {own[key]}"
            for key in sorted(own)
            if key not in ("beta", "seed") and any(peer.about.settings.get(key) != own[key] for peer in peers)
        ]
        if any(_weights(p) != _weights(one) for p in peers if seedless(p.about.settings) == seedless(own)):
            differs.append(f"weights {_weights(one)}")
        beta = [] if about.beta is None else [f"beta {about.beta:g}"]
        family, label = (
            f"{about.name} ({', '.join(words)})" if words else about.name
            for words in (differs, beta + differs)
        )
        named.append(replace(one, about=replace(about, family=family, label=label)))
    labels = [one.about.label for one in named]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"two sets of features are the same, {twice[0]}: name each feature store once")
    return named


def _weights(one: Loaded) -> str:
    """The beginning of the hash of a defence; empty for unprotected features and old stores."""
    return str(one.target.manifest.get("defense_sha256", ""))[:6] if one.target else ""


def _with_clouds(
    paths: list[str], sets: list[Loaded], task_path: Path, split_hash: str, device: str
) -> list[Loaded]:
    """Training scenario: sets of features with the classifier that has learned from such.

    Raises:
        UserError: a checkpoint is not of a cloud classifier of this experiment, two have learned from the
            same features, one from none of these, or none from the unprotected ones, the yardstick.
    """
    learned: dict[str, Classifier] = {}
    for path in paths:
        cloud = load_stage(path, CloudClassifier)
        if cloud.trained_on[0] != split_hash:
            raise UserError(
                f"{path} was trained on another split and may have seen the pictures that are audited: give "
                "the --data settings that it was trained with, or train it again"
            )
        cloud.expect_upstream(path, task=str(task_path))
        source = cloud.hparams["learned_from"] and present(cloud.hparams["learned_from"])
        theirs = [
            one.about for one in sets if (source is None if one.target is None else fits(source, one.target))
        ]
        for about in theirs:
            if about.label in learned:
                raise UserError(
                    f"two of the cloud classifiers have learned from {about.title}: name one of them"
                )
            learned[about.label] = cloud.to(device)
        if not theirs:
            raise UserError(
                f"{path} has learned from none of these features: leave it out, or give its store"
            )
    if sets[0].about.label not in learned:
        raise UserError(
            "no cloud classifier has learned from unprotected features, the yardstick of the training "
            "scenario: train one without stores (fit --config configs/training_scenario.yaml), and name it "
            "in --clouds"
        )
    return [replace(one, trained_cloud=learned.get(one.about.label)) for one in sets]
