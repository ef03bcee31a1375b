"""Times crafting: the released algorithm, the default and its variants, on the same nets and faces.

    python scripts/bench_crafting.py [--ckpt CRAFTER.ckpt] [--faces N] [--batch 1 8 64 128] [--json FILE]

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

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from crafter_pl.attacks import DecoderAttack, WhiteBoxAttack
from crafter_pl.audit import inputs, metrics
from crafter_pl.audit.panel import Panel
from crafter_pl.crafting.craft import CraftNets, CraftSettings, craft, craft_step, start_crafting
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
    load_defense,
)
from crafter_pl.defenses.crafter_variants import FAST, RELEASED
from crafter_pl.defenses.crafting import CraftOptions
from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.errors import UserError
from crafter_pl.memory import peak_memory_mb
from crafter_pl.nets import AmortizerNet, Critic, SplitClassifier, build_generator, freeze
from crafter_pl.nets.crafting_net import CraftingNet, CraftingPass
from crafter_pl.plugins import import_stages
from crafter_pl.progress import Steps
from crafter_pl.stages.base import load_stage, read_checkpoint

# Settings of the Crafter that are changed.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "single_start": {"double_start": False},
    "bf16": {"precision": "bf16"},
    "steps20": {"steps": 20},
    "steps20_lr0.2": {"steps": 20, "lr": 0.2},
    "steps10_lr0.4": {"steps": 10, "lr": 0.4},
    "start10": {"start_steps": 10},
    "inner1": {"inner_steps": 1},
    "cg1": {"iterations": 1},
    "inner1_cg1_start10": {"inner_steps": 1, "iterations": 1, "start_steps": 10},
}
OTHERS: dict[str, type[CrafterVariant]] = {  # defences by that Crafter
    "reference": CrafterReference,
    "fast": CrafterFast,
    "crafter_z": CrafterZ,
}
NAMES = ("reference", "default", "fast", *list(VARIANTS)[1:], "crafter_z", "answers")


CELEBA = CraftSettings(task_weight=0.5, steps=40, lr=0.1, inner_steps=2, iterations=2)  # configs/celeba/


def synchronised(device: str) -> float:
    """The time, once the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def defense(args: argparse.Namespace, name: str) -> tuple[Defense[Any], ProtectOptions]:
    """The variant and its options; another name is a crafting generator's run, or run:REFINE."""
    if name in NAMES:
        stage = load_stage(args.ckpt, Crafter)
        if name in OTHERS:
            other = OTHERS[name](stage.upstream_files["task"][0], str(args.ckpt)).eval().to(args.device)
            return other, other.options(**({"steps": args.reference_steps} if name == "reference" else {}))
        if name == "answers":
            answers = Answers.of(stage).to(args.device)
            return answers, answers.options()
        stage.craft_settings = replace(stage.craft_settings, **VARIANTS[name])
        return stage.to(args.device), stage.options()
    run, _, refine = name.partition(":")
    made = load_defense(args.ckpt.parents[2] / run / "checkpoints" / "best.ckpt")
    if not isinstance(made, CrafterGenerator):
        raise UserError(f"{run} is no crafting generator, nor one of {', '.join(NAMES)}")
    return made.to(args.device), made.options(refine_steps=int(refine or 0))


