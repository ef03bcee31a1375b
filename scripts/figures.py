"""The tables of README.md and of some pages in docs, from the audits' reports in docs/reports.

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

from crafter_pl.audit.record import from_json
from crafter_pl.audit.schema import DefenseResult, Report, WorstCase
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import Table, number, rate
from crafter_pl.certificate import Certificate
from crafter_pl.metrics import Estimate

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/results.md", "docs/for-privacy.md", "docs/model-card.md")
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

    def sources(self, found: list[Found], up: str = "", readers: bool = False) -> str:
        """Which reports a table is of, with their attacks and, of every row, who has a gallery."""
        used = {name: report for name, report, _ in found}
        parts = [
            f"[{name}]({up}reports/{name}.json) by {', '.join(f'`{one}`' for one in report.attacks)}"
            for name, report in used.items()
        ]
        text = f"From {'; '.join(parts)}." if parts else "No report yet."
        listed = [f"{short(entry)} by {own}" for _, _, entry in found if (own := listed_readers(entry))]
        if readers and listed:
            text += f" With a gallery: {'; '.join(listed)}."
        return f"*{text}*"

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
            name, listed = title + " (!)" * one[2].flagged, chanced(one[2].worst_case_gallery)
            rows.append([name, f"{number(auc)}{note}", pictured(one), listed, limit])
        head = ["features", "utility ↑", "named by a picture ↓", "named with a gallery ↓", "bound ↓"]
        return f"{Table(head, rows).markdown()}\n\n{self.sources(used, 'docs/', readers=True)}"

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
            rows.append(
                [name, short(entry), number(entry.utility.kept), *alone, rate(entry.worst_case.eval_acc)]
            )
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
            named, people = chanced(one[2].worst_case_gallery), one[1].data.identities
            limits = (bound(one[2], people), bound(one[2], 10_000))
            rows.append([label, *figures(one), named, *limits])
        head = ["features", "utility ↑", "not adapting ↓", "adapting ↓", "with a gallery ↓"]
        table = Table([*head, "bound, 1 of 100", "1 of 10,000"], rows)
        return f"{table.markdown()}\n\n{self.sources(list(found.values()), readers=True)}"

    def pictures(self) -> str:
        """How soon the bound is spent: several pictures of one person among so many people."""
        if (known := self._certified()) is None:
            return "*No report yet.*"
        name, _, entry = known
        assert entry.certificate is not None
        proved, counts = Certificate(entry.certificate.bits), (1, 2, 3, 4)
        rows = [
            [f"{people:,}", *(limited(proved.naming(people, pictures=count)) for count in counts)]
            for people in map(int, entry.certificate.bounds)
        ]
        head = [f"among so many people, K = {entry.certificate.messages}", "1 picture of a person"]
        table = Table([*head, *(f"{count} pictures" for count in counts[1:])], rows)
        return f"{table.markdown()}\n\n*K from [{name}](reports/{name}.json).*"

    def person(self) -> str:
        """Who attacked certified features, what they got, and what no such attacker exceeds."""
        if (found := self._certified()) is None:
            return "*No report yet.*"
        name, report, entry = found
        known, plain, people = entry.certificate, report.defenses[0], report.data.identities
        assert known is not None
        proved, one_guess = Certificate(known.bits, known.epsilon), percent(report.data.chance)
        drawers, listed = len(report.attacks) * len(report.oracles), len(gallery_readers(entry))
        rows: list[list[Any]] = []

        def add(who: str, guesses: int, own: WorstCase | None, before: WorstCase | None) -> None:
            if own is not None:
                was = "-" if before is None else rate(before.eval_acc)
                limit = limited(proved.naming(people, guesses))
                rows.append([who, was, rate(own.eval_acc), percent(own.chance), limit])

        add(f"draws faces: any of {drawers} guesses", drawers, entry.worst_case, plain.worst_case)
        before, title = (
            len(gallery_readers(plain)),
            f"has other pictures of the people: any of {listed} guesses",
        )
        title += f", unprotected any of {before}" if before != listed else ""
        add(title, listed, entry.worst_case_gallery, plain.worst_case_gallery)
        best = f"the best of {len(known.attackers)} who read the message and have these pictures: one guess"
        for count, album in known.albums.items():
            who = best if count == "1" else f"the same, by {count} pictures of a person together"
            rows.append([who, "-", rate(album.named), one_guess, limited(album.bound)])
        for key, own in entry.rulers.items():
            if own.eer is not None and own.tar is not None:
                linked = plain.rulers[key].tar if key in plain.rulers else None
                was = "-" if linked is None else rate(linked)
                who = "says whether two features are one person's: accepts, at 1 % of strangers"
                rows.append([who, was, rate(own.tar), "1.0 %", limited(proved.linking(0.01))])
        head = ["who", "unprotected", short(entry), "by chance", "proved: at most"]
        ends = f"{report.data.images} faces of {people} people"
        return f"{Table(head, rows).markdown()}\n\n*{ends}, from [{name}](reports/{name}.json).*"

    def exposed(self) -> str:
        """Of every certified defence on CelebA, who is named most often; and by group, where measured."""
        found: dict[str, Found] = {}
        for one in sorted(self.entries("celeba"), key=hardness):
            if one[2].certificate is not None:
                found[short(one[2])] = one
        rows = []
        for label, (_, report, entry) in found.items():
            assert entry.certificate is not None
            groups = ", ".join([*entry.certificate.groups, *report.groups]) or "not measured"
            own = entry.certificate
            rows.append([label, percent(own.exposed), percent(own.most_exposed), groups])
        head = ["features", "people named in half of their pictures or more", "the most exposed person"]
        names = ", ".join(f"[{name}](reports/{name}.json)" for name, _, _ in found.values())
        return f"{Table([*head, 'by group'], rows).markdown()}\n\n*From {names}.*"

    def _certified(self) -> Found | None:
        return self.measured("certified, 5 bits")

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
        for report in self.reports.values():
            for judge in report.oracles:
                drawn = [own.by_oracle["eval_acc"][judge.name] for own in report.defenses[0].attacks.values()]
                tar = "-" if judge.tar_on_originals is None else rate(judge.tar_on_originals)
                title = f"{report.data.source}, {judge.name.replace('_', ' ')}"
                kind = "an oracle trained here" if judge.seen else "a gallery of their other pictures"
                rows[title] = [title, kind, rate(judge.accuracy), tar, strongest(drawn)]
        head = ["data, judge", "knows people by", "names originals", "TAR at FAR 1 %"]
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
    entry = one[2]
    basic = entry.worst_case_basic or entry.worst_case
    auc, note = utility(entry)
    adapting = "-" if adapted(one) is None else chanced(entry.worst_case)
    return [f"{number(auc)}{note}", chanced(basic), adapting]


def chanced(own: WorstCase | None) -> str:
    """A worst case with its interval, and what as many guesses name by chance."""
    return "-" if own is None else f"{rate(own.eval_acc)}, by chance {percent(own.chance)}"


def pictured(one: Found) -> str:
    """In one cell: by attacks that do not adapt, then by all; of unprotected features once."""
    entry = one[2]
    if entry.plain:
        return chanced(entry.worst_case)
    basic = (entry.worst_case_basic or entry.worst_case).eval_acc.value
    adapting = "-" if adapted(one) is None else chanced(entry.worst_case)
    return f"{percent(basic)} → {adapting}"


def gallery_readers(entry: DefenseResult) -> list[str]:
    """Who has other pictures of the people and draws none; those that read the message alone are last."""
    known = [] if entry.certificate is None else list(entry.certificate.attackers)
    return [*(name for name, own in entry.rulers.items() if own.suspects), *known]


def listed_readers(entry: DefenseResult) -> str:
    """The same in words; nothing where nobody has a gallery."""
    own = [f"`{name}`" for name, one in entry.rulers.items() if one.suspects]
    if entry.certificate is not None:
        own.append(f"{len(entry.certificate.attackers)} who read the message")
    return ", ".join(own)


def strongest(own: list[Estimate]) -> Any:
    """The largest of some rates."""
    return rate(max(own, key=lambda one: one.value)) if own else "-"


def bound(entry: DefenseResult, people: int) -> str:
    """What is proved of naming one of so many."""
    return limited(1.0 if entry.certificate is None else entry.certificate.bound(people))


def limited(bound: float) -> str:
    """A bound for reading."""
    return f"{100 * bound:.3g} %" if bound < 1 else "none"


def filled(text: str, made: Figures, up: str) -> str:
    """A page with its tables made anew; `up` leads from it to docs/."""
    tables: dict[str, Callable[[], str]] = {
        one: getattr(made, one)
        for one in (
            *("first", "crafter", "holds", "cost", "judges", "luck"),
            *("pictures", "person", "exposed"),
        )
    }
    tables |= {name: lambda name=name: made.bits(name).replace("{up}", up) for name in made.curves}
    pattern = r"(<!-- figures: ([\w-]+) -->\n).*?(<!-- end of figures -->)"
    return re.sub(pattern, lambda m: f"{m[1]}\n{tables[m[2]]()}\n\n{m[3]}", text, flags=re.DOTALL)


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
