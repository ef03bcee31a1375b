"""The verb `sweep`: what unprotected features leak and a classifier keeps, at each depth of the cut."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure

from crafter_pl.audit import record
from crafter_pl.audit.show.plots import save
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import Table, rate
from crafter_pl.audit.utility import AUC, head
from crafter_pl.benchmark.grid import Place, check_files
from crafter_pl.benchmark.jobs import Job, Jobs, workers_of
from crafter_pl.cli.resume import finished
from crafter_pl.commands import listed, shipped
from crafter_pl.errors import UserError
from crafter_pl.files import lock, to_json, write_file
from crafter_pl.metrics import Estimate
from crafter_pl.nets import SplitClassifier
from crafter_pl.stages import TaskModel, load_stage


@dataclass(frozen=True)
class Row:
    """One cut: its features ``(C, h, w)``, the size of the encoder, what it keeps and what it leaks."""

    cut: str
    shape: list[int]
    edge_parameters: int
    kept: Estimate
    attacks: dict[str, Estimate]
    worst_case: Estimate
    task_seconds: float
    figure: str | None = None
    agreement: bool | None = None

    @property
    def title(self) -> str:
        """Of the utility."""
        return head(self.figure, self.agreement)

    def json_names(self) -> dict[str, str]:
        """What the JSON calls the utility."""
        return {"kept": self.figure or AUC}


def sweep(
    cuts: list[str] | str | None = None,
    arch: str = "resnet18",
    audit: str = "configs/audit.yaml",
    configs: str = "configs",
    data: str | None = None,
    experiment: str = "synthetic",
    runs_dir: str = "runs",
    oracles: list[str] | str | None = None,
    decoder: str = "attacks/black_box",
    steps: int = 200,
    lr: float | None = None,
    workers: int | None = None,
) -> Path:
    """Train and audit one task model for each cut, attacked by white-box and black-box attacks.

    Each cut has a task model, an amortizer and a decoder of its own, in RUNS_DIR/EXPERIMENT-ARCH-CUT; prior
    and oracles are the experiment's. What is done is not done again; a prior or an oracle that is trained is
    taken as it is.

    Args:
        cuts: nodes of the architecture, from shallow to deep (default: stem, layer1, layer2 and layer3).
        arch: a torchvision classification model.
        audit: an audit config, for its bootstrap, and for its data where none are given.
        configs: folder of the stages' configs.
        data: config of the data, for every command (default: what the configs name).
        experiment: whose prior and oracles are used; they are trained where they are missing.
        runs_dir: folder of all runs.
        oracles: stages of the panel (default: oracle_resnet and oracle_plain).
        decoder: stage of the black-box attack.
        steps: of the white-box attack.
        lr: of the white-box attack (null: its own).
        workers: processes at a time (default: one a processor core).

    Returns:
        Path of RUNS_DIR/EXPERIMENT/cuts-ARCH/table.md, beside which are cuts.json and cuts.png.

    Raises:
        UserError: before anything runs: no cut, one that the architecture does not have, a config that is not
            there, or another sweep at work; or some jobs failed.
    """
    asked = ["stem", "layer1", "layer2", "layer3"] if cuts is None else listed(cuts)
    if not asked:
        raise UserError('there is no cut to sweep over: give --cuts "[layer1, layer2]"')
    workers, audit = workers_of(workers), shipped(audit)
    check_files(audit=audit, data=data)
    for cut in asked:
        SplitClassifier(arch, cut, 1, size=64)
    base = Place(Path(shipped(configs)), experiment, Path(runs_dir), data)
    panel = ["oracle_resnet", "oracle_plain"] if oracles is None else listed(oracles)
    folder, prior = base.home / f"cuts-{arch}", base.checkpoint("prior")
    jobs = [
        Job(
            f"fit-{stage}",
            [] if finished(base.home / stage) else [base.command("fit", stage, None, {})],
            [base.checkpoint(stage)],
        )
        for stage in ("prior", *panel)
    ]
    shared = [job.name for job in jobs]
    white_box = {"steps": steps, "lr": lr, "restarts": 1, "prior_ckpt": prior}
    attacks = [{"class_path": "WhiteBoxAttack", "init_args": white_box}, {"class_path": "DecoderAttack"}]
    given = ["--features", "[]", "--attacks", json.dumps(attacks), "--out"]
    judges = ["--oracles", json.dumps([base.checkpoint(stage) for stage in panel])]
    places = {cut: replace(base, experiment=f"{experiment}-{arch}-{cut.replace('.', '_')}") for cut in asked}
    for cut, place in places.items():
        out = str(folder / cut)
        commands = [
            place.command("fit", "task", None, {"model.init_args.arch": arch, "model.init_args.cut": cut}),
            place.command("fit", "amortizer", None, {"model.init_args.prior_ckpt": prior}),
            place.command("fit", decoder, None, {}),
            ["audit", "--config", audit, *place.shared, *given, out, "--overwrite", "true", *judges],
        ]
        outputs = [place.checkpoint(stage) for stage in ("task", "amortizer", "black_box")]
        jobs.append(Job(f"cut-{cut}", commands, [*outputs, str(folder / cut / "report.json")], shared))
    with lock(folder, doing="sweeping"):
        work = Jobs(jobs, folder, workers)
        work.run()
        if failed := work.undone():
            raise UserError("some jobs are not done, see their logs:\n  " + "\n  ".join(failed))
        rows = [_row(place, cut, folder / cut) for cut, place in places.items()]
        write_file(folder / "cuts.json", to_json(record.to_json(rows)))
        write_file(folder / "cuts.png", _plot(rows, arch))
        table = _table(rows)
        print(table, flush=True)
        return write_file(folder / "table.md", table)


def _row(place: Place, cut: str, audit: Path) -> Row:
    (entry,) = record.read_report(audit).defenses
    task = load_stage(place.checkpoint("task"), TaskModel)
    return Row(
        cut=cut,
        shape=list(task.feature_shape),
        edge_parameters=sum(p.numel() for p in task.net.edge.parameters()),
        kept=entry.utility.kept,
        figure=entry.utility.main,
        agreement=entry.utility.agreement,
        attacks={name: result.eval_acc for name, result in entry.attacks.items()},
        worst_case=entry.worst_case.eval_acc,
        task_seconds=json.loads((place.home / "task" / "summary.json").read_text())["seconds"],
    )


def _table(rows: list[Row]) -> str:
    """In Markdown."""
    attacks = [name.replace("_", "-") for name in rows[0].attacks]
    heads = [
        "cut",
        *("features", "edge parameters", rows[0].title, *attacks, "worst case (95 %)"),
    ]
    lines = [
        [
            row.cut,
            "×".join(map(str, row.shape)),
            f"{row.edge_parameters:,}",
            f"{row.kept.value:.3f}",
            *(percent(found.value) for found in row.attacks.values()),
            rate(row.worst_case),
        ]
        for row in rows
    ]
    return Table(heads, lines).markdown() + "\n"


def _plot(rows: list[Row], arch: str) -> bytes:
    """Utility and leakage against depth, with 95 % intervals, as a PNG."""
    plot = Figure(figsize=(6.0, 4.4), dpi=160, layout="constrained")
    axes = plot.add_subplot()
    title = rows[0].title
    lines = {
        f"{title} (utility)": [row.kept for row in rows],
        **{name.replace("_", "-"): [row.attacks[name] for row in rows] for name in rows[0].attacks},
        "worst case": [row.worst_case for row in rows],
    }
    places = range(len(rows))
    for name, figures in lines.items():
        values = [one.value for one in figures]
        below = [max(one.value - one.low, 0) for one in figures]
        above = [max(one.high - one.value, 0) for one in figures]
        style = "--" if "(utility)" in name else "-"
        axes.errorbar(places, values, [below, above], marker="o", ls=style, capsize=3, label=name)
    axes.set_xticks(places, [row.cut for row in rows])
    axes.set(xlabel=f"cut of {arch}, from shallow to deep", ylabel=f"faces identified; {title}")
    axes.set(ylim=(-0.03, 1.03))
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return save(plot)
