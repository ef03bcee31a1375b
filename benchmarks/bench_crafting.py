"""Times crafting: the released algorithm, the default and its variants, on the same nets and faces.

    python benchmarks/bench_crafting.py [--ckpt CRAFTER.ckpt] [--faces N] [--batch 1 8 64 128] [--json FILE]

For each way to craft: seconds a picture, what that is in forward passes of the edge encoder (counted: no
property of the machine), the most memory, and what the crafted private_test faces are worth: mean AUC of
the unchanged cloud, mean identity similarity and faces named under the stronger of the white-box and the
black-box attack of the same experiment, by any of its oracles. The reference takes 450 outer steps that all
cost the same: it is timed for --reference-steps of them and multiplied, which is said. With
--reference-quality N… its quality is measured after so many steps on the way, at each --reference-beta, and
the table says where it is first worth as much as the default: mean AUC within 0.005, similarity within 0.02,
or better. Every figure comes from a process of its own, one after another. --only NAME… takes some of the
variants.

Two more measures need no checkpoint, only untrained nets; with them no variant is measured but those that
--only names: --paper-sizes times one picture of 64x64 by nets as large as the paper's, and --growth FOLDER
times crafting against pictures, batch, latent size and picture size, and draws a plot of each.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from crafting_cases import WAYS, defense, faces
from crafting_time import growth, operations, paper_sizes, protect
from crafting_worth import equal, judge, trajectory

from crafter_pl.defenses import Crafter
from crafter_pl.defenses.crafter_variants import RELEASED
from crafter_pl.errors import UserError
from crafter_pl.memory import peak_memory_mb
from crafter_pl.plugins import import_stages
from crafter_pl.stages.base import load_stage

OPTIONS: dict[str, tuple[Callable[[str], Any], str | None, Any, str]] = {
    "ckpt": (Path, None, Path("runs/synthetic/crafter/checkpoints/best.ckpt"), "a Crafter's"),
    "faces": (int, None, None, "pictures of private_test to craft (default: all)"),
    "batch": (int, "+", [1, 8, 128, 64], "the last one's quality is measured"),
    "only": (str, "+", None, "variants (default: all), and runs of crafting generators"),
    "reference-steps": (int, None, 1, "outer steps of the reference that are timed"),
    "reference-quality": (int, "+", None, "outer steps after which the reference is attacked"),
    "reference-beta": (float, "+", None, "there with each of these beta (default: Crafter's own)"),
    "oracles": (str, "+", ["oracle_resnet", "oracle_plain"], "runs of identity oracles"),
    "attack-steps": (int, None, 100, "of the white-box attack"),
    "device": (str, None, "cuda" if torch.cuda.is_available() else "cpu", "cpu or cuda"),
    "threads": (int, None, None, "threads on the CPU (default: all)"),
    "growth": (Path, None, None, "draw how the cost grows, into this folder"),
    "json": (
        Path,
        None,
        None,
        "also write all figures here; `speedup` is the reference's time over the default's, "
        "`speedup_at_equal` that up to the step where it is worth as much",
    ),
}


def measure(args: argparse.Namespace, name: str, batch: int, quality: bool) -> dict[str, Any]:
    """One variant at one batch size."""
    defended, (data, rows) = defense(args, name), faces(args)
    slow = name == "reference"
    factor = RELEASED.steps / args.reference_steps if slow else 1.0
    some = {key: value[:batch] for key, value in rows.items()}
    protect(defended, {key: value[:2] for key, value in some.items()}, batch, args.device)  # folds nets
    crafted, seconds = protect(defended, rows if quality and not slow else some, batch, args.device)
    found: dict[str, Any] = {"batch": batch, "seconds_per_image": factor * seconds / len(crafted)}
    if slow:
        found["extrapolated_from_steps"] = args.reference_steps
    found["peak_memory_mb"] = (
        torch.cuda.max_memory_allocated() / 2**20 if args.device.startswith("cuda") else peak_memory_mb()
    )
    if quality:
        few = batch if slow else 1  # the reference's critic's work is shared by the batch
        parts = (rows[key][:few].to(args.device) for key in ("image", "index"))
        found["encoder_forwards"] = factor * operations(defended, *parts)
        if not slow:
            found |= judge(args, data, rows, crafted)
        elif args.reference_quality:
            found["trajectory"] = []
            for beta in args.reference_beta or [None]:
                for point in trajectory(args, data, rows, batch, beta):
                    _line(f"  beta {point['beta']:g}, {point['steps']} steps", point)
                    point["seconds_per_image"] = found["seconds_per_image"] * point["steps"] / RELEASED.steps
                    found["trajectory"].append(point)
    return found


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """What unprotected features are worth."""
    data, rows = faces(args)
    edge = load_stage(args.ckpt, Crafter).task.to(args.device).edge
    with torch.no_grad():
        features = torch.cat([edge(part.to(args.device)).cpu() for part in rows["image"].split(64)])
    return judge(args, data, rows, features)


def apart(function: Callable[..., dict[str, Any]], args: argparse.Namespace, *more: Any) -> dict[str, Any]:
    """The result of a function in a process of its own: its memory is that process's, and it starts alike."""
    with multiprocessing.get_context("spawn").Pool(1, _start, [args.threads]) as pool:
        return pool.apply(function, (args, *more))


