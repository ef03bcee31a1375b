"""The tables of README.md and docs/results.md, from the audits' reports in docs/reports.

    python scripts/figures.py           write the tables
    python scripts/figures.py --check   exit code 1 where a page and its reports differ

A table stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`; `filled` has the names. What no
report has is shown as "-".
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from made import kept, made_by, who

from crafter_pl.audit.record import from_json
from crafter_pl.audit.schema import DefenseResult, Report
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import Table, number, rate
from crafter_pl.metrics import Estimate

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/results.md")
PLACE = "docs/reports"
FEATURES: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {  # rows: the defence, and which setting
    "unprotected": ("none", lambda own: True),
    "Crafter, β 0.25": ("crafter", lambda own: own.get("beta") == 0.25 and own.get("task_weight") != 0),
    "adversarial learning, λ 0.5": ("adversarial_learning", lambda own: own.get("lambda_") == 0.5),
    "`answers`, β 0": ("answers", lambda own: own.get("beta") == 0),
    "certified, 5 bits": ("certified", lambda own: own.get("bits") == 5 and own.get("epsilon") is None),
}
Found = tuple[str, Report, DefenseResult]  # a report's name, the report, one set of features of it


class Figures:
    """All reports of the repository in a folder, and the tables that are made of them."""

    def __init__(self, root: Path) -> None:
        plain = {path.stem: json.loads(path.read_text()) for path in sorted((root / PLACE).glob("*.json"))}
        self.reports = {name: from_json(Report, own) for name, own in plain.items() if isinstance(own, dict)}
        self.curves = {name: own for name, own in plain.items() if isinstance(own, list)}

    def entries(self, data: str) -> Iterator[Found]:
        """Every set of features of the reports about some data."""
        for name, report in self.reports.items():
            if report.data.source == data:
                yield from ((name, report, entry) for entry in report.defenses)

    def measured(self, title: str, data: str = "celeba") -> Found | None:
        """The features of a row, from the report that attacks them hardest."""
        name, fits = FEATURES[title]
        found = [one for one in self.entries(data) if one[2].name == name and fits(one[2].settings)]
        return max(found, key=hardness, default=None)

    def sources(self, found: list[Found], up: str = "") -> str:
        """Which reports a table is of, with their attacks."""
        used = {name: report for name, report, _ in found}
        parts = [
            f"[{name}]({up}reports/{name}.json) by {', '.join(f'`{one}`' for one in report.attacks)}"
            for name, report in used.items()
        ]
        return f"*From {'; '.join(parts)}.*" if parts else "*No report yet.*"

    def first(self) -> str:
        """The README's: five rows, five columns."""
        rows, used = [], []
        for title in FEATURES:
            if (one := self.measured(title)) is None:
                rows.append([title, *["-"] * 4])
                continue
            used.append(one)
            name = title + " (!)" * one[2].flagged
            rows.append([name, *figures(one), bound(one[2], one[1].data.identities)])
        head = ["features", "utility ↑", "named, not adapting ↓", "named, adapting ↓", "bound ↓"]
        return f"{Table(head, rows).markdown()}\n\n{self.sources(used, 'docs/')}"

    def crafter(self) -> str:
        """Does it hold: every setting of Crafter, and the features unprotected, on all data."""
        found = [
            one
            for data in ("celeba", "synthetic")
            for one in self.entries(data)
            if one[2].name in ("none", "crafter") and any(own.name == "crafter" for own in one[1].defenses)
        ]
        rows = []
        for name, report, entry in found:
            sides: dict[bool, list[Estimate]] = {False: [], True: []}
            for key, own in entry.attacks.items():
                sides[report.attacks[key]["adaptive"]].append(own.eval_acc)
            pairs = max((own.pairs or 0 for one in entry.history.values() for own in one), default="-")
            alone = [strongest(sides[False]), strongest(sides[True]), pairs]
            worst = f"{rate(entry.worst_case.eval_acc)}, by chance {percent(entry.worst_case.chance)}"
            rows.append([name, short(entry), number(entry.utility.kept), *alone, worst])
        head = ["report", "features", "mean AUC ↑", "strongest, not adapting ↓", "strongest, adapting ↓"]
        table = Table([*head, "pairs seen", "any attack, any judge ↓"], rows)
        return f"{table.markdown()}\n\n{self.sources(found)}"

    def holds(self) -> str:
        """Every set of features on CelebA once: attacks that draw, readers with a gallery, what is proved."""
        found: dict[str, Found] = {}
        for one in sorted(self.entries("celeba"), key=hardness):
            found[short(one[2])] = one
        rows = []
        for label, one in found.items():
            gallery, people = one[2].worst_case_gallery, one[1].data.identities
            named = "-" if gallery is None else rate(gallery.eval_acc)
            limits = (bound(one[2], people), bound(one[2], 10_000))
            rows.append([label, *figures(one), named, *limits])
        head = ["features", "utility ↑", "not adapting ↓", "adapting ↓", "with a gallery ↓"]
        table = Table([*head, "bound, 1 of 100", "1 of 10,000"], rows)
        return f"{table.markdown()}\n\n{self.sources(list(found.values()))}"

    def bits(self, name: str) -> str:
        """A curve of `benchmarks/certificate_curve.py`: message by message."""
        rows = [
            [
                one["message"],
                "-" if "bits" not in one else f"{one['bits']:.2f}",
                number(Estimate(**one["auc"])),
                rate(Estimate(**one["named"])),
                percent(one["ceiling"]) if "ceiling" in one else "-",
                percent(one["bound"]) if one.get("bound", 1) < 1 else "none",
            ]
            for one in self.curves[name]
        ]
        head = ["message", "bits", "mean AUC on the needs ↑", "named by the message ↓", "ceiling", "bound"]
        return f"{Table(head, rows).markdown()}\n\n*From [{name}]({{up}}reports/{name}.json).*"

    def cost(self) -> str:
        """Seconds and bytes a face."""
        rows = {}
        for name, report, entry in (one for data in ("celeba", "synthetic") for one in self.entries(data)):
            seconds, memory = entry.cost.get("seconds_per_image"), entry.cost.get("peak_memory_mb")
            if entry.plain or seconds is None:
                continue
            size = entry.cost.get("bytes_per_image")
            more = ["-" if own is None else f"{own:,.0f}" for own in (memory, size)]
            rows[seconds] = [name, short(entry), report.data.image_size, f"{seconds:.3g}", *more]
        head = ["report", "features", "pixels", "seconds a face", "peak memory, MB", "bytes a face"]
        return Table(head, list(rows.values())).markdown()

    def judges(self) -> str:
        """Each judge of each data: what it names of originals and of unprotected reconstructions."""
        rows = {}
        for name, report in self.reports.items():
            for judge in report.oracles:
                drawn = [own.by_oracle["eval_acc"][judge.name] for own in report.defenses[0].attacks.values()]
                tar = "-" if judge.tar_on_originals is None else rate(judge.tar_on_originals)
                title = f"{report.data.source}, {judge.name.replace('_', ' ')}"
                kind = "an oracle trained here" if judge.seen else "a gallery of their other pictures"
                rows[title] = [title, name, kind, rate(judge.accuracy), tar, strongest(drawn)]
        head = ["data, judge", "report", "knows people by", "names originals", "TAR at FAR 1 %"]
        return Table([*head, "names what the best attack draws, unprotected"], list(rows.values())).markdown()

    def luck(self) -> str:
        """The same features of several trainings."""
        rows: list[list[Any]] = []
        for title in FEATURES:
            name, fits = FEATURES[title]
            own = [one for one in self.entries("celeba") if one[2].name == name and fits(one[2].settings)]
            distinct = {utility(entry)[0].value: (key, report, entry) for key, report, entry in own}
            if len(distinct) > 1:
                rows += [
                    [title, key, *figures((key, report, entry))[:2]]
                    for key, report, entry in distinct.values()
                ]
        head = ["features", "report", "utility ↑", "named, not adapting ↓"]
        return Table(head, rows).markdown() if rows else "*One training of each so far.*"


