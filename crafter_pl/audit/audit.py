"""The audit: attack every set of features, let the oracles judge, measure the utility, write the report."""

from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from crafter_pl import __version__
from crafter_pl.attacks.adaptive import AdaptedAttack
from crafter_pl.attacks.base import Attack, Ruler
from crafter_pl.audit import figures, inputs, metrics
from crafter_pl.audit import groups as by_group
from crafter_pl.audit.attacking import Attacking
from crafter_pl.audit.bootstrap import IdentityBootstrap
from crafter_pl.audit.cache import remove_unused
from crafter_pl.audit.front import TRAINING, areas
from crafter_pl.audit.inputs import SPLIT
from crafter_pl.audit.panel import Panel
from crafter_pl.audit.plots import Column, Gallery
from crafter_pl.audit.report import text, to_tensorboard, write_report
from crafter_pl.audit.targets import Published, same_protection
from crafter_pl.audit.team import Team
from crafter_pl.audit.verdict import title
from crafter_pl.audit.worst import worst_cases
from crafter_pl.commands import Commands, listed, settings_of
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import check_several
from crafter_pl.data.store import MANIFEST
from crafter_pl.errors import UserError
from crafter_pl.files import lock, sha256

NOT_WRITTEN = ("features", "target", "verdicts", "cloud", "scores")  # parts of an entry that stay in memory


