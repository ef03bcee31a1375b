"""The report as one HTML page: no other file, no script, nothing fetched.

It opens from disk and is made to be read on a phone as well as on a desktop.
"""

from __future__ import annotations

import base64
import json
from html import escape
from typing import Any

from crafter_pl.audit.plots import Gallery, png
from crafter_pl.audit.verdict import Report, limits, percent, percent_range, title

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dde2e8; --tint: #f5f7f9; --red: #b22222; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem 1rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.35rem; margin: .5rem 0 0; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
p, li { max-width: 46rem; }
.soft { color: var(--soft); font-size: .9rem; margin: .2rem 0 .6rem; }
.verdict { border-left: 4px solid var(--ink); background: var(--tint); padding: .8rem 1rem;
  margin: 1rem 0 .6rem; font-size: 1.12rem; max-width: none; }
.warning { border-left: 4px solid var(--red); background: #fdf3f3; padding: .6rem 1rem; margin: .5rem 0;
  max-width: none; }
.box { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; background: var(--tint); }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; z-index: 1; }
thead th:first-child { background: var(--tint); }
td small { display: block; color: var(--soft); font-size: .78rem; }
td.bad, td.bad small { color: var(--red); }
.grid { width: auto; }
.grid th, .grid td { padding: .25rem; text-align: center; border: 0; font-size: .78rem; line-height: 1.25; }
.grid th { white-space: normal; min-width: 76px; }
.grid th:first-child, .grid td:first-child { text-align: center; padding-right: .6rem; }
.grid thead tr:last-child th { position: static; background: var(--tint); }
.grid .first { border-left: 10px solid #fff; }
.grid img { width: 68px; height: 68px; display: block; margin: 0 auto .15rem; image-rendering: pixelated;
  border-radius: 3px; }
.grid .named { color: var(--red); }
.grid .named img { outline: 3px solid var(--red); }
img.plot { width: 100%; max-width: 40rem; height: auto; display: block; }
pre { font-size: .8rem; padding: .8rem; margin: 0; }
summary { cursor: pointer; padding: .4rem 0; }
@media (max-width: 30rem) {
  body { padding: .6rem .7rem 3rem; }
  th, td { padding: .35rem .5rem; }
  th:first-child, td:first-child { white-space: normal; max-width: 7.5rem; }
  .grid img { width: 56px; height: 56px; }
  .grid th { min-width: 62px; }
}
"""


def _inline(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _words(name: str) -> str:
    """A name from the data or the settings, made readable and safe."""
    return escape(name.replace("_", " "), quote=True)


def _rate(figure: dict[str, Any], css: str = "") -> str:
    return f'<td class="{css}">{percent(figure["value"])}<small>{percent_range(figure["ci95"])}</small></td>'


def _number(figure: dict[str, Any], digits: int = 3) -> str:
    low, high = figure["ci95"]
    return f"<td>{figure['value']:.{digits}f}<small>{low:.{digits}f} to {high:.{digits}f}</small></td>"


def _table(head: list[str], rows: list[str]) -> str:
    cells = "".join(f"<th>{_words(text)}</th>" for text in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="box"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _ruler(report: Report) -> str:
    """The oracles' accuracy on originals: it stands wherever their verdicts are used."""
    names = ", ".join(f"{_words(o['name'])} {percent(o['accuracy_on_originals'])}" for o in report["oracles"])
    panel = percent(report["panel"]["accuracy_on_originals"]["value"])
    return f"Of the original pictures the oracles name: {names}; any of them {panel}."


def _summary(report: Report) -> str:
    attacks = list(report["defenses"][0]["attacks"])
    rows = []
    for entry in report["defenses"]:
        cells = [f"<td>{_words(title(entry))}</td>", _number(entry["utility"]["mean_auc"])]
        cells.append(_rate(entry["worst_case"]["eval_acc"], "bad" if entry["name"] == "none" else ""))
        cells.append(f"<td>{percent(entry['worst_case']['chance'])}</td>")
        cells += [_rate(entry["attacks"][name]["eval_acc"]) for name in attacks]
        seconds = entry["cost"]["seconds_per_image"]
        cells.append(f"<td>{'-' if seconds is None else f'{seconds:.3g} s'}</td>")
        rows.append("".join(cells))
    chance = f"<td>{percent(report['data']['chance'])}</td>" * len(attacks)
    rows.append(f"<td>chance of one guess</td><td>0.500</td><td></td><td></td>{chance}<td></td>")
    return _table(["features", "mean AUC", "worst case", "by chance", *attacks, "cost a face"], rows)


def _details(report: Report) -> str:
    oracles = [oracle["name"] for oracle in report["oracles"]]
    rows = []
    for entry in report["defenses"]:
        for name, result in entry["attacks"].items():
            cells = [f"<td>{_words(title(entry))}<small>{_words(name)}</small></td>"]
            cells += [_rate(result["by_oracle"][oracle]) for oracle in oracles]
            cells += [_rate(result["panel_any"]), _rate(result["eval_acc_top5"])]
            cells += [_number(result["identity_similarity"]), _number(result["ssim"])]
            cells += [_number(result["psnr"], 1)]
            cells += [_number(result["lpips"])] if "lpips" in result else []
            rows.append("".join(cells))
    lpips = ["LPIPS"] if any("lpips" in r for r in report["defenses"][0]["attacks"].values()) else []
    fixed = ["any oracle", "top 5", "identity similarity", "SSIM", "PSNR dB"]
    return _table(["features, attack", *oracles, *fixed, *lpips], rows)


def _oracles(report: Report) -> str:
    rows = []
    for oracle in report["oracles"]:
        accuracy = _rate({"value": oracle["accuracy_on_originals"], "ci95": oracle["ci95"]})
        rows.append(f"<td>{_words(oracle['name'])}</td>{accuracy}<td>{oracle['people']}</td>")
    rows.append(f"<td>any of them</td>{_rate(report['panel']['accuracy_on_originals'])}<td></td>")
    return _table(["oracle", "names originals", "people known"], rows)


def _attributes(report: Report) -> str:
    rows = []
    for name in report["defenses"][0]["utility"]["per_attribute"]:
        figures = [_number(entry["utility"]["per_attribute"][name]) for entry in report["defenses"]]
        rows.append(f"<td>{_words(name)}</td>{''.join(figures)}")
    return _table(["attribute", *(title(entry) for entry in report["defenses"])], rows)


def _grid(gallery: Gallery) -> str:
    attacks = [column.attack for column in gallery.columns]
    starts = [i == 0 or attacks[i] != attacks[i - 1] for i in range(len(attacks))]
    css = ["first" if start else "" for start in starts]
    groups = "".join(
        f'<th class="first" colspan="{attacks.count(name)}">{_words(name)}</th>'
        for name, start in zip(attacks, starts, strict=True)
        if start
    )
    heads = zip(css, gallery.columns, strict=True)
    names = "".join(f'<th class="{place}">{_words(column.features)}</th>' for place, column in heads)
    rows = []
    for i, original in enumerate(gallery.originals):
        cells = [f'<td><img alt="person {i + 1}, original" src="{_inline(png(original))}"></td>']
        for place, column in zip(css, gallery.columns, strict=True):
            word = "named" if column.named[i] else "not named"
            alt = _words(f"person {i + 1}, {column.attack}, {column.features}: {word}")
            image = f'<img alt="{alt}" src="{_inline(png(column.images[i]))}">'
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


def render(report: Report, gallery: Gallery, plot: bytes) -> str:
    """Write the whole page.

    Args:
        report: the content of report.json.
        gallery: pictures of a few people.
        plot: the trade-off plot, a PNG file.
    """
    data = report["data"]
    curves = "".join(f"<p>{escape(curve['sentence'])}</p>" for curve in report["curves"])
    warnings = "".join(f'<p class="warning">{escape(text)}</p>' for text in report["warnings"])
    items = "".join(f"<li>{escape(text)}</li>" for text in limits(report))
    ruler, first = _ruler(report), _words(report["oracles"][0]["name"])
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>crafter_pl audit: {_words(data["source"])}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>What the features hide, and what they keep</h1>
<p class="soft">Data: {_words(data["source"])}, {data["images"]} pictures of {data["identities"]} people,
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
<img class="plot" alt="Faces identified over mean AUC, one point a setting" src="{_inline(plot)}">
<h2>What an attacker sees</h2>
<p class="soft">The first picture of people taken at even steps through the list, not chosen by result. Red
frame: some oracle of the panel names the person in this reconstruction. {ruler}</p>
{_grid(gallery)}
<h2>Each attack and oracle</h2>
<p class="soft">Identity similarity is the cosine of {first}'s embeddings of reconstruction and original (the
paper's "FSIM"). Top 5: {first}'s five best guesses. {ruler}</p>
{_details(report)}
<h2>The rulers</h2>
{_oracles(report)}
<h2>Limits</h2>
<ul>{items}</ul>
<h2>More</h2>
<details><summary>AUC of each attribute</summary>{_attributes(report)}</details>
{_json("Settings of the audit", {key: report[key] for key in ("settings", "data", "attacks", "oracles")})}
{_json("Settings of the defences", {title(entry): entry["settings"] for entry in report["defenses"]})}
<p class="soft">Written by crafter_pl {escape(report["version"])}, {escape(report["created"])}. The same
numbers: report.json and table.csv beside this page.</p>
</body>
</html>
"""
    return page.replace(" %", "&nbsp;%")
