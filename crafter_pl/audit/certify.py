"""The verb `certify`: bounds and messages of certified feature stores, without an attack."""

from pathlib import Path

import torch
from torch import Tensor

from crafter_pl.audit import find
from crafter_pl.audit.certificates import CertificateResult
from crafter_pl.audit.certification import certify, read_messages
from crafter_pl.audit.features import Loaded, encode, load_features
from crafter_pl.audit.groups import known_groups, known_names
from crafter_pl.audit.load import Published, load_task
from crafter_pl.audit.options import Options
from crafter_pl.audit.process_group import ProcessGroup
from crafter_pl.audit.record import read_report, to_json
from crafter_pl.audit.schema import DefenseResult
from crafter_pl.audit.show import proof
from crafter_pl.audit.show.sentences import beyond, percent
from crafter_pl.audit.suspects import Suspects
from crafter_pl.audit.yardstick import yardstick
from crafter_pl.commands import Commands, listed, settings_of
from crafter_pl.errors import UserError
from crafter_pl.files import to_json as json_text
from crafter_pl.files import write_file
from crafter_pl.metrics import IdentityBootstrap


def certify_stores(asked: Options) -> Path:
    """Say what certified features can give away at most, and what their messages do on these faces.

    The message attackers have other pictures of the people. What attacks and judges of earlier audits of the
    same stores got is listed beside it. Of the options those of attacks and judges do not count.

    Args:
        asked: which stores, and of which faces.

    Returns:
        Path of certificate.md; certificate.json and certificate.png lie beside it.

    Raises:
        UserError: a store is not of a certified defence, or that is not at hand; or an audit's attack names
            significantly more than the messages can tell.
    """
    data, home = asked.data, asked.home
    commands, folder = Commands(home, settings_of(data)), Path(asked.out or home / "certificate")
    stores, task_path = find.find_stores(home, asked.features), find.find_task(commands, asked.task_ckpt)
    defenses = find.find_checkpoints(home, "defenses", asked.defenses)
    group = ProcessGroup(asked.device, 1, 1)
    data.setup("test")
    rows, names = data.rows(find.SPLIT), known_names(data)
    task, _ = load_task(task_path, data)
    task.to(group.device)
    published = Published(home, group.device, defenses)
    sets, notes = load_features(stores, published, task, task_path, data.split_hash, rows["index"])
    groups, missing = known_groups(listed(asked.groups), names)
    suspects = Suspects(data, task, home / "queries", group, asked.batch_size)
    boot = IdentityBootstrap(rows["identity"], asked.bootstrap, asked.seed)
    plain = _answers(sets[0], encode(task, rows["image"], group.device, asked.batch_size)[0], asked, group)
    yard = yardstick(task, data, rows["attributes"], lambda: plain)
    found: dict[str, CertificateResult] = {}
    for loaded in sets[1:]:
        messages = read_messages(loaded, suspects.gallery(loaded, asked.gallery_images), rows)
        if messages is None:
            why = f" ({notes[0]})" if notes else ""
            raise UserError(
                f"{loaded.about.store} is not of a certified defence that is at hand{why}: nothing is proved "
                "of its features; audit them instead"
            )
        scores = _answers(loaded, loaded.queries[0], asked, group)
        found[loaded.about.label] = certify(messages, rows, names, boot, scores, plain, yard, {}, groups)
    named, people = list(found.items()), len(rows["identity"].unique())
    earlier = [
        line
        for loaded in sets[1:]
        for line in _audited(home, str(loaded.about.store), found[loaded.about.label])
    ]
    table, more = proof.certificates(named, people), proof.albums(named)
    lines = [*proof.sentences(named, people), *filter(None, [yard.note]), *earlier, *missing]
    text = "\n\n".join(["# Certificate", table.markdown(), *lines, more.markdown()]) + "\n"
    write_file(folder / "certificate.json", json_text(to_json(found)))
    write_file(folder / "certificate.png", proof.plot(named, people))
    page = write_file(folder / "certificate.md", text)
    print("\n".join([table.text(), "", *lines, "", f"certificate: {page}"]), flush=True)
    return page


@torch.no_grad()
def _answers(loaded: Loaded, features: Tensor, asked: Options, group: ProcessGroup) -> Tensor:
    parts = features.split(asked.batch_size)
    return torch.cat([loaded.cloud(part.to(group.device)).float().cpu() for part in parts])


def _audited(home: Path, store: str, now: CertificateResult) -> list[str]:
    """A line for every audit of this experiment that has attacked features with this certificate.

    Raises:
        UserError: somebody named significantly more than the messages can tell.
    """
    lines = []
    for file in sorted(home.glob("*/report.json")):
        try:
            entries: list[DefenseResult] = read_report(file.parent).defenses
        except UserError:
            continue
        for entry in entries:
            known = entry.certificate
            if known is None or Path(str(entry.store)).resolve() != Path(store).resolve():
                continue
            if (known.bits, known.ceiling) != (now.bits, now.ceiling):  # the store was made anew since
                continue
            if broken := beyond(entry):
                raise UserError(f"{file.parent}: {broken}")
            worst, listed_too = entry.worst_case.eval_acc, entry.worst_case_gallery
            lines.append(
                f"{file.parent}: {len(entry.attacks)} attacks and all judges together name "
                f"{percent(worst.value)} ({percent(entry.worst_case.chance)} by chance)"
                + (f", with a gallery {percent(listed_too.eval_acc.value)}" if listed_too else "")
                + f" from {entry.title}."
            )
    return lines
