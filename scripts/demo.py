"""The main job on the embedded synthetic faces: all stages, crafted features, the audit. Minutes.

Smaller than the configs, for the time: the people of configs/small.yaml (128 public, 32 private), most stages
a quarter shorter, narrower decoders, Crafter's critic from two trajectories of 32 faces, not four of 64.
So it is an experiment of its own, runs/demo. Two stages are trained at a time; what they print is in
runs/demo/logs. Run again after an interruption, it goes on where it stopped: finished stages are kept.
"""

import os
import sys
import time
from pathlib import Path

from crafter_pl.benchmark.grid import Place
from crafter_pl.benchmark.jobs import DONE, Job, Jobs
from crafter_pl.cli import main
from crafter_pl.commands import command

PLACE = Place(Path("configs"), "demo", Path("runs"), "configs/small.yaml")
DECODER = "--model.init_args.width 32 --trainer.max_epochs"
# Stages in the order in which they start as soon as there is room: what each needs, and its options.
STAGES = {
    "task": ([], "--trainer.max_epochs 6"),
    "prior": ([], "--model.init_args.warmup_epochs 7 --trainer.max_epochs 8"),
    "amortizer": (["task", "prior"], ""),
    "crafter": (
        ["task", "prior", "amortizer"],
        "--data.batch_size 32 --trainer.max_epochs 1 --trainer.limit_train_batches 2 "
        "--trainer.check_val_every_n_epoch 1",
    ),
    "oracle_resnet": ([], "--trainer.max_epochs 5"),
    "oracle_plain": ([], ""),
    "certified": (
        ["task", "prior"],
        "--trainer.max_epochs 4 --model.init_args.pool 128 --model.init_args.steps 40",
    ),
    "attacks/black_box": (["task"], f"{DECODER} 4"),
    "attacks/black_box_answers": (["task"], f"{DECODER} 3"),
}

STORES = ["crafter/beta0.1", "certified/bits5"]


def jobs() -> list[Job]:
    """All that comes before the audit."""
    made = []
    for stage, (needs, options) in STAGES.items():
        run = Path(stage).name
        fit = [*PLACE.command("fit", stage, None, {}), *options.split()]
        made.append(Job(run, [fit], [PLACE.checkpoint(run)], needs))
    both = {"trainer.accelerator": "cpu", "trainer.devices": 2, "data.predict_batch_size": 32}
    predicts = [
        PLACE.command("predict", "crafter", None, both),
        PLACE.command("predict", "certified", None, {}),
    ]
    stores = [f"{PLACE.home}/{one.replace('/', '/features/private_test-')}/manifest.json" for one in STORES]
    # After every other one: crafting takes both cores.
    return [*made, Job("predict", predicts, stores, [job.name for job in made])]


def demo() -> int:
    """Does it all; returns the exit code."""
    began = time.monotonic()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made = Jobs(jobs(), PLACE.home, workers=2, threads=(cores + 1) // 2)
    print(f"what is done, and what it prints ({PLACE.home / 'logs'}):\n{made.plan()}", flush=True)
    made.run()
    if failed := [name for name, state in made.state.items() if state != DONE]:
        print(f"error: not done: {', '.join(failed)}; make demo again goes on", file=sys.stderr)
        return 1
    options = {
        "budget": "quick",
        "out": PLACE.home / "audit",
        "features": STORES,
        "oracles": ["oracle_resnet", "oracle_plain"],
        "gallery_images": 4,
    }
    audit = PLACE.command("audit", "audit", None, options)
    print(f"+ {command(audit)}", flush=True)
    code = main(audit)
    print(f"demo: {time.monotonic() - began:.0f} s", flush=True)
    return code


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    try:
        sys.exit(demo())
    except KeyboardInterrupt:
        sys.exit("interrupted; make demo again goes on")