def faces(args: argparse.Namespace) -> tuple[FacesDataModule, dict[str, torch.Tensor]]:
    """The data that Crafter was trained with, and rows of private_test, spread over its people."""
    settings = read_checkpoint(args.ckpt)["config"]["data"]
    data = FacesDataModule(**settings)
    data.setup("test")
    rows = data.rows("private_test")
    count = len(rows["index"])
    wanted = min(args.faces or count, count)
    kept = (torch.arange(wanted) * count + count // 2) // wanted  # of every second one, the odd ones
    return data, {key: value[kept] for key, value in rows.items()}


def protect(
    defended: tuple[Defense[Any], ProtectOptions], rows: dict[str, torch.Tensor], batch: int, device: str
) -> tuple[torch.Tensor, float]:
    """Crafted features of all rows, and the seconds that took."""
    (stage, options), parts, began = defended, [], synchronised(device)
    for at in range(0, len(rows["index"]), batch):
        images, index = (rows[key][at : at + batch].to(device) for key in ("image", "index"))
        parts.append(stage.protect(images, index, options).detach())
    seconds = synchronised(device) - began
    return torch.cat(parts).float().cpu(), seconds


class Operations(TorchDispatchMode):
    """Counts the multiplications and additions of products and convolutions, those of any gradient too.

    `FlopCounterMode` has the formulas, but cannot follow `autograd.grad`.
    """

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Does the operation and counts it."""
        made = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=made)
        return made


def operations(
    defended: tuple[Defense[Any], ProtectOptions], images: torch.Tensor, index: torch.Tensor
) -> float:
    """Multiplications and additions of crafting pictures, in forward passes of the edge encoder each."""
    stage, options = defended
    with Operations() as encoder, torch.no_grad():
        stage.task.edge(images)
    with Operations() as whole:
        stage.protect(images, index, options)
    return whole.total / encoder.total


def trajectory(
    args: argparse.Namespace,
    data: FacesDataModule,
    rows: dict[str, torch.Tensor],
    batch: int,
    beta: float | None,
) -> list[dict[str, Any]]:
    """What the released algorithm's features are worth after each of ``--reference-quality`` steps.

    ``beta`` None is Crafter's own.
    """
    stage, options = defense(args, "reference")
    assert isinstance(stage, CrafterReference) and isinstance(options, CraftOptions)
    wanted = sorted(args.reference_quality)
    beta = options.beta if beta is None else beta
    options = replace(options, steps=wanted[-1], beta=beta)
    kept: dict[int, list[torch.Tensor]] = {count: [] for count in wanted}

    def keep(step: int, _: dict[str, float], features: torch.Tensor) -> None:
        if step + 1 in kept:
            kept[step + 1].append(features.float().cpu().clone())
        steps.step()

    batches = -(-len(rows["index"]) // batch)
    steps = Steps("reference", batches * wanted[-1], unit="outer steps")
    for at in range(0, len(rows["index"]), batch):
        images, index = (rows[key][at : at + batch].to(args.device) for key in ("image", "index"))
        stage.craft(images, index, options, keep)
    steps.close()
    points = []
    for count, parts in kept.items():
        points.append({"beta": beta, "steps": count, **judge(args, data, rows, torch.cat(parts))})
        _line(f"  beta {beta:g}, {count} steps", points[-1])
    return points


def measure(args: argparse.Namespace, name: str, batch: int, quality: bool) -> dict[str, Any]:
    """One variant at one batch size."""
    stage, (data, rows) = defense(args, name), faces(args)
    steps, factor = args.reference_steps, 1.0
    if name == "reference":
        factor = RELEASED.steps / steps
    some = {key: value[:batch] for key, value in rows.items()}
    warm = {key: value[: min(batch, 2)] for key, value in rows.items()}
    protect(stage, warm, batch, args.device)  # folds nets, fills caches
    crafted, seconds = protect(stage, rows if quality and name != "reference" else some, batch, args.device)
    found: dict[str, Any] = {"batch": batch, "seconds_per_image": factor * seconds / len(crafted)}
    if factor != 1:
        found["extrapolated_from_steps"] = steps
    if args.device.startswith("cuda"):
        found["peak_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    else:
        found["peak_memory_mb"] = peak_memory_mb()
    if quality:
        few = batch if name == "reference" else 1  # its critic's work is shared by the batch
        found["encoder_forwards"] = factor * operations(
            stage, some["image"][:few].to(args.device), some["index"][:few].to(args.device)
        )
        if name != "reference":
            found |= judge(args, data, rows, crafted)
        elif args.reference_quality:
            betas = args.reference_beta or [None]
            found["trajectory"] = [p for beta in betas for p in trajectory(args, data, rows, batch, beta)]
            for point in found["trajectory"]:
                point["seconds_per_image"] = found["seconds_per_image"] * point["steps"] / RELEASED.steps
    return found


def judge(
    args: argparse.Namespace,
    data: FacesDataModule,
    rows: dict[str, torch.Tensor],
    features: torch.Tensor,
) -> dict[str, Any]:
    """Utility and privacy of features ``(N, C, h, w)`` of the rows."""
    home, device = args.ckpt.parents[2], args.device
    cloud = load_stage(args.ckpt, Crafter).task.to(device).cloud
    with torch.no_grad():
        scores = torch.cat([cloud(part.to(device)).float().cpu() for part in features.split(64)])
    paths = [str(home / name / "checkpoints" / "best.ckpt") for name in args.oracles]
    panel = Panel(
        {key: net.to(device) for key, net in inputs.load_oracles(paths, data).items()},
        rows["image"], rows["identity"], device, 64,
    )  # fmt: skip
    white = WhiteBoxAttack(steps=args.attack_steps, lr=args.attack_lr, restarts=1)
    similarity, hits, named = 0.0, torch.zeros(len(features), dtype=torch.bool), {}
    for attack in (white, DecoderAttack()):
        attack.resolve(home)
        attack.aim_at(None)
        attack.prepare(device)
        torch.manual_seed(0)
        pictures = torch.cat([attack.reconstruct(part) for part in features.split(64)])
        verdict = panel.judge(pictures)
        similarity = max(similarity, float(verdict.similarity.mean(1).max()))
        hits |= verdict.hits.any(0)
        named[attack.name] = float(verdict.hits[0].float().mean())
    auc = metrics.attribute_auc(scores, rows["attributes"], list(data.attribute_names)).mean
    worst = float(hits.float().mean())
    return {"mean_auc": auc, "identity_similarity": similarity, "worst_case": worst, "eval_acc": named}


def untrained(
    latent: int, size: int, *, width: int = 32, start: int = 64, critic: int = 24, attributes: int = 17
) -> tuple[CraftNets, Critic]:
    """Nets of the given sizes with random weights: time does not depend on these."""
    split = SplitClassifier("resnet18", "layer1", attributes).eval()
    with torch.no_grad():
        shape = tuple(split.encode(torch.zeros(1, 3, size, size)).shape[1:])
    generator = build_generator("G1", latent, size, width)
    amortizer = AmortizerNet(shape, latent, start)  # type: ignore[arg-type]
    nets = (split.encoder_module(), generator, amortizer, split.cloud)
    frozen = [freeze(net.eval().requires_grad_(False)) for net in nets]
    frozen[3] = frozen[3].to(memory_format=torch.channels_last)
    return CraftNets(*frozen), Critic(size, critic).requires_grad_(False)


def paper_sizes(device: str) -> dict[str, float]:
    """Seconds for one picture of 64x64 by untrained nets of configs/paper's sizes, crafted in three ways."""
    nets, critic = untrained(500, 64, width=64, start=128, critic=64, attributes=40)
    assert nets.classifier is not None
    shape = tuple(nets.encoder(torch.zeros(1, 3, 64, 64)).shape[1:])
    net = CraftingNet(shape, 40).eval().requires_grad_(False)
    single = CraftingPass(net, nets.encoder, nets.classifier, nets.generator).to(device)
    for part in (nets.amortizer, critic):
        part.to(device)
    image, noise = torch.rand(1, 3, 64, 64, device=device), torch.randn(1, 500, device=device)

    walked = (nets.encoder, nets.generator, nets.amortizer, nets.classifier)
    double = CraftNets(*(copy.deepcopy(part).double() for part in walked))

    def optimised(settings: CraftSettings) -> None:  # as `Crafter` does by default: it begins in float64
        start = start_crafting(double, double.encoder(image.double()), settings).to(torch.float32)
        craft(nets, critic, start, settings)

    found = {}
    for name, function, count in (
        ("crafter", lambda: optimised(CELEBA), 1),
        ("fast", lambda: optimised(replace(CELEBA, **FAST)), 1),
        ("generator", lambda: single(image, noise), 20),
    ):
        function()
        began = synchronised(device)
        for _ in range(count):
            function()
        found[name] = (synchronised(device) - began) / count
        print(f"one picture of 64x64, nets of the paper's sizes, {name}: {found[name]:.4f} s", flush=True)
    return found


def step_seconds(count: int, batch: int, latent: int, size: int, device: str) -> float:
    """Seconds of an outer step over ``count`` pictures in batches."""
    nets, critic = untrained(latent, size)
    for net in (nets.encoder, nets.generator, nets.amortizer, nets.classifier, critic):
        assert net is not None
        net.to(device)
    settings = CraftSettings(task_weight=0.5, start_steps=1, inner_steps=2, iterations=2)
    total = 0.0
    for _ in range(0, count, batch):
        with torch.no_grad():
            features = nets.encoder(torch.rand(batch, 3, size, size, device=device))
        state = craft_step(nets, critic, start_crafting(nets, features, settings), settings)
        began = synchronised(device)
        for _ in range(3):
            state = craft_step(nets, critic, state, settings)
        total += (synchronised(device) - began) / 3
    return total


def growth(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds of an outer step: against pictures (batches of 16), batch, latent size and picture size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases: dict[str, tuple[str, list[int], Callable[[int], tuple[int, int, int, int]]]] = {
        "images": ("pictures, in batches of 16", [16, 32, 64, 128], lambda v: (v, 16, 128, 32)),
        "batch": ("pictures in a batch", [1, 2, 4, 8, 16, 32, 64, 128], lambda v: (v, v, 128, 32)),
        "latent": ("latent size", [64, 128, 256, 512], lambda v: (16, 16, v, 32)),
        "picture": ("side of the picture, pixels", [32, 64, 128], lambda v: (8, 8, 128, v)),
    }
    found: dict[str, dict[str, float]] = {}
    args.growth.mkdir(parents=True, exist_ok=True)
    for name, (label, values, case) in cases.items():
        seconds = [step_seconds(*case(value), args.device) for value in values]
        found[name] = dict(zip(map(str, values), seconds, strict=True))
        figure = Figure(figsize=(4.6, 3.4), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(xlabel=label, ylabel="seconds an outer step", xscale="log", yscale="log")
        axes.plot(values, seconds, "o-", label="measured")
        axes.plot(values, [seconds[-1] * v / values[-1] for v in values], ":", label="linear")
        axes.set_xticks(values, list(map(str, values)))
        axes.minorticks_off()
        axes.legend()
        figure.savefig(args.growth / f"growth_{name}.png", metadata={"Software": None})
        print(
            f"{label}: " + ", ".join(f"{v}: {s:.3f} s" for v, s in zip(values, seconds, strict=True)),
            flush=True,
        )
    return found


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a function in a process of its own: its memory is that process's, and it starts alike."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, args)


def one(args: argparse.Namespace, name: str, batch: int, quality: bool) -> dict[str, Any]:
    """`measure` in a fresh process."""
    import_stages()
    if args.threads:
        torch.set_num_threads(args.threads)
    return measure(args, name, batch, quality)


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """The same figures of unprotected features."""
    import_stages()
    data, rows = faces(args)
    edge = load_stage(args.ckpt, Crafter).task.to(args.device).edge
    with torch.no_grad():
        features = torch.cat([edge(part.to(args.device)).cpu() for part in rows["image"].split(64)])
    return judge(args, data, rows, features)


def main() -> None:
    """Runs everything and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--ckpt", type=Path, default=Path("runs/synthetic/crafter/checkpoints/best.ckpt"), help="a Crafter's")
    add("--faces", type=int, help="pictures of private_test to craft (default: all)")
    add("--batch", type=int, nargs="+", default=[1, 8, 128, 64], help="the last one's quality is measured")
    add("--only", nargs="+", help="variants (default: all), and runs of crafting generators")
    add("--reference-steps", type=int, default=1, help="outer steps of the reference that are timed")
    add("--reference-quality", type=int, nargs="+", help="outer steps after which the reference is attacked")
    add(
        "--reference-beta",
        type=float,
        nargs="+",
        help="there with each of these beta (default: Crafter's own)",
    )
    add("--oracles", nargs="+", default=["oracle_resnet", "oracle_plain"], help="runs of identity oracles")
    add("--attack-steps", type=int, default=100, help="of the white-box attack")
    add("--attack-lr", type=float, default=1.6, help="of the white-box attack (CelebA: 0.4)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    add("--threads", type=int, help="threads on the CPU (default: all)")
    add("--growth", type=Path, help="draw how the cost grows, into this folder")
    add("--paper-sizes", action="store_true", help="time a picture of 64x64 by untrained nets of those")
    add(
        "--json",
        type=Path,
        help="also write all figures here; `speedup` is the reference's time over the default's, "
        "`speedup_at_equal` that up to the step where it is worth as much",
    )
    args = parser.parse_args()
    names = ([] if args.paper_sizes or args.growth else NAMES) if args.only is None else args.only
    if names and not args.ckpt.is_file():
        raise UserError(
            f"no checkpoint {args.ckpt}: train Crafter first (make reproduce), or give --ckpt FILE"
        )

    if args.threads:
        torch.set_num_threads(args.threads)
    where = (
        torch.cuda.get_device_name()
        if args.device.startswith("cuda")
        else f"{args.threads or torch.get_num_threads()} threads"
    )
    report: dict[str, Any] = {"device": where}
    print(f"{args.device} ({where})", flush=True)
    if names:
        report |= variants(args, names)
    if args.paper_sizes:
        report["paper_sizes"] = paper_sizes(args.device)
    if args.growth:
        report["growth"] = growth(args)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def variants(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """The table of trained nets."""
    print(
        f"{args.ckpt}\n"
        f"{'':22}{'batch':>6}{'s/picture':>11}{'forwards':>10}{'MB':>7}{'AUC':>7}{'similar':>9}{'worst':>7}",
        flush=True,
    )
    report: dict[str, Any] = {"ckpt": str(args.ckpt), "unprotected": apart(plain, args)}
    _line("unprotected", report["unprotected"])
    report["variants"] = {name: [] for name in names}
    for name in names:
        for batch in args.batch:
            row = apart(one, args, name, batch, batch == args.batch[-1])
            report["variants"][name].append(row)
            _line(name, row)
    report["speedup"] = _speedup(report["variants"])
    if report["speedup"]:
        print(f"speedup of default over reference, per picture: {report['speedup']:.0f}", flush=True)
    if report["speedup"] and args.reference_quality:
        slow, fast = (report["variants"][name][-1] for name in ("reference", "default"))
        point = equal(slow["trajectory"], fast)
        report["speedup_at_equal"] = None
        last = slow["trajectory"][-1]["steps"]
        said = f"the reference is not worth as much as the default after any of these steps up to {last}"
        if point is not None:
            report["speedup_at_equal"] = point["seconds_per_image"] / fast["seconds_per_image"]
            said = (
                f"worth as much as the default after {point['steps']} steps of the reference at beta "
                f"{point['beta']:g}: {report['speedup_at_equal']:.0f} times its time"
            )
        print(said, flush=True)
    return report


def equal(points: list[dict[str, Any]], to: dict[str, Any]) -> dict[str, Any] | None:
    """The first point whose utility and privacy are those of a row, or better; None if there is none."""
    for point in sorted(points, key=lambda point: point["steps"]):
        if (
            point["mean_auc"] >= to["mean_auc"] - 0.005
            and point["identity_similarity"] <= to["identity_similarity"] + 0.02
        ):
            return point
    return None


def _speedup(variants: dict[str, list[dict[str, Any]]]) -> float | None:
    if "reference" not in variants or "default" not in variants:
        return None
    slow, fast = (variants[name][-1]["seconds_per_image"] for name in ("reference", "default"))
    return float(slow / fast)


def _line(name: str, row: dict[str, Any]) -> None:
    def cell(key: str, width: int, form: str) -> str:
        return f"{row[key]:{width}{form}}" if key in row else " " * width

    notes = (
        [f"timed {row['extrapolated_from_steps']} of 450 steps"] if "extrapolated_from_steps" in row else []
    )
    print(
        f"{name:22}{cell('batch', 6, 'd')}{cell('seconds_per_image', 11, '.4f')}"
        f"{cell('encoder_forwards', 10, '.0f')}{cell('peak_memory_mb', 7, '.0f')}{cell('mean_auc', 7, '.3f')}"
        f"{cell('identity_similarity', 9, '.3f')}{cell('worst_case', 7, '.3f')}  {'; '.join(notes)}",
        flush=True,
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