def short(entry: DefenseResult) -> str:
    """How a row is called: a certified defence by its bits; one that is false security is marked."""
    if entry.certificate is not None:
        return f"certified, {entry.settings['bits']} bits"
    return entry.title.replace("_", " ") + " (!)" * entry.flagged


def utility(entry: DefenseResult) -> tuple[Estimate, str]:
    """Mean AUC; a certified defence's over what the service needs, with the same unprotected."""
    if (known := entry.certificate) is None:
        return entry.utility.kept, ""
    clean = known.needs_kept_unprotected.value
    return known.needs_kept, f" on {len(known.needs)} attributes, unprotected {clean:.3f}"


def hardness(one: Found) -> tuple[bool, int, int, str]:
    """Last come reports with attacks that adapt, with more attacks, more readers, the newest."""
    return adapted(one) is not None, len(one[1].attacks), len(one[2].rulers), one[1].created


def adapted(one: Found) -> Estimate | None:
    """Named by any attack, those that adapt among them; None where there were none."""
    _, report, entry = one
    knowing = any(report.attacks[name]["adaptive"] and own.learnt for name, own in entry.attacks.items())
    return entry.worst_case.eval_acc if knowing else None


def figures(one: Found) -> list[Any]:
    """Utility, named without and with attacks that adapt."""
    entry, all_of_them = one[2], adapted(one)
    basic = entry.worst_case_basic or entry.worst_case
    auc, note = utility(entry)
    return [f"{number(auc)}{note}", rate(basic.eval_acc), "-" if all_of_them is None else rate(all_of_them)]


