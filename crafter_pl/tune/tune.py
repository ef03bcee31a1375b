"""The verb `tune`: searches an attack's own settings on unprotected features of held-out public people."""

import hashlib
import itertools
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crafter_pl.attacks.base import Attack
from crafter_pl.audit import bind, find, record
from crafter_pl.audit.options import Options
from crafter_pl.audit.show.table import Table
from crafter_pl.benchmark.grid import check_files, flags
from crafter_pl.cli.functions import parsed
from crafter_pl.cli.parsing import Parser
from crafter_pl.commands import listed
from crafter_pl.errors import UserError
from crafter_pl.files import read_json, to_json, write_file
from crafter_pl.metrics import Estimate, IdentityBootstrap
from crafter_pl.tune.bench import SPLIT, Bench, Score
from crafter_pl.tune.config import Setting, shown, write_setting

Grid = dict[str, Any]  # lists of values to try, by the name of an attack's init argument


@dataclass(frozen=True)
class Try:
    """A setting, its score, and the best one's similarity minus its own, paired by face."""

    setting: Setting
    score: Score
    behind: Estimate


def tune(
    attack: str,
    audit: str = "configs/audit.yaml",
    grids: dict[str, Grid] | None = None,
    grid: Grid | None = None,
    faces: int = 64,
    best: bool = False,
    write: bool = False,
    data: str | None = None,
    budget: str | None = None,
    oracles: list[str] | str | None = None,
    task_ckpt: str | None = None,
    experiment: str | None = None,
    runs_dir: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    bootstrap: int | None = None,
    seed: int | None = None,
) -> Path:
    """Attack the same public faces with every combination of a grid of settings, and choose one.

    No private face is looked at. The winner is the cheapest setting whose identity similarity, averaged over
    the oracles, cannot be told from the best one's: the bootstrap interval over people of their paired
    difference contains 0. Results are kept in RUNS_DIR/EXPERIMENT/tuning; what is done is not done again.

    Args:
        attack: name of one of the audit's attacks.
        audit: an audit config: its data, its attacks and its oracles.
        grids: values to try for each class of attack, such as ``{WhiteBoxAttack: {lr: [0.1, 0.2]}}``.
        grid: values to try, in place of those of `grids`: ``--grid.steps [50,100] --grid.lr [0.1]``.
        faces: how many public faces are attacked.
        best: choose the best setting, whatever it costs.
        write: write the chosen setting into the audit config, of which nothing else changes.
        data: config of the data (this and what follows: default as the audit config says).
        budget: which of the audit's lists of attacks has the attack.
        oracles: checkpoints of identity oracles, or names of runs of the experiment.
        task_ckpt: checkpoint of the task model.
        experiment: folder of the runs under runs_dir.
        runs_dir: folder of all runs.
        device: auto, cpu, cuda, cuda:1, ...
        batch_size: pictures or features at a time.
        bootstrap: resamples behind each interval.
        seed: of the bootstrap, and of attacks that draw random numbers.

    Returns:
        Path of the table, a CSV file.

    Raises:
        UserError: there is no such attack, no grid for it, or a value that it refuses; too few people; a
            checkpoint that is missing or does not belong to the data; or a config that cannot be changed.
    """
    others = {
        **{"data": data, "budget": budget, "oracles": oracles, "task_ckpt": task_ckpt, "seed": seed},
        **{"experiment": experiment, "runs_dir": runs_dir, "device": device},
        **{"batch_size": batch_size, "bootstrap": bootstrap},
    }
    check_files(audit=audit)
    entry, place, asked = _find(attack, audit, {name: v for name, v in others.items() if v is not None})
    kind = entry["class_path"].rpartition(".")[2]
    grid = grid or (grids or {}).get(kind)
    if not grid or not all(values and isinstance(values, list) for values in grid.values()):
        raise UserError(
            f"there is no grid for {kind}, or a setting of it has no list of values: give them, such as "
            "--grid.steps [50,100], or --config configs/tune.yaml"
        )
    given = entry.get("init_args", {})
    settings = combinations(given, grid)
    builder = Parser(exit_on_error=False)
    builder.add_argument("--attack", type=Attack)
    entries = [json.dumps({**entry, "init_args": {**given, **setting}}) for setting in settings]
    # A value that the attack refuses is found at once.
    attacks = [builder.instantiate(builder.parse_args(["--attack", one])).attack for one in entries]
    bench = Bench(asked, faces)
    out = bench.commands.home / "tuning" / f"{attack}.csv"
    tries = compared(settings, search(bench, out, settings, attacks), bench.boot)
    write_file(out, _csv(tries))
    chosen = choose(tries, best)
    print(f"\n{_table(tries, chosen)}\n\nchosen: {shown(chosen.setting)}", flush=True)
    if write:
        write_setting(Path(audit), place, chosen.setting)
        print(f"written to {audit}")
    return out


