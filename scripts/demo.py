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

from crafter_pl.benchmark.jobs import DONE, Job, Jobs
from crafter_pl.cli import main
from crafter_pl.commands import command

RUNS = Path("runs/demo")
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
    "attacks/black_box": (["task"], f"{DECODER} 4"),
    "attacks/black_box_answers": (["task"], f"{DECODER} 3"),
}


def words(verb: str, config: str, options: str) -> list[str]:
    """The arguments of a command of the demo."""
    experiment = ["--experiment", "demo", "--data", "configs/small.yaml"]
    return [verb, "--config", f"configs/{config}.yaml", *experiment, *options.split()]


def jobs() -> list[Job]:
    """All that comes before the audit."""
    made = []
    for stage, (needs, options) in STAGES.items():
        run = Path(stage).name
        best = str(RUNS / run / "checkpoints" / "best.ckpt")
        made.append(Job(run, [words("fit", stage, f"{options} --ckpt_path last")], [best], needs))
    options = "--trainer.accelerator cpu --trainer.devices 2 --data.predict_batch_size 32"
    store = str(RUNS / "crafter" / "features" / "private_test-beta0.1" / "manifest.json")
    every = [job.name for job in made]  # it takes both cores
    return [*made, Job("predict", [words("predict", "crafter", options)], [store], every)]


def demo() -> int:
    """Does it all; returns the exit code."""
    began = time.monotonic()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made = Jobs(jobs(), RUNS, workers=2, threads=(cores + 1) // 2)
    print(f"what is done, and what it prints ({RUNS / 'logs'}):\n{made.plan()}", flush=True)
    made.run()
    if failed := [name for name, state in made.state.items() if state != DONE]:
        print(f"error: not done: {', '.join(failed)}; make demo again goes on", file=sys.stderr)
        return 1
    options = f"--budget quick --out {RUNS}/audit --features crafter/beta0.1"
    audit = [*words("audit", "audit", options), "--oracles", "[oracle_resnet, oracle_plain]"]
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