def audit(
    data: FacesDataModule,
    features: list[str] | str | None = None,
    oracles: list[str] | str | None = None,
    attacks: list[Attack] | Attack | None = None,
    budgets: dict[str, list[Attack]] | None = None,
    budget: str = "standard",
    rulers: list[Ruler] | Ruler | None = None,
    clouds: list[str] | str | None = None,
    defenses: list[str] | str | None = None,
    adapted: list[str] | str | None = None,
    groups: list[str] | str | None = None,
    task_ckpt: str | None = None,
    experiment: str = "synthetic",
    runs_dir: str = "runs",
    out: str | None = None,
    device: str = "auto",
    devices: int = 1,
    num_nodes: int = 1,
    batch_size: int = 64,
    bootstrap: int = 1000,
    seed: int = 0,
    lpips: bool = False,
    overwrite: bool = False,
) -> Path:
    """Attack features, protected and not, and report what they hide and what they keep.

    The unprotected features are computed in memory and never written. Of the private people an attack is
    handed features alone, in an order that says nothing about them. How long the attacks will take is
    measured on a first batch of each, and printed before the rest.

    Checkpoints are paths, or names of runs of the experiment.

    Args:
        data: the faces; the private_test part is audited.
        features: feature stores to audit, paths or names of the experiment's, one or more (default: the only
            one of the experiment). Stores that differ in their seed alone are several queries of the same
            faces.
        oracles: checkpoints of identity oracles; the first gives the paper's Eval Acc, all of them the worst
            case (default: all that the experiment has trained). A run that is not trained yet is left out,
            and the report says so.
        attacks: what to attack the features with, in place of a budget.
        budgets: lists of attacks by name, from few and quick to many and strong.
        budget: which of these lists (in our configs quick, standard, adaptive or exhaustive).
        rulers: what names people straight from features, having learnt from other pictures with their names;
            reported apart.
        clouds: checkpoints of cloud classifiers that have learned from unprotected features and from these
            defences': the utility in the training scenario, beside that of the trained classifier.
        defenses: checkpoints of the defences behind the stores, where they lie neither beside the store nor
            in the experiment's folder: attackers who adapt query them.
        adapted: checkpoints of stages that have adapted to these defences: attacks that adapt look at no
            others (default: at all finished ones of the experiment, and take the one that has learned most).
        groups: attributes by which utility and protection are also reported apart, such as `Male`: the faces
            that have it beside those that have not. One that the data lack is named and left out.
        task_ckpt: checkpoint of the task model (default: the experiment's own).
        experiment: folder under runs_dir where default checkpoints are looked for.
        runs_dir: folder of all runs.
        out: folder of the report (default: RUNS_DIR/EXPERIMENT/audit, for another budget than standard
            audit-BUDGET).
        device: auto, cpu, cuda, cuda:1, ...
        devices: processes on this machine that share the attacks, each on a device of its own; they are
            started here, or by torchrun or SLURM.
        num_nodes: machines, each with so many processes.
        batch_size: pictures or features at a time.
        bootstrap: resamples behind each interval.
        seed: of the bootstrap, and of attacks that draw random numbers.
        lpips: also measure LPIPS; needs ImageNet weights of AlexNet.
        overwrite: replace a report that is there; reconstructions that are still valid are used again.

    Returns:
        Path of report.html.

    Raises:
        UserError: on missing or mismatched checkpoints, stores or data, where an attack has nothing that fits
            a defence, or of a single person.
    """
    home = Path(runs_dir) / experiment
    budget_used = budget if attacks is None else None
    default = "audit" if budget_used in (None, "standard") else f"audit-{budget}"
    folder = Path(out) if out is not None else home / default
    attacks, rulers = inputs.chosen_attacks(attacks, budgets, budget), listed(rulers)
    if (folder / "report.json").exists() and not overwrite:
        raise UserError(f"there is a report in {folder} already: give --overwrite true, or another --out")
    if (folder / "checkpoints").exists() or (folder / MANIFEST).exists():
        raise UserError(f"{folder} holds a run or a feature store: give another --out")
    inputs.check_arguments(attacks, rulers, bootstrap, batch_size)
    check_several(data.private_people, "--data.private_people")
    commands = Commands(home, settings_of(data))
    stores = inputs.found_stores(home, None if features is None else listed(features))
    panel_files, notes = inputs.found_oracles(commands, oracles)
    clouds, defenses, adapted = (
        None if given is None else inputs.found_checkpoints(home, option, listed(given))
        for option, given in (("clouds", clouds), ("defenses", defenses), ("adapted", adapted))
    )
    task_path = inputs.found_task(commands, task_ckpt)
    team = Team(device, devices, num_nodes)
    device = team.device

    data.setup("test")
    rows = data.rows(SPLIT)
    task, remarks = inputs.load_task(task_path, data)
    task.to(device)
    panel_nets = {name: oracle.to(device) for name, oracle in inputs.load_oracles(panel_files, data).items()}
    apart, missing = by_group.known_groups(listed(groups) or None, list(data.attribute_names))
    notes += [*remarks, *missing]
    for note in notes if team.rank == 0 else ():
        print(f"note: {note}", flush=True)
    images = rows["image"]
    published = Published(home, device, defenses)
    entries = []
    for group in same_protection(stores):
        entry, remarks = inputs.protected(group, published, task, task_path, data.split_hash, rows["index"])
        entries.append(entry)
        notes += remarks
    entries = [inputs.unprotected(), *entries]
    inputs.label(entries)
    if clouds:
        inputs.hand_out_clouds(clouds, entries, task_path, data.split_hash)
    entries[1:] = sorted(entries[1:], key=lambda entry: (entry["family"], entry["beta"] or 0.0))
    for adversary in (*attacks, *rulers):
        adversary.commands = commands
        adversary.resolve(home)
        if isinstance(adversary, AdaptedAttack):
            adversary.among = adapted
    notes += inputs.check_aims(attacks, rulers, entries, data.split_hash)
    entries[0]["features"] = team.agree(inputs.encode(task, images, device, batch_size))

    with lock(folder, doing="auditing", other="--out") if team.rank == 0 else nullcontext():
        cache = folder / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        attacking = Attacking(
            attacks, entries, cache, tuple(images.shape[1:]), device, batch_size, seed, team.rank, team.world
        )
        # What may fail at the people, the labels or the weights of a metric does so before the attacks.
        boot = IdentityBootstrap(rows["identity"], bootstrap, seed)
        panel = Panel(panel_nets, images, rows["identity"], device, batch_size)
        ruled = {
            ruler.name: figures.rule(ruler, entries, rows["identity"], boot, device, batch_size)
            for ruler in rulers
        }
        if lpips:
            metrics.lpips(images[:1], images[:1])
        expected = attacking.forecast()
        if team.rank == 0:
            print(expected, flush=True)
        attacking.run()
        team.wait()
        if team.rank > 0:
            return folder / "report.html"  # the first process writes it

        shown = inputs.people_shown(rows["identity"], rows["index"])
        gallery = Gallery(images[shown], [])
        described: dict[str, dict[str, Any]] = {}
        for attack in attacks:
            for entry, moment, pictures in attacking(attack):
                judgement = panel.judge(pictures)
                result = figures.privacy(judgement, pictures, images, panel, boot, lpips and moment is None)
                result["learnt"] = attack.learnt and (moment is None or moment["round"] > 0)
                named = judgement.hits.any(dim=0)[shown].tolist()
                column = Column(attack.name, title(entry), pictures[shown], named, moment)
                if moment is None:
                    entry["verdicts"].append(judgement)
                    gallery.columns.append(column)
                    knows = {**attack.describe(), "class": type(attack).__name__}
                    knows |= {"adaptive": attack.adaptive, "files": dict(attack.checkpoints)}
                    if described.setdefault(attack.name, knows) != knows:
                        result |= {key: knows[key] for key in ("checkpoints", "files")}
                    entry["attacks"][attack.name] = result
                else:
                    gallery.rounds.append(column)
                    entry.setdefault("history", {}).setdefault(attack.name, []).append({**moment, **result})
        replicates = [
            figures.utility(entry, figures.cloud(entry, task, device), data, rows, boot, device, batch_size)
            for entry in entries
        ]
        learned = {
            place: figures.utility(
                entry, entry["cloud"].to(device), data, rows, boot, device, batch_size, TRAINING
            )
            for place, entry in enumerate(entries)
            if "cloud" in entry
        }
        rates = worst_cases(entries, attacks, panel, boot, replicates)
        report = {
            "schema": 1,
            "created": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "version": __version__,
            "data": {
                "source": data.source,
                "split_hash": data.split_hash,
                "image_size": int(images.shape[-1]),
                "identities": boot.people,
                "images": len(images),
                "chance": 1 / len(panel.people),
                "attributes_left_out": [
                    n for n in data.attribute_names if n not in entries[0]["utility"]["per_attribute"]
                ],
            },
            "oracles": figures.describe_oracles(panel, panel_files, boot),
            "panel": {"accuracy_on_originals": boot.mean(panel.originals.hits.any(dim=0))},
            "attacks": described,
            "rulers": ruled,
            "areas": {
                "inference": areas(entries, dict(enumerate(replicates)), rates),
                **({"training": areas(entries, learned, rates, TRAINING)} if learned else {}),
            },
            "groups": by_group.measure(
                apart, entries, attacks, rows, list(data.attribute_names), panel, boot
            ),
            "defenses": [
                {key: value for key, value in entry.items() if key not in NOT_WRITTEN} for entry in entries
            ],
            "notes": list(dict.fromkeys(notes)),
            "settings": {
                "task_ckpt": str(task_path),
                "task_sha256": sha256(task_path),
                "features": stores,
                "clouds": clouds,
                "adapted": adapted,
                "oracles": panel_files,
                "budget": budget_used,
                "split": SPLIT,
                "device": device,
                "batch_size": batch_size,
                "bootstrap": bootstrap,
                "seed": seed,
            },
        }
        page = write_report(folder, report, gallery)
        to_tensorboard(folder, report, gallery)
        remove_unused(cache, attacking.used)
        print(f"\n{text(report)}\n\nreport: {page}", flush=True)
        return page
