"""What crafting costs: seconds, and multiplications and additions, which are no property of the machine."""

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from crafting_cases import Defended, batches
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from crafter_pl.crafting.craft import craft, craft_step, start_crafting
from crafter_pl.crafting.settings import CraftNets, CraftSettings
from crafter_pl.defenses.crafter_variants import FAST
from crafter_pl.nets import (
    AmortizerNet,
    CraftingNet,
    CraftingPass,
    Critic,
    SplitClassifier,
    build_generator,
    freeze,
)

CELEBA = CraftSettings(task_weight=0.5, steps=40, lr=0.1, inner_steps=2, iterations=2)  # configs/celeba/
# What the cost of a step grows with: pictures, batch, latent size and picture size of a case.
GROWTH: dict[str, tuple[str, list[int], Callable[[int], tuple[int, int, int, int]]]] = {
    "images": ("pictures, in batches of 16", [16, 32, 64, 128], lambda v: (v, 16, 128, 32)),
    "batch": ("pictures in a batch", [1, 2, 4, 8, 16, 32, 64, 128], lambda v: (v, v, 128, 32)),
    "latent": ("latent size", [64, 128, 256, 512], lambda v: (16, 16, v, 32)),
    "picture": ("side of the picture, pixels", [32, 64, 128], lambda v: (8, 8, 128, v)),
}


def now(device: str) -> float:
    """The time, once the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def timed(function: Callable[[], Any], count: int, device: str) -> float:
    """Seconds that a call takes, the mean of so many."""
    began = now(device)
    for _ in range(count):
        function()
    return (now(device) - began) / count


def protect(defended: Defended, rows: dict[str, Tensor], batch: int, device: str) -> tuple[Tensor, float]:
    """Crafted features of all rows, and the seconds that took."""
    (stage, options), began = defended, now(device)
    parts = [
        stage.protect(images.to(device), index.to(device), options).detach()
        for images, index in batches(rows, batch)
    ]
    seconds = now(device) - began
    return torch.cat(parts).float().cpu(), seconds


class Operations(TorchDispatchMode):
    """Counts the multiplications and additions of products and convolutions, those of any gradient too.

    `FlopCounterMode` has the formulas, but cannot follow `autograd.grad`.
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Does the operation and counts it."""
        made = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=made)
        return made


def operations(defended: Defended, images: Tensor, index: Tensor) -> float:
    """Multiplications and additions of crafting pictures, in forward passes of the edge encoder each."""
    stage, options = defended
    with Operations() as encoder, torch.no_grad():
        stage.task.edge(images)
    with Operations() as whole:
        stage.protect(images, index, options)
    return whole.total / encoder.total


def untrained(
    latent: int,
    size: int,
    device: str,
    *,
    width: int = 32,
    start: int = 64,
    critic: int = 24,
    labels: int = 17,
) -> tuple[CraftNets, Critic]:
    """Nets of the given sizes with random weights: time does not depend on these."""
    split = SplitClassifier("resnet18", "layer1", labels).eval()
    with torch.no_grad():
        shape = tuple(split.encode(torch.zeros(1, 3, size, size)).shape[1:])
    generator, amortizer = build_generator("G1", latent, size, width), AmortizerNet(shape, latent, start)
    frozen = [
        freeze(net.eval().requires_grad_(False)).to(device)
        for net in (split.encoder_module(), generator, amortizer, split.cloud)
    ]
    frozen[3] = frozen[3].to(memory_format=torch.channels_last)
    return CraftNets(*frozen), Critic(size, critic).requires_grad_(False).to(device)


def paper_sizes(device: str) -> dict[str, float]:
    """Seconds for one picture of 64x64 by untrained nets of configs/paper's sizes, crafted in three ways."""
    nets, critic = untrained(500, 64, device, width=64, start=128, critic=64, labels=40)
    parts = (nets.encoder, nets.generator, nets.amortizer, nets.classifier)
    double = CraftNets(*(copy.deepcopy(part).double() for part in parts))
    image, noise = torch.rand(1, 3, 64, 64, device=device), torch.randn(1, 500, device=device)
    net = CraftingNet(tuple(nets.encoder(image).shape[1:]), 40).eval().requires_grad_(False)
    single = CraftingPass(net, nets.encoder, nets.classifier, nets.generator).to(device)

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
        found[name] = timed(function, count, device)
        print(f"one picture of 64x64, nets of the paper's sizes, {name}: {found[name]:.4f} s", flush=True)
    return found


def step_seconds(count: int, batch: int, latent: int, size: int, device: str) -> float:
    """Seconds of an outer step over ``count`` pictures in batches."""
    nets, critic = untrained(latent, size, device)
    settings = CraftSettings(task_weight=0.5, start_steps=1, inner_steps=2, iterations=2)
    total = 0.0
    for _ in range(0, count, batch):
        with torch.no_grad():
            features = nets.encoder(torch.rand(batch, 3, size, size, device=device))
        state = craft_step(nets, critic, start_crafting(nets, features, settings), settings)
        total += timed(partial(craft_step, nets, critic, state, settings), 3, device)
    return total


def growth(folder: Path, device: str) -> dict[str, dict[str, Any]]:
    """Seconds of an outer step in every case of `GROWTH`; a plot of each goes into a folder."""
    found = {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (label, values, case) in GROWTH.items():
        seconds = [step_seconds(*case(value), device) for value in values]
        found[name] = dict(zip(map(str, values), seconds, strict=True))
        plot = Figure(figsize=(4.6, 3.4), dpi=110, layout="constrained")
        axes = plot.add_subplot(xlabel=label, ylabel="seconds an outer step", xscale="log", yscale="log")
        axes.plot(values, seconds, "o-", label="measured")
        axes.plot(values, [seconds[-1] * v / values[-1] for v in values], ":", label="linear")
        axes.set_xticks(values, list(map(str, values)))
        axes.minorticks_off()
        axes.legend()
        plot.savefig(folder / f"growth_{name}.png", metadata={"Software": None})
        print(f"{label}: " + ", ".join(f"{v}: {s:.3f} s" for v, s in found[name].items()), flush=True)
    return found
