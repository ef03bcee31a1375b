"""Writes an audit's results: the page, report.json, table.csv, groups.md and the plots.

A page is one file with no script that fetches nothing, to be read on a phone as well as on a desktop. Every
file is written beside its place and moved there, so that a reader never meets half a report.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from safetensors import SafetensorError

from crafter_pl.audit.compare import BUDGET
from crafter_pl.audit.record import read_report, to_json
from crafter_pl.audit.schema import Report
from crafter_pl.audit.show import gallery as kept
from crafter_pl.audit.show import plots, proof, sentences, sided, table, tables
from crafter_pl.audit.show.gallery import Column, Gallery
from crafter_pl.audit.utility import NOUNS
from crafter_pl.errors import UserError
from crafter_pl.files import to_json as json_text
from crafter_pl.files import write_file

STRIP = 6  # protected sets that the strip at the top has
CURVES = ("eval_acc", "panel_any", "identity_similarity", "ssim")  # over rounds and pairs, in TensorBoard


def render(template: str, **content: Any) -> str:  # noqa: ANN401 (what the template names)
    """A page by a template of this folder; names from data and settings are escaped."""
    environment = Environment(
        loader=PackageLoader("crafter_pl.audit.show"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "inline": _inline,
        "percent": sentences.percent,
        "groups": _by_attack,
        "face": lambda image: _inline(kept.png(image)),
    }
    return environment.get_template(f"{template}.html.j2").render(content).replace(" %", "&nbsp;%")


def _inline(data: bytes) -> str:
    """A PNG file as the source of an `<img>`."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _by_attack(columns: Sequence[Column]) -> list[tuple[str, list[Column]]]:
    """The columns of a grid, those of one attack together."""
    return [(attack, list(own)) for attack, own in groupby(columns, key=lambda column: column.attack)]


def report_page(report: Report, gallery: Gallery, pictures: Mapping[str, bytes]) -> str:
    """Write the whole page of an audit.

    Args:
        report: with its verdict.
        gallery: pictures of a few people.
        pictures: PNG files by name: `tradeoff`, and `pareto`, `certificate`, `adaptation_round` and
            `adaptation_pairs` if there are.
    """
    plain = to_json(report)
    settings = {
        "Settings of the audit": {
            key: plain[key] for key in ("origin", "settings", "data", "attacks", "rulers", "oracles")
        },
        "Settings of the defences": {entry.title: entry.settings for entry in report.defenses},
    }
    return render(
        "report",
        report=report,
        gallery=gallery,
        striped=_strip(report, gallery),
        pictures=pictures,
        tables=tables,
        sided=sided,
        proof=proof,
        proved=proof.proved(report.defenses),
        rate=table.rate,
        number=table.number,
        rounds=gallery.adapting(people=4),  # of every round of every defence; more would hide the rest
        flags={sentences.false_security(entry) for entry in report.defenses},
        weaker=sentences.WEAKER,
        utility=report.defenses[0].utility,
        noun=NOUNS[report.defenses[0].utility.key],
        group_sentences=list(sentences.group_sentences(report)),
        groups_note=sentences.GROUPS,
        budget=f"{BUDGET:g}",
        settings={name: json.dumps(content, indent=1) for name, content in settings.items()},
    )


def _strip(report: Report, gallery: Gallery) -> list[Column]:
    """Of the unprotected features and each protected set the column of the attack that names most faces.

    Of more than `STRIP` protected sets that of the verdict alone.
    """
    none, *protected = report.defenses
    if len(protected) > STRIP:
        protected = [one for one in [sentences.chosen(report)] if one is not None]
    found = []
    for entry in (none, *protected):
        own = [column for column in gallery.columns if column.features == entry.title]
        if own:
            found.append(max(own, key=lambda column: entry.attacks[column.attack].eval_acc.value))
    return found


def write_report(out: Path, report: Report, gallery: Gallery) -> Path:
    """Write all files of a report to `out` and return the path of report.html, which is written last.

    Args:
        out: folder, made if missing.
        report: of the audit, completed.
        gallery: pictures for the grid.

    Raises:
        ValueError: on a number that is not finite.
    """
    text, found = json_text(to_json(report)), proof.proved(report.defenses)
    drawn = {
        "tradeoff": plots.tradeoff(report),
        **{f"adaptation_{over}": plots.adaptation(report, over) for over in plots.AXES},
        "pareto": plots.defences(plots.points_of(report), plots.over(report)) if report.areas else None,
        "certificate": proof.plot(found, report.data.identities) if found else None,
    }
    pictures = {name: picture for name, picture in drawn.items() if picture is not None}
    files: dict[str, bytes | str] = {
        kept.FILE: gallery.to_bytes(),
        **{f"{name}.png": picture for name, picture in pictures.items()},
        "reconstructions.png": plots.reconstructions(gallery),
        "table.csv": tables.records(report).csv(),
    }
    if report.groups:
        files["groups.md"] = sided.page(report)
    else:
        (out / "groups.md").unlink(missing_ok=True)  # of an earlier audit by groups
    files |= {"report.json": text, "report.html": report_page(report, gallery, pictures)}
    for name, data in files.items():
        write_file(out / name, data)
    return out / "report.html"


def rebuild(folder: str) -> Path:
    """Write a report's page, table and plots again from its report.json and the pictures kept beside it.

    Args:
        folder: where an audit wrote its report.

    Returns:
        Path of report.html.

    Raises:
        UserError: if the folder has no complete report of this version.
    """
    out = Path(folder)
    report, file = read_report(out), out / kept.FILE
    if not file.is_file():
        raise UserError(f"no report in {out}: {file.name} is missing; run the audit with --out {out} again")
    try:
        return write_report(out, sentences.completed(report), kept.read_gallery(file))
    except (SafetensorError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(
            f"The report in {out} is damaged ({error!r}). Run the audit again with --overwrite true."
        ) from error


def to_tensorboard(folder: Path, report: Report, gallery: Gallery) -> None:
    """Scalars and the grid, in place of those of an earlier audit in the same folder."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(log_dir=str(folder)) as writer:
        for entry in report.defenses:
            writer.add_scalar(f"{entry.utility.key}/{entry.label}", entry.kept)
            writer.add_scalar(f"worst_case/{entry.label}", entry.rate)
            for name, result in entry.attacks.items():
                for key in ("eval_acc", "identity_similarity", "ssim"):
                    writer.add_scalar(f"{name}_{key}/{entry.label}", result.figures[key].value)
            for name, rounds in entry.history.items():
                for over, key, one in product(plots.AXES, CURVES, rounds):
                    tag, figure = f"audit/{key}_by_{over}/{name}, {entry.label}", one.figures[key]
                    for end, value in (("", figure.value), (", low", figure.low), (", high", figure.high)):
                        writer.add_scalar(tag + end, value, getattr(one, over))
        for column in gallery.rounds:
            assert column.moment is not None
            grid = plots.mosaic(Gallery(gallery.originals, [column]))
            tag = f"audit/reconstructions_by_round/{column.attack}, {column.features}"
            writer.add_image(tag, grid, column.moment["round"], dataformats="HWC")
        writer.add_image("reconstructions", plots.mosaic(gallery), dataformats="HWC")
        writer.add_text("verdict", report.verdict)
        writer.add_text("settings", f"```\n{json.dumps(report.settings, indent=1)}\n```")
