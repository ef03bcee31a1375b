"""The building blocks of the page: its style, and figures as cells of tables."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from crafter_pl.audit.verdict import (
    Report,
    adaptive,
    false_security,
    not_learnt,
    percent,
    percent_range,
    title,
)

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dde2e8; --tint: #f5f7f9; --red: #b22222; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1rem 1rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.35rem; margin: .5rem 0 0; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, li { max-width: 46rem; }
.soft { color: var(--soft); font-size: .9rem; margin: .2rem 0 .6rem; }
.verdict { border-left: 4px solid var(--ink); background: var(--tint); padding: .8rem 1rem;
  margin: 1rem 0 .6rem; font-size: 1.12rem; max-width: none; }
.warning { border-left: 4px solid var(--red); background: #fdf3f3; padding: .6rem 1rem; margin: .5rem 0;
  max-width: none; }
.warning code { overflow-wrap: anywhere; font-size: .8rem; }
.flag { border-left: 4px solid var(--red); background: var(--red); color: #fff; padding: .8rem 1rem;
  margin: .5rem 0; font-weight: 600; max-width: none; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; }
.pair img.plot { flex: 1 1 20rem; width: auto; min-width: 0; max-width: 32rem; }
.box { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .7rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; background: var(--tint); }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; z-index: 1; }
thead th { white-space: normal; min-width: 5.4rem; }
thead th:first-child { background: var(--tint); }
td.wrap { white-space: normal; }
td small { display: block; color: var(--soft); font-size: .78rem; }
td.bad, td.bad small, td small.bad { color: var(--red); }
.grid { width: auto; }
.grid th, .grid td { padding: .25rem; text-align: center; border: 0; font-size: .78rem; line-height: 1.25; }
.grid thead th { min-width: 76px; }
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
  .grid thead th { min-width: 62px; }
}
"""


def inline(data: bytes) -> str:
    """A PNG file as the source of an `<img>`."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def words(name: str) -> str:
    """A name from the data or the settings, made readable and safe."""
    return escape(name.replace("_", " "), quote=True)


def rate(figure: dict[str, Any], css: str = "") -> str:
    """A rate with its interval as a cell."""
    return f'<td class="{css}">{percent(figure["value"])}<small>{percent_range(figure["ci95"])}</small></td>'


def number(figure: dict[str, Any], digits: int = 3) -> str:
    """A figure with its interval as a cell."""
    low, high = figure["ci95"]
    return f"<td>{figure['value']:.{digits}f}<small>{low:.{digits}f} to {high:.{digits}f}</small></td>"


def table(head: list[str], rows: list[str]) -> str:
    """A table that scrolls sideways where it is too wide; `rows` are cells in a string."""
    cells = "".join(f"<th>{words(text)}</th>" for text in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="box"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def heading(entry: Report, below: str = "") -> str:
    """The first cell of a row: what the features are, what must not be missed, and what stands `below`."""
    retrains = ", ".join(entry.get("retrains", []))
    marks = f"<small>retrains {words(retrains)}</small>" if retrains else ""
    if below:
        return f"<td>{words(title(entry))}{marks}<small>{below}</small></td>"
    if false_security(entry):
        marks += '<small class="bad">false security</small>'
    if mark := not_learnt(entry):
        marks += f'<small class="bad">{mark}</small>'
    return f"<td>{words(title(entry))}{marks}</td>"


def known(report: Report, name: str) -> str:
    """An attack's name; one that knows the defence is marked."""
    return f"{name} (adaptive)" if name in adaptive(report) and "adaptive" not in name else name


def told(entry: Report, result: Report, name: str) -> str:
    """What stands below the features in a row of one attack or ruler: its name, and whether it has learnt."""
    mark = (
        ""
        if entry["name"] == "none" or result["learnt"]
        else '</small><small class="bad">has not learnt from this defence'
    )
    return words(name) + mark
