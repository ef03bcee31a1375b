"""The audit: attack every set of features, let the oracles judge, measure the utility, write the report."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from crafter_pl import __version__
from crafter_pl.attacks.base import Attack
from crafter_pl.attacks.reader import Reader
from crafter_pl.audit import find
from crafter_pl.audit.attack import Job, Work, remove_unused
from crafter_pl.audit.bind import bind, refuse
from crafter_pl.audit.certification import Messages, certify, read_messages
from crafter_pl.audit.compare import compared
from crafter_pl.audit.domain import Domain
from crafter_pl.audit.domain import features as drawn_features
from crafter_pl.audit.features import Loaded, encode, load_features
from crafter_pl.audit.groups import by_group, known_groups, known_names
from crafter_pl.audit.judge import Judge, Judged, Look, Reading
from crafter_pl.audit.load import Published, load_judges, load_task
from crafter_pl.audit.options import Options
from crafter_pl.audit.panel import Panel
from crafter_pl.audit.process_group import ProcessGroup
from crafter_pl.audit.schema import Report, Settings
from crafter_pl.audit.show.gallery import Column, Gallery, people_shown
from crafter_pl.audit.show.page import to_tensorboard, write_report
from crafter_pl.audit.show.sentences import beyond, completed
from crafter_pl.audit.show.tables import text
from crafter_pl.audit.suspects import Suspects
from crafter_pl.audit.yardstick import yardstick
from crafter_pl.commands import Commands, listed, origin, settings_of
from crafter_pl.defenses.certified import Certified
from crafter_pl.errors import UserError
from crafter_pl.files import lock, sha256
from crafter_pl.metrics import IdentityBootstrap, lpips


def audit(asked: Options) -> Path:
    """Attack features, protected and not, and report what they hide and what they keep.

    The unprotected features are computed in memory and never written. Of the private people an attack is
    handed features alone, in an order that says nothing about them. How long the attacks will take is
    measured on a first batch of each, and printed before the rest.

    Args:
        asked: what to audit, and by whom.

    Returns:
        Path of report.html.

    Raises:
        UserError: on missing or mismatched checkpoints, stores or data, where an attack has nothing that fits
            a defence, or of a single person.
    """
    data, folder = asked.data, asked.folder
    attacks, readers = find.find_attacks(asked.attacks, asked.budgets, asked.budget), listed(asked.rulers)
    asked.check(attacks, readers)
    commands = Commands(asked.home, settings_of(data))
    stores = find.find_stores(asked.home, asked.features)
    recognisers = listed(asked.recognisers)
    panel_files, notes = find.find_oracles(commands, asked.oracles, needed=not recognisers)
    clouds, defenses, adapted = (
        find.find_checkpoints(asked.home, option, getattr(asked, option))
        for option in ("clouds", "defenses", "adapted")
    )
    task_path = find.find_task(commands, asked.task_ckpt)
    group = ProcessGroup(asked.device, asked.devices, asked.num_nodes)
    device, first = group.device, group.rank == 0
    settings = {
        "task_ckpt": str(task_path),
        "task_sha256": sha256(task_path),
        "features": stores,
        "clouds": clouds,
        "adapted": adapted,
        "oracles": panel_files,
        "budget": asked.budget_used,
        "split": find.SPLIT,
        "device": device,
        **{
            name: getattr(asked, name)
            for name in ("batch_size", "bootstrap", "seed", "gallery_images", "drawn_images")
        },
    }

    unnamed: list[str] = []
    if asked.data.identities == "none":
        readers, unnamed = find.without_names(readers)
    data.setup("test")
    rows, names, split_hash = data.rows(find.SPLIT), known_names(data), data.split_hash
    images = rows["image"]
    task, remarks = load_task(task_path, data)
    task.to(device)
    groups, missing = known_groups(listed(asked.groups), names)
    notes += [*unnamed, *remarks, *missing, *find.left_out(attacks, asked.budgets)]
    for note in notes if first else ():
        print(f"note: {note}", flush=True)
    published = Published(asked.home, device, defenses)
    sets, remarks = load_features(stores, published, task, task_path, split_hash, rows["index"], clouds)
    targets = [one.target for one in sets]
    bound, more, wrong = bind(attacks, targets, commands, adapted, data)
    reading, others, missed = bind(readers, targets, commands, adapted, data)
    refuse([*wrong, *missed])
    sets[0] = replace(sets[0], queries=group.agree(encode(task, images, device, asked.batch_size)))

    with lock(folder, doing="auditing", other="--out") if first else nullcontext():
        jobs = [
            Job(name, one, loaded, moment, asked, device)
            for name, by_set in bound.items()
            for loaded, moments in zip(sets, by_set, strict=True)
            for moment, one in moments
        ]
        suspects = Suspects(data, task, asked.home / "queries", group, asked.batch_size)
        domains = _domains(jobs, suspects, asked) if recognisers and asked.drawn_images else {}
        every = [*jobs, *(one.job for one in domains.values())]
        work = Work(every, group.rank, group.world)
        judges, seen = load_judges(
            recognisers, panel_files, data, device, asked.batch_size, asked.gallery_images, asked.cache
        )
        # What may fail at the people, the labels or the weights of a metric does so before the attacks.
        boot = IdentityBootstrap(rows["identity"], asked.bootstrap, asked.seed)
        panel = Panel(judges, images, rows["identity"], device, asked.batch_size, asked.cache)
        yard = yardstick(
            task, data, rows["attributes"], lambda: panel.batched(task.cloud, sets[0].queries[0])
        )
        notes += filter(None, [yard.note])
        judge = Judge(panel, boot, rows, names, yard, asked.lpips)
        read = [
            {
                name: _read(by_set[place][0][1], loaded, judge, suspects, asked)
                for name, by_set in reading.items()
            }
            for place, loaded in enumerate(sets)
        ]
        messages = [
            read_messages(loaded, suspects.gallery(loaded, asked.gallery_images), rows)
            if loaded.about.name == Certified.stage_name and loaded.target and loaded.target.defense
            else None
            for loaded in sets
        ]
        if asked.lpips:
            lpips(images[:1], images[:1])
        expected = work.forecast()
        if first:
            print(expected, flush=True)
        work.run()
        group.wait()
        if not first:
            return folder / "report.html"  # the first process writes it

        described = {one.name: _described(bound[one.name][0][0][1], one) for one in attacks}
        looks, gallery = _look(jobs, described, judge, domains)
        judged = [judge.join(*one, described) for one in zip(sets, looks, read, messages, strict=True)]
        judged = [
            one if sent is None else _certified(one, sent, readings, judged[0], judge, groups)
            for one, sent, readings in zip(judged, messages, read, strict=True)
        ]
        results, areas = compared(judged)
        originals = boot.mean(panel.originals.hits.any(dim=0))
        report = completed(
            Report(
                created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
                version=__version__,
                origin=origin(),
                data=judge.data(data),
                oracles=judge.oracles(),
                panel={"accuracy_on_originals": originals.estimate()},
                attacks=described,
                rulers={name: by_set[0][0][1].describe() for name, by_set in reading.items()},
                areas=areas,
                groups={name: by_group(name, judged, judge) for name in groups},
                defenses=results,
                settings=settings,
                notes=list(dict.fromkeys([*notes, *seen, *remarks, *more, *others])),
            )
        )
        page = write_report(folder, report, gallery)
        to_tensorboard(folder, report, gallery)
        remove_unused(asked.cache, panel.files | {job.folder for job in every})
        print(f"\n{text(report)}\n\nreport: {page}", flush=True)
        if broken := list(filter(None, map(beyond, report.defenses))):
            raise UserError(" ".join(broken))
        return page


def _certified(
    one: Judged,
    messages: Messages,
    readings: dict[str, Reading],
    plain: Judged,
    judge: Judge,
    groups: Sequence[str],
) -> Judged:
    """With the certificate beside what everybody gets."""
    people = judge.panel.people
    named = {
        f"{attack} by {name}": people[found]
        for attack, verdict in one.verdicts.items()
        for name, found in zip(judge.panel.judges, verdict.named, strict=True)
    } | {name: people[own.named] for name, own in readings.items() if own.named is not None}
    scores = (one.inference.scores, plain.inference.scores, judge.yardstick)
    made = certify(messages, judge.rows, judge.attributes, judge.boot, *scores, named, groups)
    return replace(one, result=replace(one.result, certificate=made))


def _read(reader: Reader, loaded: Loaded, judge: Judge, suspects: Suspects, asked: Options) -> Reading:
    part = "gallery" if reader.suspects else "strangers" if reader.strangers else None
    gallery = None if part is None else suspects.gallery(loaded, asked.gallery_images, part)
    return judge.reader(reader, loaded, gallery)


def _domains(jobs: Sequence[Job], suspects: Suspects, asked: Options) -> dict[int, Domain]:
    """By the place of every job at its end: what draws galleries in its domain."""
    found = {}
    for number, job in enumerate(jobs):
        if job.moment is None:
            gallery = suspects.gallery(job.loaded, asked.drawn_images)
            held_out = suspects.gallery(job.loaded, asked.drawn_images + 1, "held_out")
            drawn = replace(job.loaded, queries=drawn_features(gallery, held_out))
            found[number] = Domain(gallery, held_out, replace(job, loaded=drawn))
    return found


def _look(
    jobs: Sequence[Job], described: Mapping[str, Settings], judge: Judge, domains: Mapping[int, Domain]
) -> tuple[list[list[Look]], Gallery]:
    """What the panel sees in all reconstructions, by set of features; and pictures of a few people."""
    shown = people_shown(judge.rows["identity"], judge.rows["index"])
    looked: dict[str, list[Look]] = {job.loaded.about.label: [] for job in jobs}
    gallery = Gallery(judge.rows["image"][shown], [])
    for number, job in enumerate(jobs):
        pictures, about = job.pictures(), job.loaded.about
        look, known = judge.look(job, pictures, domains.get(number)), described[job.name]
        own = {**known, **job.attack.describe(), "class": known["class"], "files": job.attack.checkpoints}
        if job.moment is None and own != known:
            result = replace(look.result, checkpoints=own["checkpoints"], files=own["files"])
            look = look._replace(result=result)
        looked[about.label].append(look)
        named = look.judgement.hits.any(dim=0)[shown].tolist()
        columns = gallery.columns if job.moment is None else gallery.rounds
        columns.append(Column(job.name, about.title, pictures[shown], named, job.moment))
    return list(looked.values()), gallery


def _described(bound: Attack, configured: Attack) -> Settings:
    """How a report describes an attack: as it is bound to unprotected features, under its own class."""
    return {
        **bound.describe(),
        "class": type(configured).__name__,
        "adaptive": configured.adaptive,
        "files": dict(bound.checkpoints),
    }
