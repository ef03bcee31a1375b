"""What the numbers of an audit say, in words: the verdict, the warnings and the limits of a report.

Every sentence is computed from `report.json`; none is more certain than the intervals are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

UTILITY_BUDGET = 0.02  # mean AUC that the setting named in the verdict may cost
WEAK_ORACLE = 0.5  # accuracy on the originals below which an oracle's verdicts say little
WEAK_ATTACK = 0.2  # panel rate on unprotected features below which protection against an attack says little
WEAKER = 0.05  # how far below the white-box attack, on unprotected features, an attack is called weaker
FEW_PEOPLE = 20  # below this a percentile bootstrap over people is too narrow

Report = dict[str, Any]


def percent(value: float) -> str:
    """Write a rate for reading, `0.1234` as `12.3 %`."""
    return f"{100 * value:.1f} %"


def percent_range(ci95: list[float]) -> str:
    """Write an interval of a rate for reading, `12.3 to 15.0 %`."""
    return f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f} %"


def rate_with_range(figure: Report) -> str:
    """Write a rate and its interval for reading, `12.3 % (10.0 to 15.0 %)`."""
    return f"{percent(figure['value'])} ({percent_range(figure['ci95'])})"


def points(figure: Report) -> str:
    """Write the interval of a difference of rates, `-1.0 to 3.0 points`."""
    return f"{100 * figure['ci95'][0]:.1f} to {100 * figure['ci95'][1]:.1f} points"


def title(entry: Report) -> str:
    """How tables and captions call an entry of `defenses`."""
    return "unprotected" if entry["name"] == "none" else str(entry["label"])


def marked(name: str, retrains: list[str]) -> str:
    """A row's name in a table, with what the defence makes a service roll out anew."""
    return f"{name} (retrains {', '.join(retrains)})" if retrains else name


def _worst(entry: Report) -> float:
    return float(entry["worst_case"]["eval_acc"]["value"])


def _auc(entry: Report) -> float:
    return float(entry["utility"]["mean_auc"]["value"])


def chosen(report: Report) -> Report | None:
    """Pick the protected entry that the verdict is about.

    The one with the lowest worst case among those that cost at most 0.02 of mean AUC; if all cost more, the
    one that costs least; None if nothing protected was audited.
    """
    none, *protected = report["defenses"]
    if not protected:
        return None
    affordable = [entry for entry in protected if _auc(none) - _auc(entry) <= UTILITY_BUDGET]
    return min(affordable, key=_worst) if affordable else max(protected, key=_auc)


def verdict(report: Report) -> str:
    """Say what share of the faces is still identified by any attack, at what cost, and if knowledge helps."""
    none, entry = report["defenses"][0], chosen(report)
    before, chance = none["worst_case"], f"{percent(none['worst_case']['chance'])} would be by chance"
    faces = f"{report['data']['images']} faces of {report['data']['identities']} people"
    if entry is None:
        return (
            f"Nothing protected was audited: from unprotected features, {percent(_worst(none))} of the "
            f"{faces} are identified by some attack and oracle "
            f"(95 % interval {percent_range(before['eval_acc']['ci95'])}; {chance})."
        )
    if before["eval_acc"]["ci95"][0] <= before["chance"]:
        return (
            f"This audit cannot show protection: even from unprotected features only {percent(_worst(none))} "
            f"of the {faces} are identified, not measurably more than by chance "
            f"({percent(before['chance'])})."
        )
    after, change, label = entry["worst_case"], entry["change"], entry["label"]
    tail = _adapted(entry)
    cost = -change["mean_auc"]["value"]
    price = f"{cost:.3f} of mean AUC ({_auc(none):.3f} to {_auc(entry):.3f})"
    price = (
        f"at a cost of {price}" if cost >= 0.0005 else f"at no measured cost in mean AUC ({_auc(entry):.3f})"
    )
    if cost > UTILITY_BUDGET:
        price += f"; no setting costs less than {UTILITY_BUDGET:g}"
    now = (
        f"{percent(_worst(entry))} (95 % interval {percent_range(after['eval_acc']['ci95'])}; "
        f"{percent(after['chance'])} would be by chance)"
    )
    if change["worst_case_eval_acc"]["ci95"][1] >= 0:
        return (
            f"No measurable protection: with {label}, {now} of the {faces} are identified by some attack and "
            f"oracle, against {percent(_worst(none))} unprotected, {price}. {tail}"
        )
    if not_learnt(entry):
        return (
            f"No figure of protection: no attack here has learnt from {label}. Those made for unprotected "
            f"features identify {now} of the {faces}, against {percent(_worst(none))} unprotected, {price}."
        )
    level = (
        ", which is not measurably more than by chance"
        if after["eval_acc"]["ci95"][0] <= after["chance"]
        else ""
    )
    return (
        f"With {label}, the share of {faces} that some attack and oracle still identify falls from "
        f"{percent(_worst(none))} to {now}{level}, {price}. {tail}"
    )


