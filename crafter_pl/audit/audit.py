"""The audit: attack every set of features, let the oracles judge, measure the utility, write the report."""

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crafter_pl import __version__
from crafter_pl.attacks.base import Attack
from crafter_pl.audit import inputs, metrics
from crafter_pl.audit.bootstrap import Figure, IdentityBootstrap, figure, row_means
from crafter_pl.audit.cache import cache_key, load_done, reconstruct, remove_unused
from crafter_pl.audit.inputs import SPLIT, Entry
from crafter_pl.audit.panel import Judgement, Panel
from crafter_pl.audit.plots import Column, Gallery
from crafter_pl.audit.report import text, to_tensorboard, write_report
from crafter_pl.audit.verdict import title
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError
from crafter_pl.stages.base import sha256
from crafter_pl.stages.task import TaskModel


def audit(
    data: FacesDataModule,
    features: list[str],
    attacks: list[Attack],
    oracles: list[str],
    task_ckpt: str | None = None,
    experiment: str = "synthetic",
    runs_dir: str = "runs",
    out: str | None = None,
    device: str = "auto",
    batch_size: int = 64,
    bootstrap: int = 1000,
    seed: int = 0,
    lpips: bool = False,
    overwrite: bool = False,
) -> Path:
    """Attack features, protected and not, and report what they hide and what they keep.

    The unprotected features are computed in memory and never written. An attack is handed features alone, in
    an order that says nothing about people.

    Args:
        data: the faces; the private_test part is audited.
        features: feature stores to audit, for example one for each beta.
        attacks: what to attack them with.
        oracles: checkpoints of identity oracles; the first gives the paper's Eval Acc, all of them the worst
            case.
        task_ckpt: checkpoint of the task model (default: the experiment's own).
        experiment: folder under runs_dir where default checkpoints are looked for.
        runs_dir: folder of all runs.
        out: folder of the report (default: RUNS_DIR/EXPERIMENT/audit).
        device: auto, cpu, cuda, cuda:1, ...
        batch_size: pictures or features at a time.
        bootstrap: resamples behind each interval.
        seed: of the bootstrap, and of attacks that draw random numbers.
        lpips: also measure LPIPS; needs ImageNet weights of AlexNet.
        overwrite: replace a report that is there; reconstructions that are still valid are used again.

    Returns:
        Path of report.html.

    Raises:
        UserError: on missing or mismatched checkpoints, stores or data.
    """
    home = Path(runs_dir) / experiment
    folder = Path(out) if out is not None else home / "audit"
    if (folder / "report.json").exists() and not overwrite:
        raise UserError(f"there is a report in {folder} already: give --overwrite true, or another --out")
    inputs.check_arguments(attacks, oracles, bootstrap, batch_size)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    task_path = Path(task_ckpt) if task_ckpt is not None else home / "task" / "checkpoints" / "best.ckpt"

    data.setup("test")
    task, notes = inputs.load_task(task_path, data)
    task.to(device)
    panel_nets = {
        name: oracle.to(device) for name, oracle in inputs.load_oracles(oracles, data.split_hash).items()
    }
    for attack in attacks:
        attack.resolve(home)
        notes += inputs.check_attack(attack, data.split_hash)
    rows = data.rows(SPLIT)
    images = rows["image"]
    entries = [inputs.unprotected(task, images, device, batch_size)]
    entries += [
        inputs.protected(store, task, task_path, data.split_hash, rows["index"]) for store in features
    ]
    inputs.label(entries)
    entries[1:] = sorted(entries[1:], key=lambda entry: (entry["family"], entry["beta"] or 0.0))

    panel = Panel(panel_nets, images, rows["identity"], device, batch_size)
    boot = IdentityBootstrap(rows["identity"], bootstrap, seed)
    cache = folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    shown = inputs.people_shown(rows["identity"], rows["index"])
    gallery = Gallery(images[shown], [])
    verdicts: list[list[Judgement]] = [[] for _ in entries]
    used = set()
    for attack in attacks:
        made = _attack_all(attack, entries, cache, images.shape[1:], device, batch_size, seed)
        for entry, judgements, (path, pictures) in zip(entries, verdicts, made, strict=True):
            judgement = panel.judge(pictures)
            judgements.append(judgement)
            entry["attacks"][attack.name] = _privacy(
                judgement, pictures, images, list(panel_nets), boot, lpips
            )
            named = judgement.hits.any(dim=0)[shown].tolist()
            gallery.columns.append(Column(attack.name, title(entry), pictures[shown], named))
            used.add(path)

    replicates = [_utility(entry, task, data, rows, boot, device, batch_size) for entry in entries]
    _worst_case(entries, verdicts, panel, boot, replicates)
    report = {
        "schema": 1,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "data": {
            "source": data.source,
            "split_hash": data.split_hash,
            "image_size": int(images.shape[-1]),
            "identities": boot.people,
            "images": len(images),
            "chance": 1 / len(panel.people),
            "attributes_left_out": [
                n for n in data.attribute_names if n not in entries[0]["utility"]["per_attribute"]
            ],
        },
        "oracles": _describe_oracles(panel, oracles, boot),
        "panel": {"accuracy_on_originals": boot.mean(panel.originals.hits.any(dim=0))},
        "attacks": {attack.name: attack.describe() for attack in attacks},
        "defenses": [{k: value for k, value in entry.items() if k != "features"} for entry in entries],
        "notes": notes,
        "settings": {
            "task_ckpt": str(task_path),
            "task_sha256": sha256(task_path),
            "features": features,
            "oracles": oracles,
            "split": SPLIT,
            "device": device,
            "batch_size": batch_size,
            "bootstrap": bootstrap,
            "seed": seed,
        },
    }
    page = write_report(folder, report, gallery)
    to_tensorboard(folder, report, gallery)
    remove_unused(cache, used)
    print(f"\n{text(report)}\n\nreport: {page}", flush=True)
    return page


