"""What crafted faces are worth: mean AUC of the unchanged cloud, and what attacks and oracles see in them."""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from crafting_cases import batches, defense
from torch import Tensor

from crafter_pl.attacks import DecoderAttack, WhiteBoxAttack
from crafter_pl.audit.load import load_oracles
from crafter_pl.audit.panel import Panel
from crafter_pl.commands import Commands
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses import Crafter
from crafter_pl.metrics import attribute_auc
from crafter_pl.progress import Steps
from crafter_pl.stages.base import load_stage


def judge(
    args: argparse.Namespace, data: FacesDataModule, rows: dict[str, Tensor], features: Tensor
) -> dict[str, Any]:
    """Utility and privacy of features ``(N, C, h, w)`` of the rows."""
    home, device = args.ckpt.parents[2], args.device
    cloud = load_stage(args.ckpt, Crafter).task.to(device).cloud
    with torch.no_grad():
        scores = torch.cat([cloud(part.to(device)).float().cpu() for part in features.split(64)])
    paths = [str(home / name / "checkpoints" / "best.ckpt") for name in args.oracles]
    panel = Panel(load_oracles(paths, data, device), rows["image"], rows["identity"], device, 64)
    white = WhiteBoxAttack(steps=args.attack_steps, restarts=1)
    similarity, hits, named = 0.0, torch.zeros(len(features), dtype=torch.bool), {}
    for attack in (one.against(None, Commands(home)) for one in (white, DecoderAttack())):
        attack.prepare(device)
        torch.manual_seed(0)
        verdict = panel.judge(torch.cat([attack.reconstruct(part) for part in features.split(64)]))
        similarity = max(similarity, float(verdict.similarity.mean(1).max()))
        hits |= verdict.hits.any(0)
        named[attack.name] = float(verdict.hits[0].float().mean())
    return {
        "mean_auc": float(np.nanmean(attribute_auc(scores, rows["attributes"]))),
        "identity_similarity": similarity,
        "worst_case": float(hits.float().mean()),
        "eval_acc": named,
    }


def trajectory(
    args: argparse.Namespace,
    data: FacesDataModule,
    rows: dict[str, Tensor],
    batch: int,
    beta: float | None,
) -> Iterator[dict[str, Any]]:
    """What the released algorithm's features are worth after each of ``--reference-quality`` steps.

    ``beta`` None is Crafter's own.
    """
    stage, options = defense(args, "reference")
    wanted = sorted(args.reference_quality)
    options = replace(options, steps=wanted[-1], beta=options.beta if beta is None else beta)
    kept: dict[int, list[Tensor]] = {count: [] for count in wanted}
    parts = batches(rows, batch)
    steps = Steps("reference", len(parts) * wanted[-1], unit="outer steps")

    def keep(step: int, features: Tensor) -> None:
        if step + 1 in kept:
            kept[step + 1].append(features.float().cpu().clone())
        steps.step()

    for images, index in parts:
        stage.craft(images.to(args.device), index.to(args.device), options, keep)
    steps.close()
    for count, made in kept.items():
        yield {"beta": options.beta, "steps": count, **judge(args, data, rows, torch.cat(made))}


def equal(points: list[dict[str, Any]], to: dict[str, Any]) -> dict[str, Any] | None:
    """The first point whose utility and privacy are those of a row, or better; None if there is none."""
    worth = [
        point
        for point in points
        if point["mean_auc"] >= to["mean_auc"] - 0.005
        and point["identity_similarity"] <= to["identity_similarity"] + 0.02
    ]
    return min(worth, key=lambda point: point["steps"], default=None)