def strongest(own: list[Estimate]) -> Any:
    """The largest of some rates."""
    return rate(max(own, key=lambda one: one.value)) if own else "-"


def bound(entry: DefenseResult, people: int) -> str:
    """What is proved of naming one of so many."""
    known = 1.0 if entry.certificate is None else entry.certificate.bound(people)
    return f"{100 * known:.3g} %" if known < 1 else "none"


def filled(text: str, made: Figures, up: str) -> str:
    """A page with its tables made anew; `up` leads from it to docs/."""
    tables: dict[str, Callable[[], str]] = {
        one: getattr(made, one) for one in ("first", "crafter", "holds", "cost", "judges", "luck")
    }
    tables["who"] = lambda: who({short(one[2]): one for one in sorted(made.entries("celeba"), key=hardness)})
    tables["kept"] = lambda: kept(made.reports)
    tables |= {name: lambda name=name: made.bits(name).replace("{up}", up) for name in made.curves}
    pattern = r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end of figures -->)"

    def block(found: re.Match[str]) -> str:
        table = tables[found[2]]()
        below = "" if up or found[2] == "kept" else f"\n\n{made_by(table, made.reports)}"
        return f"{found[1]}\n{table}{below}\n\n{found[3]}"

    return re.sub(pattern, block, text, flags=re.DOTALL)


def outdated(root: Path, check: bool) -> list[str]:
    """The pages that differ from their reports; written anew unless only checked."""
    made, differ = Figures(root), []
    for name in PAGES:
        page = root / name
        if (new := filled(old := page.read_text(), made, "" if name.startswith("docs/") else "docs/")) != old:
            differ.append(name)
            if not check:
                page.write_text(new)
    return differ


if __name__ == "__main__":
    checking = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not checking:
        sys.exit(__doc__)
    pages = outdated(ROOT, checking)
    for page in pages:
        print(f"{page}: {'differs from its reports' if checking else 'written'}")
    sys.exit(checking and bool(pages))
