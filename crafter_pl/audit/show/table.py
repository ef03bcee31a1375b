"""One table for the terminal, CSV, Markdown, LaTeX and (by `macros.html.j2`) HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from crafter_pl.audit.show.sentences import percent, percent_range
from crafter_pl.metrics import Estimate


@dataclass(frozen=True)
class Cell:
    """What stands in a cell.

    Attributes:
        text: the figure or name.
        interval: in brackets behind it; in HTML below it.
        notes: further lines below it, in HTML alone.
        warnings: likewise, in red.
        css: class of the cell in HTML.
    """

    text: str
    interval: str = ""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    css: str = ""

    def __str__(self) -> str:
        return f"{self.text} ({self.interval})" if self.interval else self.text


def rate(figure: Estimate, css: str = "") -> Cell:
    """A share in per cent, with its interval."""
    return Cell(percent(figure.value), percent_range(figure), css=css)


def number(figure: Estimate, digits: int | None = 3) -> Cell:
    """A figure with its interval; without digits a share in per cent."""
    if digits is None:
        return rate(figure)
    return Cell(f"{figure.value:.{digits}f}", f"{figure.low:.{digits}f} to {figure.high:.{digits}f}")


@dataclass(frozen=True)
class Table:
    """A head and rows of cells; what is no `Cell` is shown as its text, None as nothing."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]]) -> Table:
        """A table of named values, an estimate in columns of its own; what a record lacks is empty."""
        flat = [dict(_columns(record)) for record in records]
        head = list(dict.fromkeys(name for row in flat for name in row))
        return cls(head, [[row.get(name) for name in head] for row in flat])

    def _lines(self) -> list[list[str]]:
        return [list(self.head), *(["" if one is None else str(one) for one in row] for row in self.rows)]

    def text(self) -> str:
        """For the terminal: the first column to the left, the others to the right."""
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        cells = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        rows = [[line[0].ljust(widths[0]), *row[1:]] for line, row in zip(lines, cells, strict=True)]
        return "\n".join("  ".join(row).rstrip() for row in rows)

    def csv(self) -> str:
        """Comma-separated values."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.head, *self.rows])
        return buffer.getvalue()

    def markdown(self) -> str:
        """A table of Markdown."""
        head, *rows = self._lines()
        return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows])

    def latex(self) -> str:
        """A table for a paper that uses the package booktabs."""
        head, *rows = (" & ".join(_escaped(cell) for cell in line) + r" \\" for line in self._lines())
        begin = rf"\begin{{tabular}}{{l{'r' * (len(self.head) - 1)}}}"
        return "\n".join([begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    return text.replace("_", r"\_").replace("%", r"\%").replace("&", r"\&")


def _columns(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """An estimate as its value and both ends of its interval, and what else it has."""
    for name, value in record.items():
        if not isinstance(value, Estimate):
            yield name, value
            continue
        yield from ((name, value.value), (f"{name}_low", value.low), (f"{name}_high", value.high))
        for more in fields(value)[3:]:
            own = getattr(value, more.name)
            yield f"{name}_{more.name}", " ".join(map(str, own)) if isinstance(own, list) else own
