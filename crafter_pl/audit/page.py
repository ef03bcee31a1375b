"""The report as one HTML page: no other file, no script, nothing fetched.

It opens from disk and is made to be read on a phone as well as on a desktop.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from crafter_pl.audit.cells import STYLE, heading, inline, known, number, rate, table, told, words
from crafter_pl.audit.front import BUDGET, TRAINING, curve
from crafter_pl.audit.grouptable import section
from crafter_pl.audit.plots import Column, Gallery, png
from crafter_pl.audit.verdict import Report, false_security, limits, marked, percent, title

PEOPLE_IN_ROUNDS = 4  # a grid of every round of every defence would hide the rest of the page


def _ruler(report: Report) -> str:
    """The oracles' accuracy on originals: it stands wherever their verdicts are used."""
    names = ", ".join(f"{words(o['name'])} {percent(o['accuracy_on_originals'])}" for o in report["oracles"])
    panel = percent(report["panel"]["accuracy_on_originals"]["value"])
    return f"Of the original pictures the oracles name: {names}; any of them {panel}."


def _summary(report: Report) -> str:
    attacks = list(report["defenses"][0]["attacks"])
    both = any(entry.get("false_security") for entry in report["defenses"])
    trained = any(TRAINING in entry for entry in report["defenses"])
    rows = []
    for entry in report["defenses"]:
        bad = "bad" if entry["name"] == "none" or false_security(entry) else ""
        cells = [heading(entry), number(entry["utility"]["mean_auc"])]
        if trained:
            cells.append(number(entry[TRAINING]["mean_auc"]) if TRAINING in entry else "<td>-</td>")
        cells.append(rate(entry["worst_case"]["eval_acc"], bad))
        cells += [rate(entry["worst_case_basic"]["eval_acc"])] if both else []
        cells.append(f"<td>{percent(entry['worst_case']['chance'])}</td>")
        cells += [rate(entry["attacks"][name]["eval_acc"]) for name in attacks]
        seconds = entry["cost"]["seconds_per_image"]
        cells.append(f"<td>{'-' if seconds is None else f'{seconds:.3g} s'}</td>")
        rows.append("".join(cells))
    chance = f"<td>{percent(report['data']['chance'])}</td>" * len(attacks)
    blank = "<td></td>" * (3 if both else 2)
    auc = "<td>0.500</td>" * (2 if trained else 1)
    rows.append(f"<td>chance of one guess</td>{auc}{blank}{chance}<td></td>")
    names = [known(report, name) for name in attacks]
    basic = ["without adaptive attacks"] if both else []
    scenario = ["mean AUC, training scenario"] if trained else []
    return table(
        ["features", "mean AUC", *scenario, "worst case", *basic, "by chance", *names, "cost a face"], rows
    )


def _side_by_side(report: Report, pictures: dict[str, bytes]) -> str:
    """The section that compares defences; empty where there is one alone."""
    if "pareto" not in pictures:
        return ""
    found = report["areas"]
    retrains = {curve(entry): entry.get("retrains", []) for entry in report["defenses"]}
    names = {"none": "unprotected", "all": "the best of all"}
    rows = []
    for name in found["inference"]:
        cells = [f"<td>{words(marked(names.get(name, name), retrains.get(name, [])))}</td>"]
        cells += [rate(own[name]) if name in own else "<td>-</td>" for own in found.values()]
        rows.append("".join(cells))
    training = (
        " In the training scenario the cloud's classifier has learned from such features of other pictures "
        "of the same people; an attacker sees the same in both."
        if "training" in found
        else ""
    )
    return f"""<h2>Defences side by side</h2>
<p class="soft">Hollow: the defence retrains the backend. Grey: the Pareto front, the lowest worst case for
every utility. The area is the worst case's mean over all losses of mean AUC from 0 to {BUDGET:g} that one may
be willing to bear, each time by the setting that protects best of those one can afford; low is
better.{training}</p>
<img class="plot" style="max-width: 64rem" alt="Worst case over mean AUC, a line a defence"
src="{inline(pictures["pareto"])}">
{table(["defence", *(f"area under its curve, {name}" for name in found)], rows)}
"""


