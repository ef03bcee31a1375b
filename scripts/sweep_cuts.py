"""Where to cut: what unprotected features leak, and what the classifier keeps, at each depth.

    python scripts/sweep_cuts.py [--cuts "[stem,layer1,layer2,layer3]"] [--arch resnet18]

Each cut has a task model, an amortizer and a black-box decoder of its own, in RUNS_DIR/EXPERIMENT-ARCH-CUT;
prior and oracles are the experiment's. Attacks: white-box and black-box, as in the audit's budget. Writes
RUNS_DIR/EXPERIMENT/cuts-ARCH/{cuts.json,table.md,cuts.png}; what is done is not done again.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crafter_pl.audit.verdict import percent, percent_range
from crafter_pl.benchmark.grid import Place
from crafter_pl.benchmark.jobs import DONE, Job, Jobs
from crafter_pl.errors import UserError
from crafter_pl.files import to_json, write_file
from crafter_pl.stages.base import read_checkpoint


def sweep(
    cuts: list[str] | None = None,
    arch: str = "resnet18",
    config: str = "configs/audit.yaml",
    configs: str = "configs",
    data: str | None = None,
    experiment: str = "synthetic",
    runs_dir: str = "runs",
    oracles: list[str] | None = None,
    decoder: str = "attacks/black_box",
    steps: int = 200,
    lr: float = 1.6,
    workers: int | None = None,
) -> Path:
    """Train and audit one task model for each cut.

    Args:
        cuts: nodes of the architecture, from shallow to deep.
        arch: a torchvision classification model.
        config: an audit config, for its bootstrap, and for its data where none are given.
        configs: folder of the stages' configs.
        data: config of the data, for every command (default: what the configs name).
        experiment: whose prior and oracles are used; they are trained where they are missing.
        runs_dir: folder of all runs.
        oracles: stages of the panel (default: oracle_resnet and oracle_plain).
        decoder: stage of the black-box attack.
        steps: of the white-box attack.
        lr: of the white-box attack.
        workers: processes at a time (default: one a processor core).

    Returns:
        Path of table.md.

    Raises:
        UserError: a cut that the architecture does not have, or another job that failed.
    """
    cuts = ["stem", "layer1", "layer2", "layer3"] if cuts is None else cuts
    base = Place(Path(configs), experiment, Path(runs_dir), data)
    panel = ["oracle_resnet", "oracle_plain"] if oracles is None else oracles
    folder = base.home / f"cuts-{arch}"
    jobs = [
        Job(f"fit-{stage}", [base.command("fit", stage, None, {})], [base.checkpoint(stage)])
        for stage in ("prior", *panel)
    ]
    shared = [job.name for job in jobs]
    for cut in cuts:
        jobs.append(_job(base, arch, cut, config, panel, shared, folder, decoder, steps, lr))
    work = Jobs(jobs, folder, workers or os.cpu_count() or 1)
    work.run()
    if failed := [
        f"{name}: {state}, {work.log(name)}" for name, state in work.state.items() if state != DONE
    ]:
        raise UserError("some jobs are not done, see their logs:\n  " + "\n  ".join(failed))
    rows = [_row(base, arch, cut, folder / cut / "report.json") for cut in cuts]
    write_file(folder / "cuts.json", to_json(rows))
    write_file(folder / "cuts.png", _plot(rows, arch))
    return write_file(folder / "table.md", _table(rows).encode())


def _place(base: Place, arch: str, cut: str) -> Place:
    return replace(base, experiment=f"{base.experiment}-{arch}-{cut.replace('.', '_')}")


def _job(
    base: Place,
    arch: str,
    cut: str,
    config: str,
    panel: list[str],
    needs: list[str],
    folder: Path,
    decoder: str,
    steps: int,
    lr: float,
) -> Job:
    """All commands of one cut."""
    place, prior = _place(base, arch, cut), base.checkpoint("prior")
    white_box = {"steps": steps, "lr": lr, "restarts": 1, "prior_ckpt": prior}
    attacks = [{"class_path": "WhiteBoxAttack", "init_args": white_box}, {"class_path": "DecoderAttack"}]
    out = folder / cut
    commands = [
        place.command("fit", "task", None, {"model.init_args.arch": arch, "model.init_args.cut": cut}),
        place.command("fit", "amortizer", None, {"model.init_args.prior_ckpt": prior}),
        place.command("fit", decoder, None, {}),
        [
            *("audit", "--config", config, *place.shared),
            *("--features", "[]", "--attacks", json.dumps(attacks), "--out", str(out), "--overwrite", "true"),
            *("--oracles", json.dumps([base.checkpoint(stage) for stage in panel])),
        ],
    ]
    outputs = [place.checkpoint(stage) for stage in ("task", "amortizer", "black_box")]
    return Job(f"cut-{cut}", commands, [*outputs, str(out / "report.json")], needs)


def _row(base: Place, arch: str, cut: str, report: Path) -> dict[str, Any]:
    from crafter_pl.stages import TaskModel, load_stage

    place = _place(base, arch, cut)
    (entry,) = json.loads(report.read_text())["defenses"]
    task = load_stage(place.checkpoint("task"), TaskModel)
    seconds = json.loads((place.home / "task" / "summary.json").read_text())["seconds"]
    assert read_checkpoint(place.checkpoint("task"))["hyper_parameters"]["cut"] == cut
    return {
        "cut": cut,
        "shape": list(task.feature_shape),
        "edge_parameters": sum(p.numel() for p in task.net.edge.parameters()),
        "mean_auc": entry["utility"]["mean_auc"],
        "attacks": {name: result["eval_acc"] for name, result in entry["attacks"].items()},
        "worst_case": entry["worst_case"]["eval_acc"],
        "task_seconds": seconds,
    }


def _table(rows: list[dict[str, Any]]) -> str:
    attacks = list(rows[0]["attacks"])
    heads = ["cut", "features", "edge parameters", "mean AUC", *(n.replace("_", "-") for n in attacks)]
    lines = [[*heads, "worst case (95 %)"], ["---"] * (len(heads) + 1)]
    for row in rows:
        auc, worst = row["mean_auc"], row["worst_case"]
        cells = [
            row["cut"],
            "×".join(map(str, row["shape"])),
            f"{row['edge_parameters']:,}",
            f"{auc['value']:.3f}",
        ]
        cells += [percent(row["attacks"][name]["value"]) for name in attacks]
        lines.append([*cells, f"{percent(worst['value'])} ({percent_range(worst['ci95'])})"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _plot(rows: list[dict[str, Any]], arch: str) -> bytes:
    """Utility and leakage against depth, with 95 % intervals, as a PNG."""
    figure = Figure(figsize=(6.0, 4.4), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    lines = {"mean AUC (utility)": [row["mean_auc"] for row in rows]}
    lines |= {
        f"{name.replace('_', '-')}": [row["attacks"][name] for row in rows] for name in rows[0]["attacks"]
    }
    lines |= {"worst case": [row["worst_case"] for row in rows]}
    for name, figures in lines.items():
        value = [one["value"] for one in figures]
        error = [
            [max(v - f["ci95"][0], 0), max(f["ci95"][1] - v, 0)] for v, f in zip(value, figures, strict=True)
        ]
        style = "--" if "AUC" in name else "-"
        axes.errorbar(
            range(len(rows)),
            value,
            list(zip(*error, strict=True)),
            marker="o",
            ls=style,
            capsize=3,
            label=name,
        )
    axes.set_xticks(range(len(rows)), [row["cut"] for row in rows])
    axes.set_xlabel(f"cut of {arch}, from shallow to deep")
    axes.set_ylabel("faces identified; mean AUC")
    axes.set_ylim(-0.03, 1.03)
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def main(args: list[str] | None = None) -> int:
    """Runs what the command line asks for; 2 after a user's mistake."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_function_arguments(sweep, as_positional=False)
    try:
        print(sweep(**parser.parse_args(args)).read_text())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
