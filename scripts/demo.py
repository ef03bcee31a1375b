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

from crafter_pl.audit.record import read_report
from crafter_pl.audit.schema import Report
from crafter_pl.audit.show.sentences import percent
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
        "gallery_images": 2,
        "rulers": "[{class_path: GalleryLDA}, {class_path: GalleryLDA, init_args: {reads: answers}}]",
    }
    audit = PLACE.command("audit", "audit", None, options)
    print(f"+ {command(audit)}", flush=True)
    if code := main(audit):
        return code
    print(f"\n{closing(read_report(options['out']))}\n\ndemo: {time.monotonic() - began:.0f} s", flush=True)
    return 0


def closing(report: Report) -> str:
    """What came out, for who sees this for the first time."""
    by_name = {entry.name: entry for entry in report.defenses}
    plain, crafted, certified = every = [by_name[name] for name in ("none", "crafter", "certified")]
    named = [percent(entry.worst_case.eval_acc.value) for entry in every]
    data, known, chance = report.data, certified.certificate, percent(certified.worst_case.chance)
    assert known is not None
    kept = [f"{entry.utility.kept.value:.2f}" for entry in (plain, crafted)]
    own = f"{known.needs_kept.value:.2f}, unprotected {known.needs_kept_unprotected.value:.2f}"
    lines = [
        f"{data.images} drawn faces of {data.identities} people; an attacker sees their features alone.",
        f"Unprotected: {named[0]} of the faces are drawn so well that some judge names the person.",
        f"Crafter: {named[1]}; whoever learns from crafted faces gets most of them back (docs/results.md).",
        f"Certified: {named[2]}, by chance {chance}; what leaves is one of {known.messages} messages about "
        f"{', '.join(known.needs)}.",
        f"What the cloud still reads (AUC): {kept[0]} unprotected, {kept[1]} Crafter; of these attributes "
        f"certified {own}.",
        f"The report: {PLACE.home}/audit/report.html; pictures: python -m crafter_pl look --experiment demo",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    try:
        sys.exit(demo())
    except KeyboardInterrupt:
        sys.exit("interrupted; make demo again goes on")