def learnt(entry: Report) -> list[str]:
    """The attacks that have learnt from an entry's defence; unprotected features are known to all."""
    return [name for name, result in entry["attacks"].items() if result["learnt"]]


def not_learnt(entry: Report) -> str:
    """The mark of an entry that no attack has learnt from, so that its rates are no figures of protection."""
    return "" if entry["name"] == "none" or learnt(entry) else "no attack has learnt from this defence"


def adaptive(report: Report) -> list[str]:
    """The attacks that know the defence."""
    return [name for name, attack in report["attacks"].items() if attack.get("adaptive")]


def false_security(entry: Report) -> str | None:
    """The sentence of an entry whose protection holds only while attackers do not know it, else None."""
    found = entry.get("false_security")
    if not found or not found["flag"]:
        return None
    return (
        f"False security with {entry['label']}: {found['strongest']}, which knows the defence, alone "
        f"identifies {percent(found['adaptive']['value'])}, the strongest attack that does not "
        f"{percent(found['basic']['value'])} (difference {points(found['gain'])})."
    )


def _adapted(entry: Report) -> str:
    """The end of the verdict: what knowing the defence gains attackers."""
    if sentence := false_security(entry):
        return sentence
    if not learnt(entry):
        return "No attack here has learnt from it: one that does may identify more."
    found = entry.get("false_security")
    if not found:
        return "All attacks here know the defence."
    return (
        "The strongest attack that knows the defence gained nothing measurable over the strongest that does "
        "not "
        f"({percent(found['adaptive']['value'])} against {percent(found['basic']['value'])}, difference "
        f"{points(found['gain'])})."
    )


def curves(report: Report) -> list[Report]:
    """Say for every family of settings that differ in beta alone whether its trade-off is monotone.

    A larger beta weighs the feature's fidelity more: utility and worst case should both rise with it.
    """
    families: dict[str, list[Report]] = {}
    for entry in report["defenses"][1:]:
        if entry["beta"] is not None:
            families.setdefault(entry["family"], []).append(entry)
    found = []
    for name, entries in families.items():
        if len(entries) < 2:
            continue
        entries = sorted(entries, key=lambda entry: entry["beta"])
        words, monotone = [], True
        for figure, what in ((_auc, "mean AUC"), (_worst, "the worst case")):
            falls = [(a["beta"], b["beta"], figure(a) - figure(b)) for a, b in pairwise(entries)]
            steps = ", ".join(f"{a:g} to {b:g} (by {fall:.3f})" for a, b, fall in falls if fall > 0)
            words.append(f"{what} falls from beta {steps}" if steps else f"{what} never falls as beta rises")
            monotone = monotone and not steps
        sentence = (
            f"The trade-off curve of {name} is {'' if monotone else 'not '}monotone: {'; '.join(words)}."
        )
        betas = [entry["beta"] for entry in entries]
        found.append({"family": name, "betas": betas, "monotone": monotone, "sentence": sentence})
    return found


