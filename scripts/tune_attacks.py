"""Searches an attack's own settings on unprotected features of held-out public people, never on private ones.

    python scripts/tune_attacks.py --config configs/audit.yaml --attack white_box
        [--grid "steps=[50,100,200]" "lr=[0.02,0.05]"] [--faces 64] [--best] [--write]

Attack (of the list that --budget names), data and oracles are those of the audit config. Every combination of
the grid (by default the one in configs/tune.yaml) attacks the same public_val faces. The winner is the
cheapest setting whose identity similarity, averaged over the oracles, cannot be told from the best one's: the
bootstrap interval over people of their paired difference contains 0. `--best` takes the best itself;
`--write` puts the winner into the audit config. Results are kept in RUNS_DIR/EXPERIMENT/tuning/; settings
that are done are not run again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import random
import sys
import time
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from crafter_pl.attacks.base import Attack
from crafter_pl.audit import inputs
from crafter_pl.audit.audit import audit
from crafter_pl.audit.bootstrap import IdentityBootstrap, figure
from crafter_pl.audit.metrics import identity_similarity
from crafter_pl.commands import Commands, listed, settings_of
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.device import pick_device
from crafter_pl.errors import UserError
from crafter_pl.files import read_json, sha256, to_json, write_file
from crafter_pl.plugins import import_stages
from crafter_pl.stages.oracle import IdentityOracle

SPLIT = "public_val"
GRIDS = Path(__file__).parent.parent / "configs" / "tune.yaml"
COLUMNS = ("similarity", "rank1", "pixel_error", "feature_loss", "seconds_per_face")
Setting = dict[str, Any]


def main(args: list[str] | None = None) -> None:
    """Runs the search that the command line asks for."""
    import_stages()
    parser = ArgumentParser(description=__doc__.splitlines()[0], exit_on_error=False)
    parser.add_argument(
        "-c", "--config", action="config", help="an audit config; its options may be given here, too"
    )
    parser.add_function_arguments(audit, fail_untyped=False, as_positional=False, sub_configs=True)
    parser.add_argument("--attack", type=str, required=True, help="name of one of the config's attacks")
    parser.add_argument("--grid", type=str, nargs="+", default=[], help='such as "steps=[50,100]"')
    parser.add_argument("--faces", type=int, default=64, help="public faces attacked")
    parser.add_argument("--best", action="store_true", help="choose the best, whatever it costs")
    parser.add_argument("--write", action="store_true", help="write the chosen setting into the config")
    options = parser.parse_args(args)
    given = parser.instantiate(options)
    place, attack = find(inputs.chosen_attacks(given.attacks, given.budgets, given.budget), options.attack)
    where = ("attacks",) if given.attacks is not None else ("budgets", given.budget)
    told = listed(options.attacks) if given.attacks is not None else options.budgets[given.budget]
    base = told[place].get("init_args")
    entry = {
        "class_path": told[place].class_path,
        "init_args": base.as_dict() if base is not None else {},
    }
    grid = read_grid(options.grid) if options.grid else default_grid(attack)
    settings = combinations(entry["init_args"], grid)
    builder = ArgumentParser(exit_on_error=False)
    builder.add_argument("--attack", type=Attack)

    def build(setting: Setting) -> Attack:
        init = {**entry["init_args"], **setting}
        return builder.instantiate(builder.parse_object({"attack": {**entry, "init_args": init}})).attack

    attacks = [build(setting) for setting in settings]  # a value that the attack refuses is found at once
    home = Path(given.runs_dir) / given.experiment
    bench = make_bench(given, home, options.faces)
    results = search(bench, home / "tuning" / options.attack, settings, attacks)
    chosen = choose(results, bench.boot, options.best)
    table(results, chosen)
    if options.write:
        if not options.config:
            raise UserError("--write changes the audit config: name it by --config")
        file = Path(str(options.config[-1]))
        write_setting(file, (*where, place), chosen["setting"])
        print(f"written to {file}")


# The candidates


def find(attacks: list[Attack], name: str) -> tuple[int, Attack]:
    """Place and object of the attack of this name."""
    for place, attack in enumerate(attacks):
        if attack.name == name:
            return place, attack
    raise UserError(f"--attack {name}: the config has {', '.join(attack.name for attack in attacks)}")


def read_grid(lines: list[str]) -> dict[str, list[Any]]:
    """``["steps=[50,100]", "lr=[0.1]"]`` as a dict of lists."""
    grid = {}
    for line in lines:
        name, equals, text = line.partition("=")
        values = yaml.safe_load(text) if equals else None
        if not isinstance(values, list) or not values:
            raise UserError(
                f'--grid {line!r}: write a setting and a list of values, such as "steps=[50,100]"'
            )
        grid[name] = values
    return grid


def default_grid(attack: Attack) -> dict[str, list[Any]]:
    """The grid of configs/tune.yaml for this class of attack."""
    grids = yaml.safe_load(GRIDS.read_text(encoding="utf-8"))["grids"]
    kind = type(attack).__name__
    if kind not in grids:
        raise UserError(f'{GRIDS} has no grid for {kind}: give one, such as --grid "steps=[50,100]"')
    return grids[kind]


def combinations(current: Setting, grid: dict[str, list[Any]]) -> list[Setting]:
    """Every combination of the grid, and the config's own values of what it varies, in a shuffled order.

    Shuffled, so that the mean time of the settings done says how long the others will take.
    """
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    own = {name: current[name] for name in grid if name in current}
    if len(own) == len(grid) and own not in found:
        found.append(own)
    random.Random(0).shuffle(found)
    return found


# Measuring


@dataclass
class Bench:
    """The public faces that every setting attacks, and the rulers."""

    images: Tensor
    features: Tensor
    identity: Tensor
    encode: Callable[[Tensor], Tensor]
    oracles: dict[str, IdentityOracle]
    own: list[Tensor]  # for each oracle embeddings (N, E) of the faces
    gallery: list[Tensor]  # and of all public_val pictures (M, E)
    same: Tensor  # (N, M) bool: the gallery's picture is the face itself
    owner: Tensor  # (M,) whom the gallery shows
    boot: IdentityBootstrap
    device: str
    batch_size: int
    seed: int
    split_hash: str
    key: list[Any]  # all that a result depends on besides the attack


def make_bench(given: Any, home: Path, faces: int) -> Bench:
    """Loads the nets and the public_val people.

    Raises:
        UserError: too few public_val people, or checkpoints that do not belong to these data.
    """
    data: FacesDataModule = given.data
    device = pick_device(given.device)
    data.setup("test")
    commands = Commands(home, settings_of(data))
    task_path = inputs.found_task(commands, given.task_ckpt)
    task, notes = inputs.load_task(task_path, data)
    task.to(device)
    files, missing = inputs.found_oracles(commands, given.oracles)
    oracles = inputs.load_oracles(files, data)
    for note in (*notes, *missing):
        print(f"note: {note}", flush=True)
    everybody = data.dataset(SPLIT)
    rows = spread(everybody.faces.identity[everybody.index], faces)
    batch = everybody.take(everybody.index[rows])
    images, identity = batch["image"], batch["identity"]

    def embed(oracle: IdentityOracle, pictures: Tensor) -> Tensor:
        with torch.no_grad():
            return oracle.embed(pictures.to(device)).float().cpu()

    gallery = []
    for oracle in oracles.values():
        oracle.to(device)
        parts = [
            embed(oracle, everybody.take(part)["image"]) for part in everybody.index.split(given.batch_size)
        ]
        gallery.append(torch.cat(parts))

    def encode(pictures: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [task.edge(part.to(device)).float().cpu() for part in pictures.split(given.batch_size)]
        return torch.cat(parts)

    hashes = [sha256(task_path), *(sha256(path) for path in files)]
    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else "cpu"
    return Bench(
        images,
        encode(images),
        identity,
        encode,
        oracles,
        [kept[rows] for kept in gallery],
        gallery,
        everybody.index[None, :] == batch["index"][:, None],
        everybody.faces.identity[everybody.index],
        IdentityBootstrap(identity, given.bootstrap, given.seed),
        device,
        given.batch_size,
        given.seed,
        data.split_hash,
        [data.split_hash, batch["index"].tolist(), hashes, where, given.batch_size, given.seed],
    )


def spread(identity: Tensor, count: int) -> Tensor:
    """Rows of ``count`` pictures of people with two or more: everybody's first, then everybody's second, ...

    Raises:
        UserError: fewer than two such people.
    """
    people, place = identity.unique(return_inverse=True)
    many = torch.bincount(place) > 1
    if int(many.sum()) < 2 or count < 1:
        raise UserError(
            f"{int(many.sum())} people of {SPLIT} have two pictures or more, and --faces is {count}: give at "
            "least 2 people (--data.public_val_fraction) and 1 face"
        )
    turns = [(place == person).nonzero()[:, 0].tolist() for person in range(len(people)) if many[person]]
    dealt = [row for turn in itertools.zip_longest(*turns) for row in turn if row is not None]
    return torch.tensor(dealt[:count])


def search(bench: Bench, out: Path, settings: list[Setting], attacks: list[Attack]) -> list[dict[str, Any]]:
    """Attacks with every setting that is not in ``out``.json yet; results in the order of ``settings``."""
    file = out.with_suffix(".json")
    file.parent.mkdir(parents=True, exist_ok=True)
    done = read_json(file, "delete it: every setting is tried again") if file.is_file() else {}
    keys, todo, notes = [], [], []
    for setting, attack in zip(settings, attacks, strict=True):
        attack.resolve(out.parent.parent)
        attack.aim(None)
        notes += inputs.check_adversary(attack, bench.split_hash)
        text = json.dumps([attack.describe(), setting, bench.key], sort_keys=True)
        keys.append(hashlib.sha256(text.encode()).hexdigest()[:32])
        if keys[-1] not in done:
            todo.append((keys[-1], setting, attack))
    for note in dict.fromkeys(notes):
        print(f"note: {note}", flush=True)
    print(
        f"{len(settings)} settings, {len(settings) - len(todo)} done before; {len(bench.images)} faces of "
        f"{bench.boot.people} people of {SPLIT}",
        flush=True,
    )
    began = time.perf_counter()
    for number, (key, setting, attack) in enumerate(todo, 1):
        attack.prepare(bench.device)
        if number == 1:
            attack.reconstruct(bench.features[:2])  # the first call of a process is slower
            began = time.perf_counter()
        done[key] = {"setting": setting, **measure(bench, attack)}
        write_file(file, to_json(done))
        left = (time.perf_counter() - began) / number * (len(todo) - number)
        value = done[key]["similarity"]
        print(
            f"[{number}/{len(todo)}] {shown(setting)}: similarity {value['value']:.3f} "
            f"{value['ci95'][0]:.3f}..{value['ci95'][1]:.3f}, "
            f"{done[key]['seconds_per_face']:.3g} s a face; about {left:.0f} s left",
            flush=True,
        )
    results = [done[key] for key in keys]
    write_file(out.with_suffix(".csv"), as_csv(results))
    return results


def measure(bench: Bench, attack: Attack) -> dict[str, Any]:
    """Attacks all faces, and scores the reconstructions.

    Returns:
        ``similarity`` (cosine of an oracle's embeddings of reconstruction and original, mean over oracles)
        with its interval over people, and the same ``by_oracle``; ``rank1`` (the nearest embedding among all
        other originals is the same person's, mean over oracles); ``pixel_error`` (squared, mean over values);
        ``feature_loss`` (squared distance of the features over their number); ``seconds_per_face``; and
        ``per_face``, the similarity of each.
    """
    began = time.perf_counter()
    parts = []
    for start in range(0, len(bench.features), bench.batch_size):
        with torch.random.fork_rng():
            torch.manual_seed(bench.seed + start)
            parts.append(attack.reconstruct(bench.features[start : start + bench.batch_size]).float().cpu())
    seconds = time.perf_counter() - began
    made = torch.cat(parts)
    if made.shape != bench.images.shape or not bool(torch.isfinite(made).all()):
        raise ValueError(f"attack {attack.name} returned {tuple(made.shape)}, or values that are not finite")
    similar, hits = [], []
    for oracle, own, gallery in zip(bench.oracles.values(), bench.own, bench.gallery, strict=True):
        with torch.no_grad():
            embedded = torch.cat(
                [oracle.embed(part.to(bench.device)).float().cpu() for part in made.split(bench.batch_size)]
            )
        similar.append(identity_similarity(embedded, own))
        nearest = (embedded @ gallery.T).masked_fill(bench.same, -2).argmax(1)
        hits.append(bench.owner[nearest] == bench.identity)
    per_face = torch.stack(similar).mean(0)
    return {
        "similarity": bench.boot.mean(per_face),
        "by_oracle": {
            name: bench.boot.mean(values) for name, values in zip(bench.oracles, similar, strict=True)
        },
        "rank1": bench.boot.mean(torch.stack(hits).float().mean(0)),
        "pixel_error": bench.boot.mean((made - bench.images).square().flatten(1).mean(1)),
        "feature_loss": bench.boot.mean((bench.encode(made) - bench.features).square().flatten(1).mean(1)),
        "seconds_per_face": seconds / len(made),
        "per_face": per_face.tolist(),
    }


# The choice


def choose(results: list[dict[str, Any]], boot: IdentityBootstrap, best: bool) -> dict[str, Any]:
    """The best by mean similarity, or the cheapest that cannot be told from it; notes ``behind`` in each.

    ``behind`` is the best one's similarity minus this one's, paired by face, with its interval over people.
    """
    top = max(results, key=lambda result: result["similarity"]["value"])
    replicates = boot.mean_replicates(top["per_face"])
    for result in results:
        value = top["similarity"]["value"] - result["similarity"]["value"]
        result["behind"] = figure(value, replicates - boot.mean_replicates(result["per_face"]))
    if best:
        return top
    level = [result for result in results if result["behind"]["ci95"][0] <= 0]
    return min(level, key=lambda result: result["seconds_per_face"])


def shown(setting: Setting) -> str:
    """A setting as the table and the progress lines write it."""
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def table(results: list[dict[str, Any]], chosen: dict[str, Any]) -> None:
    """Prints all settings, the best first; a star marks the chosen one."""
    width = max(len(shown(result["setting"])) for result in results)
    heads = (("similarity", 21), ("behind the best", 21), ("rank-1", 7), ("pixels", 8), ("features", 9))
    print(f"\n  {'setting':{width}} {' '.join(f'{head:>{size}}' for head, size in heads)} {'s/face':>8}")
    for result in sorted(results, key=lambda result: -result["similarity"]["value"]):
        similarity, behind = (
            f"{result[name]['value']:7.3f} {result[name]['ci95'][0]:6.3f} {result[name]['ci95'][1]:6.3f}"
            for name in ("similarity", "behind")
        )
        print(
            f"{'*' if result is chosen else ' '} {shown(result['setting']):{width}} {similarity} {behind} "
            f"{result['rank1']['value']:7.3f} {result['pixel_error']['value']:8.5f} "
            f"{result['feature_loss']['value']:9.5f} {result['seconds_per_face']:8.3g}"
        )
    print(f"\nchosen: {shown(chosen['setting'])}", flush=True)


def as_csv(results: list[dict[str, Any]]) -> str:
    """The table as CSV, without intervals."""
    text = io.StringIO()
    names = list(results[0]["setting"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *COLUMNS])
    for result in results:
        figures = [result[name] for name in COLUMNS]
        writer.writerow(
            [*result["setting"].values(), *(f["value"] if isinstance(f, dict) else f for f in figures)]
        )
    return text.getvalue()


# The config


def write_setting(file: Path, place: tuple[str | int, ...], setting: Setting) -> None:
    """Puts values into ``init_args`` of an attack of an audit config; everything else stays byte for byte.

    Args:
        file: the audit config.
        place: the way to the attack, such as ``("attacks", 0)`` or ``("budgets", "standard", 0)``.
        setting: names and new values.

    Raises:
        UserError: the file has no such attack.
    """
    text = file.read_text(encoding="utf-8")
    wanted = yaml.safe_load(text)
    by_hand = UserError(
        f"{file} does not list this attack with its class_path: put {shown(setting)} in by hand"
    )
    try:
        target = wanted
        for key in place:
            target = target[key]
        target.setdefault("init_args", {}).update(setting)
        for name, value in setting.items():
            text = _with_value(text, place, name, yaml_value(value))
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise by_hand from error
    if yaml.safe_load(text) != wanted:
        raise by_hand
    write_file(file, text)


def yaml_value(value: Any) -> str:
    """A value on one line of YAML."""
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    )


def _with_value(text: str, place: tuple[str | int, ...], name: str, value: str) -> str:
    """The text with one value of ``init_args`` replaced or added, found by the marks of the YAML parser."""
    entry = yaml.compose(text)
    for key in place:
        entry = entry.value[key] if isinstance(key, int) else _child(entry, key)
    init = _child(entry, "init_args")
    if init is None:
        head = next(key for key, _ in entry.value if key.value == "class_path")
        end = _child(entry, "class_path").end_mark.index
        inner = f"init_args: {{{name}: {value}}}"
        glue = ", " if entry.flow_style else "\n" + " " * head.start_mark.column
        return text[:end] + glue + inner + text[end:]
    old = _child(init, name)
    if old is not None:
        return text[: old.start_mark.index] + value + text[old.end_mark.index :]
    first = init.value[0][0].start_mark if init.value else None
    if first is None or init.flow_style:
        end = init.end_mark.index - 1
        return text[:end] + (", " if init.value else "") + f"{name}: {value}" + text[end:]
    return text[: first.index] + f"{name}: {value}\n" + " " * first.column + text[first.index :]


def _child(node: Any, key: str) -> Any:
    """The value of ``key`` in a mapping node; None if it has none."""
    return next((value for name, value in node.value if name.value == key), None)


if __name__ == "__main__":
    try:
        main()
    except (UserError, ArgumentError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
