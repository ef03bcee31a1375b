"""The main job on the embedded synthetic faces: all stages, crafted features, the audit. Minutes.

Smaller than the configs, for the time: the people of configs/small.yaml (96 public, 32 private), most stages
a quarter shorter, narrower decoders, Crafter in even fewer steps than CrafterFast, its critic from two paths
of 32 faces. No decoder of the cloud's answers: the report says that it is not among the attacks.
A decoder learns from faces that each defence has crafted. So it is an experiment of its own, runs/demo. Two
stages are trained at a time; what they print is in runs/demo/logs. Run again after an interruption, it goes
on where it stopped: finished stages are kept.
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
from crafter_pl.defenses.crafter_variants import FAST

PLACE = Place(Path("configs"), "demo", Path("runs"), "configs/small.yaml")
DECODER = "--model.init_args.width 32 --trainer.max_epochs"
PAIRS = 128  # crafted public faces that the adapting decoder learns from
ADAPTIVE = (
    f"--model.init_args.pairs_per_round {PAIRS} --model.init_args.val_pairs 32 "
    "--model.init_args.shard_size 32 --model.init_args.epochs_per_round 30 --trainer.max_epochs 30 "
    "--model.init_args.defense_ckpt"
)
LIGHT = " ".join(
    f"--model.init_args.craft.{name} {value}" for name, value in (FAST | {"polish_steps": 20}).items()
)
WHITE_BOX = "{class_path: WhiteBoxAttack, init_args: {steps: 100, restarts: 1}}"
# Stages in the order in which they start as soon as there is room: what each is for, what it needs, and its
# options. A name behind a colon tells two runs of one config apart.
STAGES = {
    "task": ("the phone's encoder and the cloud's classifier", [], "--trainer.max_epochs 6"),
    "prior": (
        "draws faces of nobody",
        [],
        "--model.init_args.warmup_epochs 7 --trainer.max_epochs 8",
    ),
    "amortizer": ("where the search for a face begins", ["task", "prior"], ""),
    "crafter": (
        "the paper's defence",
        ["task", "prior", "amortizer"],
        "--data.batch_size 32 --trainer.max_epochs 1 --trainer.limit_train_batches 2 "
        f"--trainer.limit_val_batches 0 {LIGHT}",
    ),
    "attacks/black_box": ("an attacker who draws the face", ["task"], f"{DECODER} 6"),
    "attacks/adaptive_black_box:crafter": (
        "the same attacker, who has seen crafted features",
        ["crafter", "black_box"],
        f"{ADAPTIVE} crafter",
    ),
    "certified": (
        "the defence with a proof",
        ["task", "prior"],
        "--trainer.max_epochs 4 --model.init_args.pool 128 --model.init_args.steps 40",
    ),
    "attacks/adaptive_black_box:certified": (
        "the same attacker, who has seen certified features",
        ["certified", "black_box"],
        f"{ADAPTIVE} certified",
    ),
    "oracle_resnet": ("a judge who knows the people", [], "--trainer.max_epochs 7"),
    "oracle_plain": ("another judge", [], ""),
}
LOOK = ["look", "--experiment", PLACE.experiment, "--data", str(PLACE.data)]
STORES = {"crafter": "beta0.1", "certified": "bits5"}  # what is audited


def jobs() -> list[Job]:
    """All that comes before the audit."""
    made = []
    for stage, (what, needs, options) in STAGES.items():
        config, _, against = stage.partition(":")
        run = Path(config).name + (f"-{against}" if against else "")
        fit = [*PLACE.command("fit", config, run if against else None, {}), *options.split()]
        made.append(Job(run, [fit], [PLACE.checkpoint(run)], needs, what=what))
        if run in STORES:
            predict = PLACE.command("predict", run, None, {"data.predict_batch_size": 32})
            manifest = f"{PLACE.home}/{run}/features/private_test-{STORES[run]}/manifest.json"
            made.append(Job(f"predict-{run}", [predict], [manifest], [run], what="what it sends"))
    return made


def demo() -> int:
    """Does it all; returns the exit code."""
    began = time.monotonic()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    made = Jobs(jobs(), PLACE.home, workers=2, threads=(cores + 1) // 2)
    print(f"{len(made.jobs)} steps; each one's command, and what it says: {PLACE.home / 'logs'}", flush=True)
    made.run()
    if failed := [name for name, state in made.state.items() if state != DONE]:
        print(f"error: not done: {', '.join(failed)}; make demo again goes on", file=sys.stderr)
        return 1
    options = {
        "attacks": f"[{WHITE_BOX}, {{class_path: DecoderAttack}}, {{class_path: AdaptiveDecoderAttack}}]",
        "out": PLACE.home / "audit",
        "features": ["/".join(store) for store in STORES.items()],
        "oracles": ["oracle_resnet", "oracle_plain"],
        "gallery_images": 4,
        "rulers": "[]",  # Crafter's gallery would have to be crafted first
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
    first = [entry.worst_case_basic for entry in (crafted, certified)]
    before = [percent(one.eval_acc.value) for one in first if one is not None]
    data, known, chance = report.data, certified.certificate, percent(certified.worst_case.chance)
    assert known is not None
    kept = [f"{entry.utility.kept.value:.2f}" for entry in (plain, crafted)]
    own = f"{known.needs_kept.value:.2f}, unprotected {known.needs_kept_unprotected.value:.2f}"
    lines = [
        f"{data.images} drawn faces of {data.identities} people; an attacker sees their features alone.",
        f"Unprotected: {named[0]} of the faces are drawn so well that some judge names the person.",
        f"Crafter: {before[0]}, and {named[1]} once an attacker has learnt from {PAIRS} crafted faces.",
        f"Certified: {before[1]}, and {named[2]} then, by chance {chance}; what leaves is one of "
        f"{known.messages} messages about {', '.join(known.needs)}.",
        f"What the cloud still reads (AUC): {kept[0]} unprotected, {kept[1]} Crafter; of these attributes "
        f"certified {own}.",
        f"The report: {PLACE.home}/audit/report.html; pictures: {command(LOOK)}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    try:
        sys.exit(demo())
    except KeyboardInterrupt:
        sys.exit("interrupted; make demo again goes on")
