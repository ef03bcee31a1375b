"""What is proved, and what was measured beside it: table, sentences and plot of certificates."""

from collections.abc import Iterator, Sequence
from typing import Any

from crafter_pl.audit.certificates import SHOWN, CertificateResult, RareMessage
from crafter_pl.audit.schema import DefenseResult
from crafter_pl.audit.show import plots
from crafter_pl.audit.show.sentences import percent
from crafter_pl.audit.show.table import Cell, Table, number, rate
from crafter_pl.audit.utility import head, needs_key, title
from crafter_pl.certificate import Certificate

Named = tuple[str, CertificateResult]  # features, their certificate


def proved(entries: Sequence[DefenseResult]) -> list[Named]:
    """The certificates there are, each with its features' title."""
    return [(entry.title, entry.certificate) for entry in entries if entry.certificate is not None]


def bound(one: CertificateResult, people: int, guesses: int = 1) -> str:
    """Of naming somebody among so many; a dash where it says nothing."""
    known = Certificate(one.bits).naming(people, guesses)
    return percent(known) if known < 1 else "-"


def needed(one: CertificateResult) -> Cell:
    """Utility on what the defence answers for, and the same of unprotected features."""
    return Cell(str(number(one.needs_kept)), notes=[f"{one.needs_kept_unprotected.value:.3f} unprotected"])


def figures(one: CertificateResult | None, people: int) -> dict[str, Any]:
    """For table.csv."""
    if one is None:
        return {}
    known = {"bits": one.bits, "bound": one.bound(people), "ceiling": one.ceiling}
    return {**known, "message_attacker": one.strongest, needs_key(one.figure): one.needs_kept}


def certificates(found: Sequence[Named], people: int) -> Table:
    """A row a certificate: bits and utility, bounds, and what was measured on so many people."""
    sizes = list(found[0][1].bounds)
    first = found[0][1]  # all of one experiment have one utility
    short = head(first.figure, first.agreement).removeprefix("mean ")
    heads = ["features", "bits", f"{short} on the needs", "unprotected"]
    heads += [f"bound, 1 of {int(size):,}" for size in sizes]
    heads += [f"ceiling on these {people}", "by the message", "most exposed person"]
    rows = [
        [
            Cell(name, notes=[one.about]),
            f"{one.bits:.2f}" + ("" if one.epsilon is None else f" (ε {one.epsilon:g})"),
            number(one.needs_kept),
            number(one.needs_kept_unprotected),
            *(f"{100 * own:.2g} %" if own < 1 else "-" for own in one.bounds.values()),
            percent(one.ceiling),
            rate(one.strongest),
            percent(one.most_exposed),
        ]
        for name, one in found
    ]
    return Table(heads, rows)


def albums(found: Sequence[Named]) -> Table:
    """A row for every number of pictures of one person: measured, charged, and at most."""
    rows = [
        [
            Cell(name, notes=[f"{count} pictures"]),
            int(count),
            f"{own.bits:.2f}",
            rate(own.named),
            percent(own.bound),
        ]
        for name, one in found
        for count, own in one.albums.items()
    ]
    return Table(["features", "pictures of a person", "bits charged", "named by the messages", "bound"], rows)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _says(rare: RareMessage, figure: str | None) -> str:
    """What a message says, the surest first; nothing of an embedding, whose numbers say nothing."""
    if figure == "r2":
        told = [f"{key} {value:.3g}" for key, value in rare.says.items()][:SHOWN]
    else:
        sure = sorted(rare.says.items(), key=lambda own: -abs(own[1] - 0.5) if figure is None else -own[1])
        told = [f"{key} {100 * value:.0f} %" for key, value in sure[:SHOWN]]
    return f" ({', '.join(told)})" if told else ""


def sentences(found: Sequence[Named], people: int) -> Iterator[str]:
    """In words, a line or a few each."""
    for name, one in found:
        most, known = bound(one, people), Certificate(one.bits, one.epsilon)
        limit = f"By one guess a picture, whoever attacks names at most {most} of {people} people on average"
        limit = f"So many bits are no bound for {people} people" if most == "-" else limit
        best, kept, clean = one.strongest, one.needs_kept.value, one.needs_kept_unprotected.value
        yield (
            f"{name}: {one.bits:.2f} bits a picture about {one.about}. {limit}; on these faces no "
            f"use of the message alone exceeds {percent(one.ceiling)} by one guess, or "
            f"{percent(one.list_ceiling)} by the {one.guesses} that this audit makes; the best found names "
            f"{rate(best)}. "
            f"{_sentence(title(one.figure, one.agreement))} on the needs {kept:.3f}, unprotected {clean:.3f}."
        )
        if one.exposed:
            yield (
                f"{name}: the bound is an average. {percent(one.exposed)} of the people are named in half of "
                f"their pictures or more, the most exposed one in {percent(one.most_exposed)}."
            )
        for rare in one.rare[:1]:
            yield (
                f"{name}: the rarest message here{_says(rare, one.figure)} is that of {rare.share:.2%} of "
                f"the public faces, and of {rare.faces} faces of {rare.people} people. It says more of them "
                f"than others do: of {people} equally likely people its sender is known with a certainty of "
                f"{percent(known.pointwise(1 / people, rare.share))} at most."
            )
        if one.epsilon is not None:
            yield (
                f"{name}: at a false accept rate of 1 % no test of one message accepts the right person in "
                f"more than {percent(known.accepting(0.01))}, none of two messages in more than "
                f"{percent(known.linking(0.01))}."
            )
        for attribute, sides in one.groups.items():
            if len(sides) == 2 and (
                sides["present"].low > sides["absent"].high or sides["absent"].low > sides["present"].high
            ):
                yield (
                    f"{name}: the message names {rate(sides['present'])} of the faces with {attribute}, "
                    f"{rate(sides['absent'])} of those without."
                )


def plot(found: Sequence[Named], people: int) -> bytes:
    """Utility against bits; below it measured rate, ceiling and bound against bits."""
    order = sorted(found, key=lambda own: own[1].bits)
    figure, (upper, lower) = plots.panels(5.6, 6.2, rows=2)
    bits = [plots.exactly(one.bits) for _, one in order]
    colours = plots.COLOURS
    plots.draw(
        upper, bits, [one.needs_kept for _, one in order], label="protected", color=colours[0], marker="o"
    )
    plots.draw(
        upper,
        bits,
        [one.needs_kept_unprotected for _, one in order],
        label="unprotected",
        color="0.4",
        marker="_",
    )
    first = found[0][1]
    upper.set_ylabel(f"{head(first.figure, first.agreement)} on the needs")
    x = [one.bits for _, one in order]
    lower.plot(x, [one.bound(people) for _, one in order], "--", color="0.3", label="bound (proved)")
    lower.plot(
        x, [one.ceiling for _, one in order], ":s", color=colours[1], ms=4, label="ceiling on these faces"
    )
    plots.draw(
        lower,
        bits,
        [one.strongest for _, one in order],
        label="measured, message alone",
        color=colours[2],
        marker="o",
    )
    lower.axhline(1 / people, color="0.6", linewidth=1, label="chance of one guess")
    lower.set(xlabel="bits a picture", ylabel=f"named among {people} people", ylim=(-0.02, 1.05))
    plots.legend(figure, upper, 2)
    lower.legend(fontsize=8, frameon=False)
    return plots.save(figure)