def _attack_all(
    attack: Attack,
    entries: list[Entry],
    cache: Path,
    image_shape: tuple[int, ...],
    device: str,
    batch_size: int,
    seed: int,
) -> Iterator[tuple[Path, Tensor]]:
    """Let an attack at every set of features: cache file and reconstructions in the order of the pictures.

    Neighbours in a split are often one person. An attack must not learn that from the order, so it gets a
    shuffled one.
    """
    order = torch.randperm(len(entries[0]["features"]), generator=torch.Generator().manual_seed(seed))
    prepared = False
    for entry in entries:
        mixed = entry["features"][order]
        path = cache / f"{cache_key(mixed, attack.describe(), batch_size, seed)}.safetensors"
        done = load_done(path, len(mixed))
        if not prepared and (done is None or len(done) < len(mixed)):
            attack.prepare(device)
            prepared = True
        name = f"{attack.name} on {title(entry)}"
        made = reconstruct(attack, mixed, path, tuple(image_shape), batch_size, seed, name)
        pictures = torch.empty_like(made)
        pictures[order] = made
        yield path, pictures


def _privacy(
    judgement: Judgement,
    images: Tensor,
    originals: Tensor,
    oracles: list[str],
    boot: IdentityBootstrap,
    lpips: bool,
) -> dict[str, Any]:
    def over_oracles(values: Tensor) -> dict[str, Figure]:
        return {name: boot.mean(row) for name, row in zip(oracles, values, strict=True)}

    result = {
        "eval_acc": boot.mean(judgement.hits[0]),
        "eval_acc_top5": boot.mean(judgement.top5[0]),
        "by_oracle": over_oracles(judgement.hits),
        "panel_any": boot.mean(judgement.hits.any(dim=0)),
        "identity_similarity": boot.mean(judgement.similarity[0]),
        "identity_similarity_by_oracle": over_oracles(judgement.similarity),
        "ssim": boot.mean(_in_parts(metrics.ssim, images, originals)),
        "psnr": boot.mean(_in_parts(metrics.psnr, images, originals)),
    }
    if lpips:
        result["lpips"] = boot.mean(metrics.lpips(images, originals))
    return result


def _in_parts(metric: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, size: int = 256) -> Tensor:
    return torch.cat([metric(x, y) for x, y in zip(a.split(size), b.split(size), strict=True)])


@torch.no_grad()
def _utility(
    entry: Entry,
    task: TaskModel,
    data: FacesDataModule,
    rows: dict[str, Tensor],
    boot: IdentityBootstrap,
    device: str,
    batch_size: int,
) -> NDArray[np.float64]:
    """Put the AUC of every attribute and their mean into the entry; return the mean's replicates `(B,)`."""
    scores = torch.cat(
        [task.cloud(part.to(device)).float().cpu() for part in entry["features"].split(batch_size)]
    )
    targets, names = rows["attributes"], list(data.attribute_names)
    result = metrics.attribute_auc(scores, targets, names)
    kept = [i for i, name in enumerate(names) if name in result.per_attribute]
    replicates = boot.auc_replicates(scores[:, kept], targets[:, kept])
    per_attribute = {}
    for column, own in zip(kept, replicates.T, strict=True):
        value = figure(result.per_attribute[names[column]], own)
        per_attribute[names[column]] = {**value, "positives": int(targets[:, column].sum())}
    means = row_means(replicates)
    entry["utility"] = {"mean_auc": figure(result.mean, means), "per_attribute": per_attribute}
    return means


def _worst_case(
    entries: list[Entry],
    verdicts: list[list[Judgement]],
    panel: Panel,
    boot: IdentityBootstrap,
    utility: list[NDArray[np.float64]],
) -> None:
    """Put the worst case into every entry, and the paired difference to the unprotected features."""
    first = None
    for entry, judgements, means in zip(entries, verdicts, utility, strict=True):
        hits = metrics.panel_hits([judgement.hits.any(dim=0) for judgement in judgements])
        named = torch.cat([judgement.named for judgement in judgements])
        chance = metrics.worst_case_chance(named, panel.truth, len(panel.people))
        entry["worst_case"] = {"eval_acc": boot.mean(hits), "chance": chance}
        if first is None:
            first, rate = entry, boot.mean_replicates(hits)
            continue
        auc = entry["utility"]["mean_auc"]["value"] - first["utility"]["mean_auc"]["value"]
        worst = entry["worst_case"]["eval_acc"]["value"] - first["worst_case"]["eval_acc"]["value"]
        entry["change"] = {
            "mean_auc": figure(auc, means - utility[0]),
            "worst_case_eval_acc": figure(worst, boot.mean_replicates(hits) - rate),
        }


def _describe_oracles(panel: Panel, paths: list[str], boot: IdentityBootstrap) -> list[dict[str, Any]]:
    found = []
    for (name, oracle), path, hits in zip(panel.oracles.items(), paths, panel.originals.hits, strict=True):
        accuracy = boot.mean(hits)
        found.append(
            {
                "name": name,
                "accuracy_on_originals": accuracy["value"],
                "ci95": accuracy["ci95"],
                "people": len(panel.classes[name]),
                "settings": {
                    key: oracle.hparams[key] for key in ("backbone", "grey", "width") if key in oracle.hparams
                },
                "checkpoint": path,
                "sha256": sha256(path),
            }
        )
    return found
