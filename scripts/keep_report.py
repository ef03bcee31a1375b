"""Keeps what the tables need of an audit's report, or a certificate: python scripts/keep_report.py FILE NAME.

Writes docs/reports/NAME.json, without pictures, single attributes, groups and paths of the machine; from it
`scripts/figures.py` makes the tables. What made it stays: command, commit and date as far as the report says
them, settings of attacks and readers and, from the folder that the audit ran in, the epochs of their nets.
"""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from crafter_pl.audit.record import from_json, to_json
from crafter_pl.audit.schema import AttackResult, Report, Settings
from crafter_pl.files import read_json

ROOT = Path(__file__).parent.parent
KEPT = ("eval_acc", "panel_any", "identity_similarity")  # figures of an attack
PLACE = re.compile(r"(?<![\w./~:-])(?:~|[A-Za-z]:)?[/\\][^\s'\",\]]*[/\\]")  # an absolute path but its end
ASKED = ("budget", "seed", "bootstrap", "gallery_images", "drawn_images", "split", "features", "task_sha256")


def attack(one: AttackResult) -> AttackResult:
    """The figures that are kept, of an earlier round the first alone; with how far it had adapted."""
    ended = one.round is None
    figures = {key: one.figures[key] for key in KEPT[: None if ended else 1] if key in one.figures}
    oracles = {"eval_acc": one.by_oracle["eval_acc"]} if ended else {}
    return AttackResult(
        figures=figures,
        by_oracle=oracles,
        learnt=one.learnt,
        round=one.round,
        pairs=one.pairs,
        epochs=one.epochs,
    )


def described(own: Settings) -> Settings:
    """An attack or a reader: its class, version and settings, and how long its nets were trained."""
    kept = {key: own[key] for key in ("class", "version", "settings", "adaptive") if key in own}
    epochs = {}
    for stage, file in own.get("files", {}).items():
        summary = Path(file).parents[1] / "summary.json" if file else Path()
        run = read_json(summary, "train it again") if summary.is_file() else {}
        if run.get("best_sha256") == own["checkpoints"][stage]:
            epochs[stage] = run["epochs"]
    return {**kept, **({"epochs": epochs} if epochs else {})}


def unplaced(value: Any) -> Any:
    """Without the folders of a machine: of an absolute path its last part is left."""
    if isinstance(value, dict):
        return {key: unplaced(one) for key, one in value.items()}
    if isinstance(value, list):
        return [unplaced(one) for one in value]
    return PLACE.sub("", value) if isinstance(value, str) else value


def trimmed(report: Report) -> Report:
    """A report with what the tables need, which is still a report."""
    entries = [
        replace(
            entry,
            utility=replace(entry.utility, per_attribute={}),
            utility_training=entry.utility_training and replace(entry.utility_training, per_attribute={}),
            attacks={name: attack(one) for name, one in entry.attacks.items()},
            history={name: [attack(one) for one in own] for name, own in entry.history.items()},
            rulers={name: replace(one, checkpoints=None, train=None) for name, one in entry.rulers.items()},
            certificate=entry.certificate and replace(entry.certificate, groups={}, rare=[]),
            store=None,
        )
        for entry in report.defenses
    ]
    return replace(
        report,
        defenses=entries,
        oracles=[replace(one, settings={}, checkpoint="") for one in report.oracles],
        attacks={name: {"adaptive": False, **described(one)} for name, one in report.attacks.items()},
        settings={key: report.settings.get(key) for key in ASKED},
        rulers={name: described(one) for name, one in report.rulers.items()},
        groups={},
        notes=[],
        warnings=[],
        curves=[],
        verdict="",
    )


def rounded(value: Any) -> Any:
    """Six digits behind the point: so many more than a table shows that it rounds alike."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 6) if isinstance(value, float) and abs(value) > 1e-3 else value


def main() -> None:
    """Does what it says."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    plain, name = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    if "schema" in plain:
        write(name, unplaced(to_json(trimmed(from_json(Report, plain)))))
    else:
        for part, rows in certificate(plain).items():
            write(f"{name}-{part}", rows)


def certificate(plain: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Of what `certify` wrote: several pictures of a person, and whom the message names by group."""
    (own,) = plain.values()
    return {
        "pictures": [{"pictures": int(count), **one} for count, one in own["albums"].items()],
        "groups": [{"group": group, **one} for group, one in own["groups"].items()],
    }


def write(name: str, content: Any) -> None:
    """A file of docs/reports."""
    text = json.dumps(rounded(content), indent=1, ensure_ascii=False)
    for _ in range(2):  # an estimate on one line, its interval in it
        text = re.sub(r"[\[{][^\[\]{}]*[\]}]|\{[^{}]*\}", lambda own: re.sub(r"\s+", " ", own[0]), text)
    (ROOT / "docs" / "reports" / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