def _details(report: Report) -> str:
    oracles = [oracle["name"] for oracle in report["oracles"]]
    pairs = any("tar" in result for result in report["defenses"][0]["attacks"].values())
    rows = []
    for entry in report["defenses"]:
        for name, result in entry["attacks"].items():
            cells = [heading(entry, told(entry, result, known(report, name)))]
            cells += [rate(result["by_oracle"][oracle]) for oracle in oracles]
            cells += [rate(result[key]) for key in ("panel_any", "eval_acc_top5", "panel_any_top5")]
            cells += [rate(result["tar"])] if pairs else []
            cells += [number(result["identity_similarity"]), number(result["ssim"])]
            cells += [number(result["psnr"], 1)]
            cells += [number(result["lpips"])] if "lpips" in result else []
            rows.append("".join(cells))
    lpips = ["LPIPS"] if any("lpips" in r for r in report["defenses"][0]["attacks"].values()) else []
    tar = ["TAR at FAR 1 %"] if pairs else []
    fixed = ["any oracle", "top 5", "any, top 5", *tar, "identity similarity", "SSIM", "PSNR dB"]
    return table(["features, attack", *oracles, *fixed, *lpips], rows)


def _history(report: Report) -> str:
    """Every moment of every attack that adapts, as figures."""
    rows = []
    for entry in report["defenses"]:
        for name, points in entry.get("history", {}).items():
            for point in points:
                cells = [heading(entry, words(name)), f"<td>{point['round']}</td><td>{point['pairs']}</td>"]
                cells.append(f"<td>{point['epochs']}</td>")
                cells += [rate(point["eval_acc"]), rate(point["panel_any"])]
                cells += [number(point["identity_similarity"]), number(point["ssim"])]
                rows.append("".join(cells))
    head = ["round", "pairs", "epochs", "Eval Acc", "any oracle", "identity similarity", "SSIM"]
    return table(["features, attack", *head], rows)


def _adaptation(report: Report, gallery: Gallery, pictures: dict[str, bytes]) -> str:
    """The section about attacks that adapt; empty where none has a history."""
    plots = "".join(
        f'<img class="plot" alt="Faces identified and identity similarity over {what}" '
        f'src="{inline(pictures[name])}">'
        for name, what in (("adaptation_round", "rounds"), ("adaptation_pairs", "queried pairs"))
        if name in pictures
    )
    if not plots:
        return ""
    grids = "".join(
        f"<details{'' if number else ' open'}><summary>{words(attack)} on {words(features)}, round by round"
        f"</summary>{_grid(own)}</details>"
        for number, ((attack, features), own) in enumerate(gallery.adapting(PEOPLE_IN_ROUNDS).items())
    )
    return f"""<h2>Under attack: what adapting gains</h2>
<p class="soft">An attack that can query the defence with public faces retrains on what comes back. Bars: 95 %
intervals over people. A defence that holds stays flat.</p>
<div class="pair">{plots}</div>
{grids}
<details><summary>The figures of each round</summary>{_history(report)}</details>
"""


def _rulers(report: Report) -> str:
    """The section about rulers that hold private labels; empty without any."""
    if not report.get("rulers"):
        return ""
    rows = []
    for entry in report["defenses"]:
        for name, result in entry.get("rulers", {}).items():
            head = heading(entry, told(entry, result, name))
            rows.append(f"{head}{rate(result['top1'])}{rate(result['top5'])}")
    rows.append(f"<td>chance of one guess</td><td>{percent(report['data']['chance'])}</td><td></td>")
    return f"""<h2>Rulers that hold private labels</h2>
<p class="soft">They learnt to name the private people straight from features of other pictures of them. Who
has named photographs of the users gets this. The worst case is over attackers who have none. One that has not
learnt from a defence shows nothing of its protection.</p>
{table(["features, ruler", "names the person", "among its top 5"], rows)}
"""


def _oracles(report: Report) -> str:
    rows = []
    for oracle in report["oracles"]:
        accuracy = rate({"value": oracle["accuracy_on_originals"], "ci95": oracle["ci95"]})
        tar = rate(oracle["tar_on_originals"]) if "tar_on_originals" in oracle else "<td>-</td>"
        rows.append(f"<td>{words(oracle['name'])}</td>{accuracy}{tar}<td>{oracle['people']}</td>")
    rows.append(f"<td>any of them</td>{rate(report['panel']['accuracy_on_originals'])}<td></td><td></td>")
    return table(["oracle", "names originals", "TAR at FAR 1 %", "people known"], rows)


def _attributes(report: Report) -> str:
    rows = []
    for name in report["defenses"][0]["utility"]["per_attribute"]:
        figures = [number(entry["utility"]["per_attribute"][name]) for entry in report["defenses"]]
        rows.append(f"<td>{words(name)}</td>{''.join(figures)}")
    return table(["attribute", *(title(entry) for entry in report["defenses"])], rows)


def _below(column: Column) -> str:
    """The caption of a column under its attack."""
    if column.moment is None:
        return column.features
    return f"round {column.moment['round']}, {column.moment['pairs']} pairs"


