"""The verb `benchmark`: trains, protects, attacks and audits a grid of defences, all alike."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from crafter_pl.attacks.adapted import AdaptedAttack
from crafter_pl.audit.find import find_attacks
from crafter_pl.benchmark.grid import SCENARIO, Cell, Defended, Place, cells, check_files, flags, option
from crafter_pl.benchmark.jobs import DONE, Job, Jobs, workers_of
from crafter_pl.benchmark.summary import summarise, write_summary
from crafter_pl.cli.functions import parsed
from crafter_pl.cli.stage import StageCLI
from crafter_pl.commands import listed, pairs, shipped
from crafter_pl.data.split import check_several
from crafter_pl.data.store import MANIFEST
from crafter_pl.defenses.base import Defense
from crafter_pl.errors import UserError
from crafter_pl.files import lock, read_json
from crafter_pl.nets import bf16_is_slow


def benchmark(
    defenses: list[Defended] | Defended,
    audit: str,
    oracles: list[str] | str,
    attackers: list[str] | str | None = None,
    stages: list[str] | str | None = None,
    fit_options: dict[str, dict[str, Any]] | None = None,
    budget: str = "standard",
    training: bool = True,
    seeds: list[int] | int | None = None,
    gallery_images: int = 4,
    configs: str = "configs",
    data: str | None = None,
    experiment: str = "synthetic",
    runs_dir: str = "runs",
    out: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    plan: bool = False,
) -> Path:
    """Audit many defences with many settings side by side: same people, same oracles, same attacks.

    Every cell of the grid is a job of its own: what is done already is not done again, also after an
    interruption, and a job that fails takes no other cell with it. All runs are ordinary ones in
    RUNS_DIR/EXPERIMENT, made by commands that ``--plan true`` prints.

    Args:
        defenses: the lines of the grid.
        audit: config of the audit: its data, its budgets, its bootstrap.
        oracles: stages of the panel, beside the recognisers of the audit's config.
        attackers: stages of attacks that adapt, trained anew against every cell; the budget should hold their
            attacks.
        stages: other stages that the budget's attacks need.
        fit_options: options of the `fit` of a stage, wherever it is trained:
            ``{task: {trainer.max_epochs: 6}}``.
        budget: which of the audit's lists of attacks everything is attacked with.
        training: also measure the utility in the training scenario.
        seeds: of the defences' training and noise, and of the attackers'; three or more show the spread.
        gallery_images: of the audit: every cell protects so many pictures of each private person more.
        configs: folder of the stages' configs.
        data: config of the data, for every command (default: what the configs name); give it an experiment of
            its own.
        experiment: folder of the runs under runs_dir; task model, prior and oracles in it are shared.
        runs_dir: folder of all runs.
        out: folder of the results (default: RUNS_DIR/EXPERIMENT/benchmark).
        workers: processes at a time (default: one for each GPU, without any one for each processor core).
        device: of the audit: auto, cpu, cuda.
        plan: print the commands, and run nothing.

    Returns:
        Path of table.md, beside which are table.csv, table.tex, benchmark.json and one audit a seed.

    Raises:
        UserError: a config is missing or two cells are the same, before anything runs; or some jobs failed,
            after all others are done and reported.
    """
    audit = shipped(audit)
    place = Place(Path(shipped(configs)), experiment, Path(runs_dir), data, fit_options or {})
    defenses, oracles, attackers = listed(defenses), listed(oracles), listed(attackers)
    folder = Path(out) if out is not None else place.home / "benchmark"
    gpus = torch.cuda.device_count() if device != "cpu" else 0
    workers = workers_of(workers, gpus)
    check_files(audit=audit, data=data)
    for stage in place.fit_options:
        place.config(stage)
    grid = cells(_quick(defenses, device), [0] if seeds is None else listed(seeds))
    _check_audit(audit, place, budget, oracles, attackers)
    planned = _Plan(place, attackers, training)
    for stage in [*oracles, *listed(stages)]:
        planned.fit(place.command("fit", stage, None, {}))
    if training:
        planned.fit(place.command("fit", SCENARIO, "cloud", {}))
    for cell in grid:
        planned.cell(cell)
    made = planned.made
    options = {
        "budget": budget,
        "oracles": option([place.checkpoint(Path(stage).name) for stage in oracles]),
        "device": device,
        "devices": workers,
        "overwrite": True,
        "gallery_images": gallery_images,
    }
    if plan:
        last = planned.audits(list(made.values()), audit, grid, folder, options)
        print(Jobs([*made.values(), *last], folder, workers).plan(), flush=True)
        return folder / "table.md"
    with lock(folder):
        jobs = Jobs(list(made.values()), folder, workers, gpus)
        jobs.run()
        there = [job for name, job in made.items() if jobs.state[name] == DONE]
        protected = [cell for cell in grid if jobs.state[_cell_job(cell)] == DONE]
        # Each shares its work out over all the workers itself.
        last = planned.audits(there, audit, protected, folder, options)
        audits = Jobs(last, folder, workers=1, threads=jobs.threads)
        audits.run()
        audited = [cell for cell in protected if audits.state[_audit_job(cell.seed)] == DONE]
        if audited:
            summary = summarise(folder, audited, place, {**jobs.seconds, **audits.seconds})
            table = write_summary(folder, summary)
            print(f"\n{table.read_text()}\ntable: {table}", flush=True)
    if failed := [*jobs.undone(), *audits.undone()]:
        rest = "the others are, and in the table" if audited else "and nothing could be audited"
        raise UserError(
            f"some jobs of the benchmark are not done; {rest}. See their logs, and "
            "give the same command to go on:\n  " + "\n  ".join(failed)
        )
    return table


def _check_audit(audit: str, place: Place, budget: str, oracles: list[str], attackers: list[str]) -> None:
    """Refuses before anything is trained what the audit would refuse at the end.

    Raises:
        UserError: no judge, a single private person, a budget that the audit's config does not have, or an
            attack of it that adapts and is in nobody's training.
    """
    _, read = parsed(["audit", "--config", audit, *place.shared])
    if not oracles and not listed(read.recognisers):
        raise UserError(
            f"a benchmark needs a judge: give stages of oracles with --oracles, or recognisers in {audit}"
        )
    check_several(read.data.private_people, "--data.private_people")
    trained = [Path(attacker).name for attacker in attackers]
    for attack in find_attacks(read.attacks, read.budgets, budget):
        if isinstance(attack, AdaptedAttack) and not any(name.startswith(attack.runs) for name in trained):
            raise UserError(
                f"the budget {budget} has the attack {attack.name}, and nobody trains {attack.runs} against "
                "the defences: give its stage with --attackers, or another --budget"
            )


def _quick(lines: list[Defended], device: str) -> list[Defended]:
    """Crafting in bfloat16 becomes crafting in float32 where that is faster, as training does."""
    slow = [line for line in lines if line.protect.get("precision") == "bf16"] if bf16_is_slow(device) else []
    if slow:
        print("note: crafting runs in float32: this processor has no instructions for bf16", flush=True)
    return [
        replace(line, protect={**line.protect, "precision": "float32"}) if line in slow else line
        for line in lines
    ]


class _Plan:
    """Collects jobs, each after what it needs.

    Attributes:
        attackers: stages of attacks that are trained anew against every cell.
        training: also in the training scenario.
        made: the jobs by name.
    """

    def __init__(self, place: Place, attackers: list[str], training: bool) -> None:
        self.place, self.attackers, self.training = place, attackers, training
        self.made: dict[str, Job] = {}
        self._parsed: dict[tuple[str, ...], tuple[StageCLI, list[list[str]]]] = {}

    def fit(self, args: list[str]) -> str:
        """Adds the job that trains a run, after those of its upstream stages; returns its name."""
        cli, upstream = self._needed(args)
        run = dict(pairs(args)).get("--name", cli.name)
        name = f"fit-{run}"
        if name not in self.made:
            needs = list(map(self.fit, upstream))
            commands = [] if self._ended(run, args) else [args]
            self.made[name] = Job(name, commands, [self.place.checkpoint(run)], needs)
        return name

    def _ended(self, run: str, args: list[str]) -> bool:
        """Whether a run is there that was trained as this command would train it.

        Raises:
            UserError: it was trained otherwise.
        """
        summary = self.place.home / run / "summary.json"
        if not summary.is_file():
            return False
        cli = StageCLI(args)
        done = read_json(summary, "delete its folder and train again")["max_epochs"]
        if done == 0:  # adopted: it was not trained here
            return True
        if done != (asked := cli.options.trainer.max_epochs):
            raise UserError(
                f"{summary.parent} was trained for {done} epochs, and the benchmark asks for {asked}: give "
                "another --experiment, or --fit_options as it was trained with"
            )
        cli.checkpoint()
        return cli.finished() is not None

    def _needed(self, args: list[str]) -> tuple[StageCLI, list[list[str]]]:
        """A `fit`, and the commands of the runs that it needs.

        Parsing takes a second, so it is done once for commands that differ in values alone.
        """
        given = dict(pairs(args))
        alike = (given["--config"], *(key for key in given if key.startswith("--")))
        if alike not in self._parsed:
            cli = StageCLI(args)
            upstream = [self.place.upstream(cli.upstream_command(run)) for run in cli.upstream]
            self._parsed[alike] = cli, upstream
        return self._parsed[alike]

    def cell(self, cell: Cell) -> None:
        """Adds the job that protects, trains the attackers and, in the training scenario, the cloud."""
        place = self.place
        fitted = cell.fitted(place)
        if not issubclass(self._needed(fitted)[0].stage, Defense):
            raise UserError(f"the stage {cell.line.stage} of the benchmark is not a defence (--defenses)")
        needs = [self.fit(fitted)]
        parts = ["private_test"]
        fits = [cell.attacked(place, attacker) for attacker in self.attackers]
        if self.training and cell.line.training:
            parts.append("private_train")
            fits.append(cell.cloud(place))
        commands = [cell.protected(place, part) for part in parts]
        outputs = [str(Path(cell.store(place, part), MANIFEST)) for part in parts]
        for run, args in fits:
            needs += map(self.fit, self._needed(args)[1])
            commands.append(args)
            outputs.append(place.checkpoint(run))
        self.made[_cell_job(cell)] = Job(_cell_job(cell), commands, outputs, list(dict.fromkeys(needs)))

    def audits(
        self, there: list[Job], audit: str, grid: list[Cell], folder: Path, options: dict[str, Any]
    ) -> list[Job]:
        """The audit of each seed, over the cells that are there, by the attacks that were trained in them.

        Args:
            there: the jobs that are done.
            audit: its config.
            grid: the cells that are there.
            folder: of the results.
            options: of every audit.
        """
        place, jobs = self.place, []
        inputs = [path for job in there for path in job.outputs]
        for seed in sorted({cell.seed for cell in grid}):
            own, out = [cell for cell in grid if cell.seed == seed], folder / f"seed{seed}"
            runs = [cell.attacked(place, attacker)[0] for cell in own for attacker in self.attackers]
            given = {
                **options,
                "out": str(out),
                "features": option([cell.store(place) for cell in own]),
                "adapted": option(list(map(place.checkpoint, runs))),
            }
            if place.checkpoint("cloud") in inputs:
                runs = ["cloud", *(cell.cloud(place)[0] for cell in own if cell.line.training)]
                given["clouds"] = option(list(map(place.checkpoint, runs)))
            command = ["audit", "--config", audit, *place.shared, *flags(given)]
            jobs.append(Job(_audit_job(seed), [command], [str(out / "report.json")], inputs=inputs))
        return jobs


def _cell_job(cell: Cell) -> str:
    return f"cell-{cell.name}"


def _audit_job(seed: int) -> str:
    return f"audit-seed{seed}"
