"""The tables of README.md and of some pages in docs, from the audits' reports in docs/reports.

    python scripts/figures.py           write the tables
    python scripts/figures.py --check   exit code 1 where a page and its reports differ

A table stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`; `filled` has the names. What no
report has is shown as "-".
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figure_cells import (
    FEATURES,
    Found,
    bound,
    chanced,
    figures,
    listed,
    pictured,
    short,
    strongest,
    utility,
)
from figure_proof import Proof
from made import kept, made_by, who

from crafter_pl.audit.show.table import Table, number, rate
from crafter_pl.metrics import Estimate

ROOT = Path(__file__).parent.parent
PAGES = (
    "README.md",
    *(f"docs/{one}.md" for one in ("results", "results-alone", "for-privacy", "model-card", "own-model")),
)


class Figures(Proof):
    """All reports of the repository in a folder, and the tables that are made of them."""

    def sources(self, found: list[Found], up: str = "") -> str:
        """Which reports a table is of, those of the same attacks together."""
        used: dict[str, list[str]] = {}
        for name, report in {name: report for name, report, _ in found}.items():
            used.setdefault(listed(report.attacks), []).append(f"[{name}]({up}reports/{name}.json)")
        parts = [f"{', '.join(names)} by {attacks}" for attacks, names in used.items()]
        return f"*From {'; '.join(parts)}.*" if parts else "*No report yet.*"

    def first(self) -> str:
        """The README's: five rows, five columns."""
        rows, used = [], []
        for title in FEATURES:
            if (one := self.measured(title)) is None:
                rows.append([title, *["-"] * 4])
                continue
            used.append(one)
            auc, note = utility(one[2])
            limit = bound(one[2], one[1].data.identities)
            name, gallery = title + " (!)" * one[2].flagged, chanced(one[2].worst_case_gallery)
            rows.append([name, f"{number(auc)}{note}", pictured(one), gallery, limit])
        head = ["features", "utility ↑", "named by a picture ↓", "named with a gallery ↓", "bound ↓"]
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
            worst = chanced(entry.worst_case)
            rows.append([name, short(entry), number(entry.utility.kept), *alone, worst])
        head = ["report", "features", "mean AUC ↑", "strongest, not adapting ↓", "strongest, adapting ↓"]
        table = Table([*head, "pairs seen", "any attack, any judge ↓"], rows)
        return f"{table.markdown()}\n\n{self.sources(found)}"

    def holds(self, data: str = "celeba") -> str:
        """Every set of features on some data once: attacks that draw, readers with a gallery, the bounds."""
        found, rows, people = self.hardest(data), [], 0
        for label, one in found.items():
            named, people = chanced(one[2].worst_case_gallery), one[1].data.identities
            limits = (bound(one[2], people), bound(one[2], 10_000))
            rows.append([label, *figures(one), named, *limits])
        head = ["features", "utility ↑", "not adapting ↓", "adapting ↓", "with a gallery ↓"]
        table = Table([*head, f"bound, 1 of {people}", "1 of 10,000"], rows)
        return f"{table.markdown()}\n\n{self.sources(list(found.values()))}"

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


def filled(text: str, made: Figures, up: str) -> str:
    """A page with its tables made anew; `up` leads from it to docs/."""
    tables: dict[str, Callable[[], str]] = {
        one: getattr(made, one)
        for one in (
            *("first", "crafter", "holds", "cost", "judges", "luck"),
            *("pictures", "person", "exposed"),
        )
    }
    tables["shift"] = lambda: made.holds("lfw-shift")
    tables["lfw"] = lambda: made.holds("lfw-own")
    tables["who"] = lambda: who(made.hardest())
    tables["kept"] = lambda: kept(made.reports)
    tables |= {name: lambda name=name: made.listed(name).replace("{up}", up) for name in made.rows}
    pattern = r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end of figures -->)"

    def block(found: re.Match[str]) -> str:
        table = tables[found[2]]()
        below = "" if up or "*From" in table or found[2] == "kept" else f"\n\n{made_by(table, made.reports)}"
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