def _grid(gallery: Gallery) -> str:
    attacks = [column.attack for column in gallery.columns]
    starts = [i == 0 or attacks[i] != attacks[i - 1] for i in range(len(attacks))]
    css = ["first" if start else "" for start in starts]
    groups = "".join(
        f'<th class="first" colspan="{attacks.count(name)}">{words(name)}</th>'
        for name, start in zip(attacks, starts, strict=True)
        if start
    )
    heads = zip(css, gallery.columns, strict=True)
    names = "".join(f'<th class="{place}">{words(_below(column))}</th>' for place, column in heads)
    rows = []
    for i, original in enumerate(gallery.originals):
        cells = [f'<td><img alt="person {i + 1}, original" src="{inline(png(original))}"></td>']
        for place, column in zip(css, gallery.columns, strict=True):
            word = "named" if column.named[i] else "not named"
            alt = words(f"person {i + 1}, {column.attack}, {_below(column)}: {word}")
            image = f'<img alt="{alt}" src="{inline(png(column.images[i]))}">'
            cells.append(
                f'<td class="{place} named">{image}named</td>'
                if column.named[i]
                else f'<td class="{place}">{image}</td>'
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = f'<tr><th rowspan="2">original</th>{groups}</tr><tr>{names}</tr>'
    body = f"<thead>{head}</thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="box"><table class="grid">{body}</table></div>'


def _json(summary: str, content: Any) -> str:  # noqa: ANN401 (any JSON)
    text = escape(json.dumps(content, indent=1))
    return f'<details><summary>{summary}</summary><div class="box"><pre>{text}</pre></div></details>'


def _lines(text: str) -> str:
    """A warning with the commands that it names, each on a line of its own."""
    head, *commands = text.split("\n")
    return escape(head) + "".join(f"<br><code>{escape(line.strip())}</code>" for line in commands)


def render(report: Report, gallery: Gallery, pictures: dict[str, bytes]) -> str:
    """Write the whole page.

    Args:
        report: the content of report.json.
        gallery: pictures of a few people.
        pictures: PNG files by name: `tradeoff`, and `adaptation_round` and `adaptation_pairs` if there are.
    """
    data = report["data"]
    curves = "".join(f"<p>{escape(curve['sentence'])}</p>" for curve in report["curves"])
    flags = {false_security(entry) for entry in report["defenses"]}
    warnings = "".join(
        f'<p class="{"flag" if text in flags else "warning"}">{_lines(text)}</p>'
        for text in report["warnings"]
    )
    items = "".join(f"<li>{escape(text)}</li>" for text in limits(report))
    kept = ("settings", "data", "attacks", "rulers", "oracles")
    ruler, first = _ruler(report), words(report["oracles"][0]["name"])
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>crafter_pl audit: {words(data["source"])}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>What the features hide, and what they keep</h1>
<p class="soft">Data: {words(data["source"])}, {data["images"]} pictures of {data["identities"]} people,
{data["image_size"]} pixels wide, split {escape(data["split_hash"][:12])}.</p>
<p class="verdict">{escape(report["verdict"])}</p>
<p class="soft">{ruler}</p>
{warnings}
<h2>Utility and privacy</h2>
<p class="soft">Mean AUC: high is better. The other rates are faces identified, low is better: in the
worst case by any attack and any oracle, for a single attack as {first} names them. Below each figure its 95 %
interval over people. Count: {data["images"]} faces, {data["identities"]} people.</p>
{_summary(report)}
<h2>Trade-off</h2>
{curves}<p class="soft">Hollow: unprotected. Bars: 95 % intervals over people. A larger β keeps more of the
feature.</p>
<img class="plot" alt="Faces identified over mean AUC, one point a setting"
src="{inline(pictures["tradeoff"])}">
{_side_by_side(report, pictures)}{_adaptation(report, gallery, pictures)}<h2>What an attacker sees</h2>
<p class="soft">The first picture of people taken at even steps through the list, not chosen by result. Red
frame: some oracle of the panel names the person in this reconstruction. {ruler}</p>
{_grid(gallery)}
<h2>Each attack and oracle</h2>
<p class="soft">Identity similarity is the cosine of {first}'s embeddings of reconstruction and original (the
paper's "FSIM"). Top 5: {first}'s five best guesses. {ruler}</p>
{_details(report)}
{section(report)}{_rulers(report)}<h2>The oracles</h2>
{_oracles(report)}
<h2>Limits</h2>
<ul>{items}</ul>
<h2>More</h2>
<details><summary>AUC of each attribute</summary>{_attributes(report)}</details>
{_json("Settings of the audit", {key: report[key] for key in kept if key in report})}
{_json("Settings of the defences", {title(entry): entry["settings"] for entry in report["defenses"]})}
<p class="soft">Written by crafter_pl {escape(report["version"])}, {escape(report["created"])}. The same
numbers: report.json and table.csv beside this page.</p>
</body>
</html>
"""
    return page.replace(" %", "&nbsp;%")