def _find(
    name: str, config: str, others: dict[str, Any]
) -> tuple[dict[str, Any], tuple[str | int, ...], Options]:
    """An attack of an audit config, as it stands there and where; and what that audit asks for."""
    read, options = parsed(["audit", "--config", config, *flags(others)])
    asked = Options(**options)
    names = [one.name for one in find.find_attacks(asked.attacks, asked.budgets, asked.budget)]
    if name not in names:
        raise UserError(f"--attack {name}: the config has {', '.join(names)}")
    given = asked.attacks is not None
    place = ("attacks",) if given else ("budgets", asked.budget)
    entries = listed(read.attacks) if given else read.budgets[asked.budget]
    return entries[number := names.index(name)].as_dict(), (*place, number), asked


def combinations(current: Setting, grid: Grid) -> list[Setting]:
    """Every combination of the grid, and the config's own values of what it varies, in a shuffled order.

    Shuffled, so that the mean time of the settings done says how long the others will take.
    """
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    own = {name: current[name] for name in grid if name in current}
    if len(own) == len(grid) and own not in found:
        found.append(own)
    random.Random(0).shuffle(found)
    return found


def search(bench: Bench, out: Path, settings: list[Setting], attacks: list[Attack]) -> list[Score]:
    """Attacks with every setting that has no score yet beside ``out``, in a JSON file.

    Returns:
        The scores in the order of ``settings``.
    """
    file = out.with_suffix(".json")
    done = read_json(file, "delete it: every setting is tried again") if file.is_file() else {}
    keys, notes, bound = [], [], []
    for setting, attack in zip(settings, attacks, strict=True):
        bound.append(attack.against(None, bench.commands))
        notes += bind.check(bound[-1], bench.data)
        text = json.dumps([bound[-1].describe(), setting, bench.key], sort_keys=True)
        keys.append(hashlib.sha256(text.encode()).hexdigest()[:32])
    for note in dict.fromkeys(notes):
        print(f"note: {note}", flush=True)
    todo = [number for number, key in enumerate(keys) if key not in done]
    print(
        f"{len(settings)} settings, {len(settings) - len(todo)} done before; {len(bench.images)} faces of "
        f"{bench.boot.people} people of {SPLIT}",
        flush=True,
    )
    began = time.perf_counter()
    for count, number in enumerate(todo, 1):
        attack = bound[number]
        attack.prepare(bench.device)
        if count == 1:
            attack.reconstruct(bench.features[:2])  # the first call of a process is slower
            began = time.perf_counter()
        score = bench.measure(attack)
        done[keys[number]] = {"setting": settings[number], **record.to_json(score)}
        write_file(file, to_json(done))
        left = (time.perf_counter() - began) / count * (len(todo) - count)
        found = score.similarity
        print(
            f"[{count}/{len(todo)}] {shown(settings[number])}: similarity {found.value:.3f} {found.low:.3f}.."
            f"{found.high:.3f}, {score.seconds_per_face:.3g} s a face; about {left:.0f} s left",
            flush=True,
        )
    return [record.from_json(Score, done[key]) for key in keys]


def compared(settings: list[Setting], scores: list[Score], boot: IdentityBootstrap) -> list[Try]:
    """Each setting beside the best; ``boot`` is of the faces."""
    best = boot.mean(max(scores, key=lambda score: score.similarity.value).per_face)
    return [
        Try(setting, score, (best - boot.mean(score.per_face)).estimate())
        for setting, score in zip(settings, scores, strict=True)
    ]


def choose(tries: list[Try], best: bool) -> Try:
    """The best by mean similarity, or the cheapest that cannot be told from it."""
    if best:
        return min(tries, key=lambda one: one.behind.value)
    return min((one for one in tries if one.behind.low <= 0), key=lambda one: one.score.seconds_per_face)


def _table(tries: list[Try], chosen: Try) -> str:
    """All settings, the best first; a star marks the chosen one."""
    width = max(len(shown(one.setting)) for one in tries)
    heads = (("similarity", 21), ("behind the best", 21), ("rank-1", 7), ("pixels", 8), ("features", 9))
    lines = [f"  {'setting':{width}} {' '.join(f'{head:>{size}}' for head, size in heads)} {'s/face':>8}"]
    for one in sorted(tries, key=lambda one: one.behind.value):
        score = one.score
        intervals = (
            f"{found.value:7.3f} {found.low:6.3f} {found.high:6.3f}"
            for found in (score.similarity, one.behind)
        )
        lines.append(
            f"{'*' if one is chosen else ' '} {shown(one.setting):{width}} {' '.join(intervals)} "
            f"{score.rank1.value:7.3f} {score.pixel_error.value:8.5f} "
            f"{score.feature_loss.value:9.5f} {score.seconds_per_face:8.3g}"
        )
    return "\n".join(lines)


def _csv(tries: list[Try]) -> str:
    """The table as CSV, without intervals."""
    figures = ("similarity", "rank1", "pixel_error", "feature_loss")
    rows = [
        [
            *one.setting.values(),
            *(getattr(one.score, name).value for name in figures),
            one.score.seconds_per_face,
        ]
        for one in tries
    ]
    return Table([*tries[0].setting, *figures, "seconds_per_face"], rows).csv()