def _start(threads: int | None) -> None:
    import_stages()
    if threads:
        torch.set_num_threads(threads)


def options(words: list[str] | None = None) -> argparse.Namespace:
    """What the command line asks for.

    Raises:
        UserError: there is no checkpoint, and variants are asked for.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, (kind, nargs, default, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text, nargs=nargs)
    parser.add_argument(
        "--paper-sizes", action="store_true", help="time a picture of 64x64 by untrained nets of those"
    )
    args = parser.parse_args(words)
    if args.only is None:
        args.only = [] if args.paper_sizes or args.growth else list(WAYS)
    if args.only and not args.ckpt.is_file():
        raise UserError(
            f"no checkpoint {args.ckpt}: train Crafter first (make reproduce), or give --ckpt FILE"
        )
    return args


def main(words: list[str] | None = None) -> int:
    """Runs what the command line asks for; 2 after a user's mistake."""
    try:
        run(options(words))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(args: argparse.Namespace) -> None:
    """Runs everything and prints the table."""
    if args.threads:
        torch.set_num_threads(args.threads)
    cuda = args.device.startswith("cuda")
    where = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    report: dict[str, Any] = {"device": where}
    print(f"{args.device} ({where})", flush=True)
    if args.only:
        report |= table(args)
    if args.paper_sizes:
        report["paper_sizes"] = paper_sizes(args.device)
    if args.growth:
        report["growth"] = growth(args.growth, args.device)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def table(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of trained nets, printed as they come."""
    print(
        f"{args.ckpt}\n"
        f"{'':22}{'batch':>6}{'s/picture':>11}{'forwards':>10}{'MB':>7}{'AUC':>7}{'similar':>9}{'worst':>7}",
        flush=True,
    )
    unprotected = apart(plain, args)
    _line("unprotected", unprotected)
    variants: dict[str, list[dict[str, Any]]] = {name: [] for name in args.only}
    for name, rows in variants.items():
        for batch in args.batch:
            rows.append(apart(measure, args, name, batch, batch == args.batch[-1]))
            _line(name, rows[-1])
    return {
        "ckpt": str(args.ckpt),
        "unprotected": unprotected,
        "variants": variants,
        **speedup(variants),
    }


def speedup(variants: dict[str, list[dict[str, Any]]]) -> dict[str, float | None]:
    """How many times as long as the default the reference takes, whole and until it is worth as much."""
    if not {"reference", "default"} <= variants.keys():
        return {"speedup": None}
    slow, fast = (variants[name][-1] for name in ("reference", "default"))
    found: dict[str, float | None] = {"speedup": slow["seconds_per_image"] / fast["seconds_per_image"]}
    print(f"speedup of default over reference, per picture: {found['speedup']:.0f}", flush=True)
    if points := slow.get("trajectory"):
        point, last = equal(points, fast), points[-1]["steps"]
        found["speedup_at_equal"] = point and point["seconds_per_image"] / fast["seconds_per_image"]
        if point is None:
            print(
                f"the reference is not worth as much as the default after any of these steps up to {last}",
                flush=True,
            )
        else:
            print(
                f"worth as much as the default after {point['steps']} steps of the reference at beta "
                f"{point['beta']:g}: {found['speedup_at_equal']:.0f} times its time",
                flush=True,
            )
    return found


def _line(name: str, row: dict[str, Any]) -> None:
    cells = [
        format(row[key], form) if key in row else " " * int(form[:-1].partition(".")[0])
        for key, form in {
            "batch": "6d",
            "seconds_per_image": "11.4f",
            "encoder_forwards": "10.0f",
            "peak_memory_mb": "7.0f",
            "mean_auc": "7.3f",
            "identity_similarity": "9.3f",
            "worst_case": "7.3f",
        }.items()
    ]
    timed = row.get("extrapolated_from_steps")
    print(f"{name:22}{''.join(cells)}  {f'timed {timed} of 450 steps' if timed else ''}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
