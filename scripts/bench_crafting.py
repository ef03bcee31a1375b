"""Times crafting: the released algorithm against the default, on the same nets and pictures, in one run.

    python scripts/bench_crafting.py [--ckpt CRAFTER.ckpt] [--batch 64] [--reference-steps 1] [--json FILE]

Prints seconds and second-order products for each outer step, and their ratio. The nets are those of a trained
Crafter (`make reproduce`); products are Hessian products (reference) and J^T J products (default) of a batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch

from crafter_pl.crafting.craft import craft_step, start_crafting
from crafter_pl.crafting.reference import reference_craft
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.defenses import Crafter
from crafter_pl.errors import UserError
from crafter_pl.nets import Critic
from crafter_pl.stages.base import load_stage


def main() -> None:
    """Runs both algorithms for a few outer steps and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--ckpt", default="runs/synthetic/crafter/checkpoints/best.ckpt", help="a Crafter's checkpoint"
    )
    parser.add_argument("--batch", type=int, default=64, help="pictures crafted together")
    parser.add_argument("--steps", type=int, default=5, help="outer steps of the default timed")
    parser.add_argument(
        "--reference-steps", type=int, default=1, help="outer steps of the reference that are timed"
    )
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args()

    crafter = load_stage(args.ckpt, Crafter)
    size = crafter.prior.hparams["image_size"]
    # Synthetic faces of the right size, of no experiment: only the time matters here.
    data = FacesDataModule(
        image_size=size, people=64, images_per_person=4, private_people=8, min_private_images=4, test_images=1
    )
    data.setup()
    features = crafter.nets.encoder(data.images("public_train")[: args.batch]).detach()
    settings = crafter.craft_settings
    critic = Critic(size, crafter.hparams["critic_width"]).requires_grad_(True)

    marks = [time.perf_counter()]
    reference = reference_craft(
        crafter.nets.encoder, crafter.nets.generator, crafter.nets.amortizer, features,
        beta=settings.beta, critic=lambda: critic, prior_critic=crafter.prior.critic,
        rng=torch.Generator().manual_seed(0), steps=args.reference_steps,
        on_step=lambda step, record: marks.append(time.perf_counter()),
    )  # fmt: skip
    slow = statistics.median(b - a for a, b in pairwise(marks))

    state = start_crafting(crafter.nets, features, settings)
    state = craft_step(crafter.nets, crafter.critic, state, settings)  # warm-up
    times, products = [], []
    for _ in range(args.steps):
        began = time.perf_counter()
        state = craft_step(crafter.nets, crafter.critic, state, settings)
        times.append(time.perf_counter() - began)
        products.append(float(state.info["products"]))
    fast = statistics.median(times)

    figures = {
        "batch": len(features),
        "image_size": size,
        "threads": torch.get_num_threads(),
        "reference": {
            "seconds_per_step": slow,
            "products_per_step": reference.products / args.reference_steps,
        },
        "default": {"seconds_per_step": fast, "products_per_step": statistics.mean(products)},
        "step_speedup": slow / fast,
    }
    print(f"batch {len(features)}, {size}x{size}, {torch.get_num_threads()} threads, median over steps")
    print(f"{'':12}{'s/outer step':>14}{'products/step':>15}{'inversion steps':>17}{'critic steps':>14}")
    for name, inner, critics in (("reference", 80, 10), ("default", settings.inner_steps, 0)):
        row = figures[name]
        print(
            f"{name:12}{row['seconds_per_step']:14.3f}{row['products_per_step']:15.0f}{inner:17d}{critics:14d}"
        )
    print(f"ratio of seconds per outer step: {slow / fast:.1f}")
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
