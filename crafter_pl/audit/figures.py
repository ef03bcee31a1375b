"""The figures of an audit, each with its interval: privacy, utility, rulers, and how good the oracles are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crafter_pl.attacks.base import Ruler
from crafter_pl.audit import metrics
from crafter_pl.audit.bootstrap import Figure, IdentityBootstrap, figure, row_means
from crafter_pl.audit.inputs import Entry
from crafter_pl.audit.panel import Judgement, Panel
from crafter_pl.audit.verification import tar_at_far
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.stages.task import TaskModel


def privacy(
    judgement: Judgement,
    images: Tensor,
    originals: Tensor,
    panel: Panel,
    boot: IdentityBootstrap,
    lpips: bool,
) -> dict[str, Any]:
    """What the panel and the picture metrics say of an attack's reconstructions `(N, 3, H, W)`.

    Args:
        judgement: the panel's, of the same pictures.
        images: reconstructions, in the order of the originals.
        originals: `(N, 3, H, W)` in [0, 1].
        panel: its oracles and their embeddings of the originals.
        boot: resamples of people.
        lpips: measure it, too.
    """
    oracles = list(panel.oracles)

    def over_oracles(values: Tensor) -> dict[str, Figure]:
        return {name: boot.mean(row) for name, row in zip(oracles, values, strict=True)}

    result: dict[str, Any] = {
        "eval_acc": boot.mean(judgement.hits[0]),
        "eval_acc_top5": boot.mean(judgement.top5[0]),
        "by_oracle": over_oracles(judgement.hits),
        "top5_by_oracle": over_oracles(judgement.top5),
        "panel_any": boot.mean(judgement.hits.any(dim=0)),
        "panel_any_top5": boot.mean(judgement.top5.any(dim=0)),
        "identity_similarity": boot.mean(judgement.similarity[0]),
        "identity_similarity_by_oracle": over_oracles(judgement.similarity),
        "ssim": boot.mean(_in_parts(metrics.ssim, images, originals)),
        "psnr": boot.mean(_in_parts(metrics.psnr, images, originals)),
    }
    accepted = _accepted(judgement.embeddings, panel, boot)
    if accepted:
        result |= {"tar": accepted[oracles[0]], "tar_by_oracle": accepted}
    if lpips:
        result["lpips"] = boot.mean(metrics.lpips(images, originals))
    return result


def _accepted(embeddings: list[Tensor], panel: Panel, boot: IdentityBootstrap) -> dict[str, Figure]:
    """TAR at FAR 1 % by each oracle's embeddings; empty where nobody has two pictures."""
    found = {
        name: tar_at_far(own, original, boot)
        for name, own, original in zip(panel.oracles, embeddings, panel.embeddings, strict=True)
    }
    return {name: value for name, value in found.items() if value is not None}


def _in_parts(metric: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, size: int = 16) -> Tensor:
    """In small parts: torchmetrics' SSIM takes four times as long for 256 pictures at once (docs/LOG.md)."""
    return torch.cat([metric(x, y) for x, y in zip(a.split(size), b.split(size), strict=True)])


@torch.no_grad()
def rule(
    ruler: Ruler,
    entries: list[Entry],
    identity: Tensor,
    boot: IdentityBootstrap,
    device: str,
    batch_size: int,
) -> dict[str, Any]:
    """Put into every entry how often a ruler names the right person; return what the ruler is."""
    described: dict[str, Any] = {}
    for entry in entries:
        ruler.aim_at(entry["target"])
        ruler.prepare(device)
        logits = torch.cat(
            [ruler.identify(p).float() for p in ruler.observe(entry["features"]).split(batch_size)]
        )
        column = ruler.identities[None, :] == identity[:, None]
        if strangers := identity[~column.any(dim=1)].unique().tolist():
            raise UserError(
                f"ruler {ruler.name} was trained on other people: it does not know {len(strangers)} of the "
                f"audited ones (first {strangers[0]}). Train it on this split."
            )
        label = column.long().argmax(dim=1)
        entry.setdefault("rulers", {})[ruler.name] = {
            "top1": boot.mean(metrics.topk_hits(logits, label, 1)),
            "top5": boot.mean(metrics.topk_hits(logits, label, 5)),
            "checkpoints": ruler.describe()["checkpoints"],
            "learnt": ruler.learnt,
        }
        if not ruler.learnt:
            entry["rulers"][ruler.name]["train"] = ruler.train(entry["target"])
        described = described or ruler.describe()
    return described


def cloud(entry: Entry, task: TaskModel, device: str) -> Callable[[Tensor], Tensor]:
    """The classifier that answers to these features: the task model's, or the one the defence retrained."""
    if "cloud" in entry["retrains"]:
        net: nn.Module = entry["target"].backend["cloud"]  # `inputs.protected` has found it
        return net.to(device).eval()
    return task.cloud


@torch.no_grad()
def utility(
    entry: Entry,
    cloud: Callable[[Tensor], Tensor],
    data: FacesDataModule,
    rows: dict[str, Tensor],
    boot: IdentityBootstrap,
    device: str,
    batch_size: int,
    name: str = "utility",
) -> NDArray[np.float64]:
    """Put every attribute's AUC and their mean into `entry[name]`; return the mean's replicates `(B,)`.

    The answers of the cloud `(N, A)` are kept in `entry["scores"][name]`.
    """
    parts = entry["features"][0].split(batch_size)
    scores = torch.cat([cloud(part.to(device)).float().cpu() for part in parts])
    entry.setdefault("scores", {})[name] = scores
    targets, names = rows["attributes"], list(data.attribute_names)
    result = metrics.attribute_auc(scores, targets, names)
    kept = [i for i, name in enumerate(names) if name in result.per_attribute]
    replicates = boot.auc_replicates(scores[:, kept], targets[:, kept])
    per_attribute = {}
    for column, own in zip(kept, replicates.T, strict=True):
        value = figure(result.per_attribute[names[column]], own)
        per_attribute[names[column]] = {**value, "positives": int(targets[:, column].sum())}
    means = row_means(replicates)
    entry[name] = {"mean_auc": figure(result.mean, means), "per_attribute": per_attribute}
    return means


def describe_oracles(panel: Panel, paths: list[str], boot: IdentityBootstrap) -> list[dict[str, Any]]:
    """Each oracle with its settings, and how well it names and matches the originals."""
    found = []
    tar = _accepted(panel.embeddings, panel, boot)
    for (name, oracle), path, hits in zip(panel.oracles.items(), paths, panel.originals.hits, strict=True):
        accuracy = boot.mean(hits)
        found.append(
            {
                "name": name,
                "accuracy_on_originals": accuracy["value"],
                "ci95": accuracy["ci95"],
                **({"tar_on_originals": tar[name]} if name in tar else {}),
                "people": len(panel.classes[name]),
                "settings": {
                    key: oracle.hparams[key]
                    for key in ("backbone", "grey", "width", "heavy", "reconstructed")
                    if key in oracle.hparams
                },
                "checkpoint": path,
                "sha256": sha256(path),
            }
        )
    return found
