"""What the numbers of an audit say, in words: the verdict, the warnings and the limits of a report.

Every sentence is computed from the report; none is more certain than the intervals are.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from crafter_pl.audit.schema import Curve, DefenseResult, Report
from crafter_pl.audit.sides import MIN_PEOPLE, SIDES
from crafter_pl.metrics import Estimate

UTILITY_BUDGET = 0.02  # utility that the setting named in the verdict may cost
WEAK_ORACLE = 0.5  # accuracy on the originals below which an oracle's verdicts say little
WEAK_PANEL = 0.9  # the same of the best judge, below which real recognisers may name more than it does
WEAK_ATTACK = 0.2  # panel rate on unprotected features below which protection against an attack says little
WEAKER = 0.05  # how far below the white-box attack, on unprotected features, an attack is called weaker
FEW_PEOPLE = 20  # below this a percentile bootstrap over people is too narrow
UNTESTED = "no attack has learnt from this defence"
GROUPS = (
    "The same judged reconstructions, those of faces with an attribute beside those without: nobody was "
    "attacked anew. Differences are with less without, paired over people; of many intervals one in twenty "
    "misses zero by luck. The mean AUC is over attributes that have both classes on both sides, without the "
    "group's own. It is that of the classifier at hand, not of one trained on such features."
)


def percent(value: float) -> str:
    """Write a rate for reading, `0.1234` as `12.3 %`."""
    return f"{100 * value:.1f} %"


def percent_range(figure: Estimate) -> str:
    """Write the interval of a rate for reading, `12.3 to 15.0 %`."""
    return f"{100 * figure.low:.1f} to {100 * figure.high:.1f} %"


def points(figure: Estimate) -> str:
    """Write the interval of a difference of rates, `-1.0 to 3.0 points`."""
    return f"{100 * figure.low:.1f} to {100 * figure.high:.1f} points"


def completed(report: Report) -> Report:
    """The report with what follows from its numbers: verdict, warnings, whether curves are monotone."""
    return replace(report, verdict=verdict(report), warnings=list(warnings(report)), curves=curves(report))


def chosen(report: Report) -> DefenseResult | None:
    """Pick the protected features that the verdict is about.

    Those with the lowest worst case among those that cost at most 0.02 of utility, what no attack has learnt
    from after all others; if all cost more, those that cost least; None if nothing protected was audited.
    """
    none, *protected = report.defenses
    affordable = [entry for entry in protected if cost(none, entry) <= UTILITY_BUDGET]
    if affordable:
        return min(affordable, key=lambda entry: (entry.untested, entry.rate))
    return min(protected, key=lambda entry: cost(none, entry), default=None)


def cost(none: DefenseResult, entry: DefenseResult) -> float:
    """Utility lost against unprotected features; of a certified defence on what it was to answer for."""
    if (one := entry.certificate) is not None:
        return one.needs_kept_unprotected.value - one.needs_kept.value
    return none.kept - entry.kept


def beyond(entry: DefenseResult) -> str | None:
    """What must be said where somebody names more than the messages alone can tell, else None."""
    if (one := entry.certificate) is None or not one.exceeded:
        return None
    return (
        f"The certificate of {entry.title} does not hold here: {', '.join(one.exceeded)} names significantly "
        f"more than the {percent(one.ceiling)} that anybody can by the messages alone; something else leaves "
        "the edge. Do not use this defence; please report it."
    )


def verdict(report: Report) -> str:
    """Say what share of the faces is still identified by any attack, at what cost, and if knowledge helps."""
    best = max(report.oracles, key=lambda one: one.accuracy_on_originals)
    kind = "an oracle trained on their other pictures" if best.seen else "a recogniser that others trained"
    entry = chosen(report) or report.defenses[0]
    listed = ""
    if (worst := entry.worst_case_gallery) is not None:
        listed = (
            f" Who has other pictures of the people names {percent(worst.eval_acc.value)} from "
            f"{'unprotected features' if entry.plain else entry.label} without drawing any "
            f"({percent_range(worst.eval_acc)}; {percent(worst.chance)} would be by chance)."
        )
    others = ""
    if len(report.defenses) > 2:
        affordable = cost(report.defenses[0], entry) <= UTILITY_BUDGET
        why = f"has the lowest worst case of those that cost {UTILITY_BUDGET:g} or less"
        why = why if affordable else "costs least"
        others = f" Of {len(report.defenses) - 1} protected sets, all in the table, {entry.label} {why}."
    return (
        f"{_found(report)}{listed}{others} The strongest judge, {best.name}, {kind}, names "
        f"{percent(best.accuracy_on_originals)} of the originals."
    )


def _found(report: Report) -> str:
    """The verdict on the features."""
    none, entry = report.defenses[0], chosen(report)
    faces = f"{report.data.images} faces of {report.data.identities} people"
    before, unprotected = none.worst_case, percent(none.rate)
    if entry is None:
        return (
            f"Nothing protected was audited: from unprotected features, {unprotected} of the {faces} are "
            f"identified by some attack and judge (95 % interval {percent_range(before.eval_acc)}; "
            f"{percent(before.chance)} would be by chance)."
        )
    if before.eval_acc.low <= before.chance:
        return (
            f"This audit cannot show protection: even from unprotected features only {unprotected} of the "
            f"{faces} are identified, not measurably more than by chance ({percent(before.chance)})."
        )
    assert entry.change is not None
    after, label, lost = entry.worst_case, entry.label, cost(none, entry)
    before_kept, kept, what = none.kept, entry.kept, none.utility.title
    if (one := entry.certificate) is not None:
        before_kept, kept = one.needs_kept_unprotected.value, one.needs_kept.value
        what = f"{what} on {', '.join(one.needs) if one.figure is None else one.about}"
    price = f"at no measured cost in {what} ({kept:.3f})"
    if lost >= 0.0005:
        price = f"at a cost of {lost:.3f} of {what} ({before_kept:.3f} to {kept:.3f})"
    if lost > UTILITY_BUDGET:
        price += f"; no setting costs less than {UTILITY_BUDGET:g}"
    now = (
        f"{percent(entry.rate)} (95 % interval {percent_range(after.eval_acc)}; "
        f"{percent(after.chance)} would be by chance)"
    )
    if entry.change["worst_case_eval_acc"].high >= 0:
        return (
            f"No measurable protection: with {label}, {now} of the {faces} are identified by some attack and "
            f"judge, against {unprotected} unprotected, {price}. {_gained(entry)}"
        )
    if entry.untested:
        return (
            f"No figure of protection: no attack here has learnt from {label}. Those made for unprotected "
            f"features identify {now} of the {faces}, against {unprotected} unprotected, {price}."
        )
    level = ", which is not measurably more than by chance" if after.eval_acc.low <= after.chance else ""
    return (
        f"With {label}, the share of {faces} that some attack and judge still identify falls from "
        f"{unprotected} to {now}{level}, {price}. {_gained(entry)}"
    )


def false_security(entry: DefenseResult) -> str | None:
    """The sentence of features whose protection holds only while attackers do not know it, else None."""
    found = entry.false_security
    if found is None or not found.flag:
        return None
    return (
        f"False security with {entry.label}: {found.strongest}, which knows the defence, alone "
        f"identifies {percent(found.adaptive.value)}, the strongest attack that does not "
        f"{percent(found.basic.value)} (difference {points(found.gain)})."
    )


def _gained(entry: DefenseResult) -> str:
    """The end of the verdict: what knowing the defence gains attackers."""
    if sentence := false_security(entry):
        return sentence
    if not entry.learnt and entry.certificate is not None:
        return "No attack here has learnt from it; what is proved holds for those that do."
    if not entry.learnt:
        return "No attack here has learnt from it: one that does may identify more."
    if (found := entry.false_security) is None:
        return "All attacks here know the defence."
    return (
        "The strongest attack that knows the defence gained nothing measurable over the strongest that does "
        f"not ({percent(found.adaptive.value)} against {percent(found.basic.value)}, difference "
        f"{points(found.gain)})."
    )


def curves(report: Report) -> list[Curve]:
    """Say for every family of settings that differ in beta alone whether its trade-off is monotone.

    A larger beta weighs the feature's fidelity more: utility and worst case should both rise with it.
    """
    families: dict[str, list[tuple[float, DefenseResult]]] = {}
    for entry in report.defenses[1:]:
        if entry.beta is not None:
            families.setdefault(entry.family, []).append((entry.beta, entry))
    return [_curve(name, entries) for name, entries in families.items() if len(entries) > 1]


def _curve(name: str, entries: list[tuple[float, DefenseResult]]) -> Curve:
    entries = sorted(entries, key=lambda own: own[0])
    words, monotone = [], True
    for key, what in (("kept", entries[0][1].utility.title), ("rate", "the worst case")):
        falls = [(a, b, getattr(x, key) - getattr(y, key)) for (a, x), (b, y) in pairwise(entries)]
        steps = ", ".join(f"{a:g} to {b:g} (by {fall:.3f})" for a, b, fall in falls if fall > 0)
        words.append(f"{what} falls from beta {steps}" if steps else f"{what} never falls as beta rises")
        monotone = monotone and not steps
    sentence = f"The trade-off curve of {name} is {'not ' * (not monotone)}monotone: {'; '.join(words)}."
    return Curve(name, [beta for beta, _ in entries], monotone, sentence)


def warnings(report: Report) -> Iterator[str]:
    """Name everything that makes the verdict weaker than it looks."""
    none, *protected = report.defenses
    people, oracles = report.data.identities, report.oracles
    yield from filter(None, map(beyond, report.defenses))
    yield from filter(None, map(false_security, report.defenses))
    if names := [entry.title for entry in protected if entry.untested]:
        yield (
            f"No attack has learnt from {', '.join(names)}: what it does not identify is not protected. Who "
            "can query the defence may get more: audit with --budget adaptive, which names what to train."
        )
    for entry in report.defenses:
        for name, own in entry.rulers.items():
            if not own.learnt and own.top1 is not None:
                way = "".join(f"\n  {line}" for line in own.train or [])
                yield (
                    f"Reader {name} has not learnt from {entry.title}: the {percent(own.top1.value)} that "
                    "it names there are no figure of protection. "
                    + (
                        f"Train it, then audit again:{way}"
                        if way
                        else "Train it on features of this defence."
                    )
                )
    yield from report.notes
    if len(oracles) < 2:
        yield (
            "Only one judge looked. One can be fooled by patterns that no human sees: train "
            "a second one of another architecture and input before trusting a low rate."
        )
    elif len({(one.settings.get("backbone", one.name), one.settings.get("grey")) for one in oracles}) < 2:
        yield (
            "All oracles have the same architecture and input, so that the same patterns may fool them all: "
            "train one of another --model.init_args.backbone or grey before trusting a low rate."
        )
    best = max(oracle.accuracy_on_originals for oracle in oracles)
    if WEAK_ORACLE <= best < WEAK_PANEL:
        yield (
            f"The best judge names only {percent(best)} of the original pictures: others may name more of "
            "the reconstructions. On real faces add a pretrained one (--recognisers Dlib), which does not "
            "know drawn ones."
        )
    for oracle in oracles:
        if oracle.accuracy_on_originals < WEAK_ORACLE:
            kind, way = "Oracle", "Train it better first."
            if not oracle.seen:
                kind, way = "Judge", "See that size, channels and alignment are right, or give another."
            yield (
                f"{kind} {oracle.name} names only {percent(oracle.accuracy_on_originals)} of the original "
                f"pictures: that a person is not named in a reconstruction says little. {way}"
            )
    for name, result in none.attacks.items():
        if (rate := result.figures["panel_any"].value) < WEAK_ATTACK:
            yield (
                f"Attack {name} identifies only {percent(rate)} of the unprotected "
                "faces: it is too weak for protection against it to mean much."
            )
    if people < FEW_PEOPLE:
        yield f"Only {people} people: the intervals are narrower than they should be."
    for entry in protected:
        if entry.rate == 0:
            yield (
                f"No face was identified with {entry.label}. An interval of 0 to 0 does not mean never: "
                f"with {people} people audited, up to about {percent(min(1.0, 3 / people))} of people could "
                "still be."
            )


def group_sentences(report: Report) -> Iterator[str]:
    """Say where the worst case of the two sides measurably differs, and which sides are small."""
    titles = {entry.label: entry.title for entry in report.defenses}
    for attribute, group in report.groups.items():
        for side, word in SIDES.items():
            people = getattr(group, side)["identities"]
            few = f"left out, as every side of fewer than {MIN_PEOPLE}."
            few = few if people < MIN_PEOPLE else "the intervals are narrower than they should be."
            if people < FEW_PEOPLE:
                yield f"Only {people} people {word} {attribute}: {few}"
        for label, own in group.defenses.items():
            gap, *both = (own[side] for side in ("difference", *SIDES))
            if gap is not None and (gap.worst_case.low > 0 or gap.worst_case.high < 0):
                present, absent = (percent(one.worst_case.value) for one in both if one is not None)
                yield (
                    f"Groups differ, {titles[label]}: in the worst case {present} of the faces with "
                    f"{attribute} are identified, {absent} of those without (difference "
                    f"{points(gap.worst_case)})."
                )