def warnings(report: Report) -> list[str]:
    """Name everything that makes the verdict weaker than it looks."""
    found = [sentence for entry in report["defenses"] if (sentence := false_security(entry))]
    if names := [title(entry) for entry in report["defenses"] if not_learnt(entry)]:
        found.append(
            f"No attack has learnt from {', '.join(names)}: what it does not identify is not protected. Who "
            "can query the defence may get more: audit with --budget adaptive, which names what to train."
        )
    found += [sentence for entry in report["defenses"] for sentence in _rulers(entry)]
    found += report["notes"]
    if len(report["oracles"]) < 2:
        found.append(
            "Only one oracle judged identity. One oracle can be fooled by patterns that no human sees: train "
            "a second one of another architecture and input before trusting a low rate."
        )
    elif len({_sight(oracle) for oracle in report["oracles"]}) < 2:
        found.append(
            "All oracles have the same architecture and input, so that the same patterns may fool them all: "
            "train one of another --model.init_args.backbone or grey before trusting a low rate."
        )
    for oracle in report["oracles"]:
        if oracle["accuracy_on_originals"] < WEAK_ORACLE:
            found.append(
                f"Oracle {oracle['name']} names only {percent(oracle['accuracy_on_originals'])} of the "
                "original pictures: that a person is not named in a reconstruction says little. Train it "
                "better first."
            )
    for name, result in report["defenses"][0]["attacks"].items():
        if result["panel_any"]["value"] < WEAK_ATTACK:
            found.append(
                f"Attack {name} identifies only {percent(result['panel_any']['value'])} of the unprotected "
                "faces: it is too weak for protection against it to mean much."
            )
    if report["data"]["identities"] < FEW_PEOPLE:
        found.append(
            f"Only {report['data']['identities']} people: the intervals are narrower than they should be."
        )
    for entry in report["defenses"][1:]:
        if entry["worst_case"]["eval_acc"]["value"] == 0:
            people = report["data"]["identities"]
            found.append(
                f"No face was identified with {entry['label']}. An interval of 0 to 0 does not mean never: "
                f"with {people} people audited, up to about {percent(min(1.0, 3 / people))} of people could "
                "still be."
            )
    return found


def _rulers(entry: Report) -> list[str]:
    """What must be said of rulers that have not learnt from an entry's defence, and how they do."""
    found = []
    for name, own in entry.get("rulers", {}).items():
        if not own["learnt"]:
            way = "".join(f"\n  {line}" for line in own.get("train", []))
            found.append(
                f"Ruler {name} has not learnt from {title(entry)}: the {percent(own['top1']['value'])} that "
                "it names there are no figure of protection. "
                + (f"Train it, then audit again:{way}" if way else "Train it on features of this defence.")
            )
    return found


def _sight(oracle: Report) -> tuple[Any, Any]:
    """How an oracle sees: its backbone, and whether it sees in grey."""
    settings = oracle.get("settings", {})
    return settings.get("backbone"), settings.get("grey")


def limits(report: Report) -> list[str]:
    """Say in plain words what the audit does not show."""
    data = report["data"]
    plain = {name: result["eval_acc"]["value"] for name, result in report["defenses"][0]["attacks"].items()}
    white = plain.get("white_box", 0.0)
    weaker = [f"{name} ({percent(value)})" for name, value in plain.items() if value < white - WEAKER]
    strength = f" Weaker there than white_box ({percent(white)}): {', '.join(weaker)}." if weaker else ""
    found = [
        f"Only these attacks were tried: {', '.join(plain)}. A better one may identify more. How strong each "
        f"is shows in its figures on unprotected features.{strength}",
        "Identity is judged by trained recognisers (oracles), not by people. They learnt from other pictures "
        "of the same people; what only a human would recognise is not counted.",
        f"The oracles choose among {data['identities']} people. Among fewer, more would be named; among "
        "more, fewer.",
        "Several attacks and oracles have several guesses, so the worst case has its own, higher chance "
        "level: the rate at which reconstructions would be given the name of another person.",
        "The 95 % intervals cover the choice of people, not the luck of training or of the seed.",
        f"Utility is the task model's mean AUC over {len(report['defenses'][0]['utility']['per_attribute'])} "
        "attributes; other uses of the features were not measured.",
    ]
    budget = report["settings"].get("budget")
    if budget not in (None, "exhaustive"):
        found.append(f"The attacks are those of the budget {budget}; a larger one tries more and harder.")
    if any("tar" in result for result in report["defenses"][0]["attacks"].values()):
        found.append(
            "TAR at FAR 1 % compares a reconstruction with other pictures of the person, at the threshold "
            "that accepts 1 % of the pairs with somebody else; a matcher that sees nothing is at about 1 %."
        )
    for entry in report["defenses"]:
        if entry.get("retrains"):
            found.append(
                f"{entry['label']} retrains the {' and the '.join(entry['retrains'])}, so it cannot protect "
                "an unchanged backend, and its utility is that of its own nets."
            )
    if len(report["defenses"]) > 2:
        found.append(
            "The setting in the verdict was chosen on these same pictures, which flatters it a little."
        )
    if data["attributes_left_out"]:
        found.append(
            f"Left out of the mean AUC, having one class only: {', '.join(data['attributes_left_out'])}."
        )
    found.append(
        "This page shows faces of the private set, and what was recovered of them: share it accordingly."
    )
    return found
