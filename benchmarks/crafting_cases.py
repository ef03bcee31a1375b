"""What bench_crafting crafts: the ways to craft by their names, and the faces."""

import argparse
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses import (
    Answers,
    Crafter,
    CrafterFast,
    CrafterGenerator,
    CrafterReference,
    CrafterVariant,
    CrafterZ,
    Defense,
    ProtectOptions,
    load_defense,
)
from crafter_pl.errors import UserError
from crafter_pl.stages import load_stage, read_checkpoint

Defended = tuple[Defense[Any], ProtectOptions]
WAYS: dict[str, dict[str, Any] | type[CrafterVariant] | type[Answers]] = {
    "reference": CrafterReference,
    "default": {},  # settings of the Crafter that are changed
    "fast": CrafterFast,
    "single_start": {"double_start": False},
    "bf16": {"precision": "bf16"},
    "steps20": {"steps": 20},
    "steps20_lr0.2": {"steps": 20, "lr": 0.2},
    "steps10_lr0.4": {"steps": 10, "lr": 0.4},
    "start10": {"start_steps": 10},
    "inner1": {"inner_steps": 1},
    "cg1": {"iterations": 1},
    "inner1_cg1_start10": {"inner_steps": 1, "iterations": 1, "start_steps": 10},
    "crafter_z": CrafterZ,
    "answers": Answers,
}


def defense(args: argparse.Namespace, name: str) -> Defended:
    """One of `WAYS` and its options; another name is a crafting generator's run, or run:REFINE.

    Raises:
        UserError: it is neither.
    """
    way, given = WAYS.get(name), {}
    if way is None:
        run, _, refine = name.partition(":")
        stage = load_defense(args.ckpt.parents[2] / run / "checkpoints" / "best.ckpt")
        if not isinstance(stage, CrafterGenerator):
            raise UserError(f"{run} is no crafting generator, nor one of {', '.join(WAYS)}")
        given = {"refine_steps": int(refine or 0)}
    else:
        stage = load_stage(args.ckpt, Crafter)
        if isinstance(way, dict):
            stage.craft_settings = replace(stage.craft_settings, **way)
        elif way is Answers:
            stage = Answers.of(stage)
        else:
            stage = way(stage.upstream_files["task"][0], str(args.ckpt)).eval()
            given = {"steps": args.reference_steps} if way is CrafterReference else {}
    return stage.to(args.device), stage.options(**given)


def faces(args: argparse.Namespace) -> tuple[FacesDataModule, dict[str, Tensor]]:
    """The data that Crafter was trained with, and rows of private_test, spread over its people."""
    data = FacesDataModule(**read_checkpoint(args.ckpt)["config"]["data"])
    data.setup("test")
    rows = data.rows("private_test")
    count = len(rows["index"])
    wanted = min(args.faces or count, count)
    kept = (torch.arange(wanted) * count + count // 2) // wanted  # of every second one, the odd ones
    return data, {key: value[kept] for key, value in rows.items()}


def batches(rows: dict[str, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    """Pictures ``(N, 3, H, W)`` and their indices ``(N,)``, so many at a time."""
    return list(zip(rows["image"].split(size), rows["index"].split(size), strict=True))
