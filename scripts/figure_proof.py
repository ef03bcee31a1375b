"""The tables of `figures.py` about certified crafting."""

from typing import Any

from figure_cells import Found, Kept, by_chance, gallery_readers, limited, short

from crafter_pl.audit.schema import WorstCase
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import Table, number, rate
from crafter_pl.certificate import Certificate
from crafter_pl.metrics import Estimate


class Proof(Kept):
    """These tables."""

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
        album = known.albums["1"]
        rows.append([best, "-", rate(album.named), one_guess, limited(album.bound)])
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
        """Of every certified defence on CelebA, who is named most often."""
        found = {label: one for label, one in self.hardest().items() if one[2].certificate is not None}
        rows = []
        for label, (_, _, entry) in found.items():
            assert entry.certificate is not None
            own = entry.certificate
            rows.append([label, percent(own.exposed), percent(own.most_exposed)])
        head = ["features", "people named in half of their pictures or more", "the most exposed person"]
        names = ", ".join(f"[{name}](reports/{name}.json)" for name, _, _ in found.values())
        return f"{Table(head, rows).markdown()}\n\n*From {names}.*"

    def _certified(self) -> Found | None:
        return self.measured("certified, 5 bits")

    def listed(self, name: str) -> str:
        """Rows that a script wrote, by what they are of."""
        rows = self.rows[name]
        kinds = {"message": self.bits, "pictures": self.albums, "group": self.groups, "net": self.nets}
        table = next(make for key, make in kinds.items() if key in rows[0])(rows)
        return f"{table.markdown()}\n\n*From [{name}]({{up}}reports/{name}.json).*"

    @staticmethod
    def bits(rows: list[dict[str, Any]]) -> Table:
        """A curve of `benchmarks/certificate_curve.py`: message by message."""
        lines = [
            [
                one["message"],
                "-" if "bits" not in one else f"{one['bits']:.2f}",
                number(Estimate(**one["auc"])),
                rate(Estimate(**one["named"])),
                percent(one["ceiling"]) if "ceiling" in one else "-",
                percent(one["bound"]) if one.get("bound", 1) < 1 else "none",
            ]
            for one in rows
        ]
        head = ["message", "bits", "mean AUC on the needs ↑", "named by the message ↓", "ceiling", "bound"]
        return Table(head, lines)

    @staticmethod
    def albums(rows: list[dict[str, Any]]) -> Table:
        """Several pictures of one person: what the message tells together, and what is proved of it."""
        lines = [
            [one["pictures"], f"{one['bits']:.1f}", rate(interval(one["named"])), limited(one["bound"])]
            for one in rows
        ]
        return Table(["pictures of a person", "bits", "named by the messages ↓", "bound, 1 of 100"], lines)

    @staticmethod
    def groups(rows: list[dict[str, Any]]) -> Table:
        """What the message names of faces with an attribute and without."""
        lines = [
            [one["group"], rate(interval(one["present"])), rate(interval(one["absent"]))] for one in rows
        ]
        return Table(["attribute", "named with it ↓", "named without it ↓"], lines)

    @staticmethod
    def nets(rows: list[dict[str, Any]]) -> Table:
        """Of `benchmarks/adopted_attacked.py`: adopted nets, attacked and certified."""
        lines = [
            [
                one["net"],
                f"`{one['cut']}`",
                "×".join(map(str, one["feature"])),
                f"{one['share']:.0%}",
                *(
                    guessed(one[side], who)
                    for side in ("unprotected", "certified")
                    for who in ("any", "gallery")
                ),
                f"{one['auc_needs']['value']:.3f} → {one['auc_certified']['value']:.3f}",
            ]
            for one in rows
        ]
        head = ["net", "cut", "feature", "edge's share", "unprotected: drawn ↓", "with a gallery ↓"]
        return Table([*head, "certified: drawn ↓", "with a gallery ↓", "AUC on the needs"], lines)


def guessed(own: dict[str, Any], who: str) -> str:
    """A rate, and what guessing gives, where it is known."""
    chance = own.get(f"{who}_by_chance")
    return f"{rate(interval(own[who]))}" if chance is None else by_chance(interval(own[who]), chance)


def interval(own: dict[str, Any]) -> Estimate:
    """A value as a report's JSON has it."""
    return Estimate(own["value"], *own["ci95"])
