"""How the kept reports were made, and who got what: tables and lines for `figures.py`."""

import re
from typing import Any

from crafter_pl.audit.schema import DefenseResult, Report
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import Table, rate


def who(found: dict[str, tuple[str, Report, DefenseResult]]) -> str:
    """Each attack and reader alone, and what its like names of the same report's unprotected features."""
    rows: list[list[Any]] = []
    for label, (name, report, entry) in found.items():
        plain = report.defenses[0]
        if entry.plain:
            continue
        for key, attack in entry.attacks.items():
            before = percent(plain.attacks[key].eval_acc.value)
            rows.append([label, name, f"`{key}`{learnt(entry, key)}", rate(attack.eval_acc), before])
        rows += [
            [label, name, f"`{key}` (gallery)", rate(own.top1), percent(unmoved.value)]
            for key, own in entry.rulers.items()
            if own.suspects and own.top1 and (unmoved := plain.rulers[key].top1)
        ]
        if entry.certificate is not None:
            best = max(entry.certificate.attackers.values(), key=lambda one: one.value)
            readers = f"the best of {len(entry.certificate.attackers)} who read the message (gallery)"
            rows.append([label, name, readers, rate(best), "-"])
        if (every := entry.worst_case_gallery) and (clean := plain.worst_case_gallery):
            readers = f"any with a gallery, by chance {percent(every.chance)}"
            rows.append([label, name, readers, rate(every.eval_acc), percent(clean.eval_acc.value)])
    head = ["features", "report", "who", "names ↓", "unprotected, the same"]
    return Table(head, rows).markdown()


def kept(reports: dict[str, Report]) -> str:
    """How each report was made."""
    rows = []
    for name, report in reports.items():
        attacks = {
            key: trained(own) + "".join(dict.fromkeys(learnt(one, key) for one in report.defenses))
            for key, own in report.attacks.items()
        }
        rows.append(
            [
                name,
                made_when(report),
                "; ".join(f"`{key}`{own}" for key, own in attacks.items()),
                ", ".join(f"`{key}`" for key in report.defenses[0].rulers),
                ", ".join(one.name for one in report.oracles),
                report.settings.get("gallery_images"),
                report.settings.get("bootstrap"),
            ]
        )
    head = ["report", "made", "attacks", "readers", "judges", "gallery, pictures of each", "resamples"]
    return Table(head, rows).markdown()


def learnt(entry: DefenseResult, attack: str) -> str:
    """From how many pairs an attack has learnt of these features, and how long."""
    last = (entry.history.get(attack) or [None])[-1]
    return f", {last.pairs:,} pairs, {last.epochs} epochs" if last and last.pairs else ""


def trained(attack: dict[str, Any]) -> str:
    """How long an attack searches, or its own net was trained before it met a defence."""
    steps, epochs = attack.get("settings", {}).get("steps"), attack.get("epochs", {})
    if attack["adaptive"]:
        return ""
    return f", {steps} steps" if steps else "".join(f", {own} epochs" for own in epochs.values())


def made_when(report: Report) -> str:
    """The day, and the commit where the report says it."""
    return ", ".join([report.created[:10], *filter(None, [report.origin.get("commit")])])


def made_by(table: str, reports: dict[str, Report]) -> str:
    """The line below a table: which reports are in it, of which day, and where it stands how."""
    parts = [
        f"{name}, {made_when(report)}"
        for name, report in reports.items()
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", table)
    ]
    who = f"`audit` ({'; '.join(parts)})" if parts else "`benchmarks/certificate_curve.py`"
    return f"*Made by {who}: [how](results-alone.md#how-they-were-made).*"
