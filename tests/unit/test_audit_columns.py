"""A figure of one's own in the report: one line, and it is everywhere."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from audit_lab import Echo, make_lab

from crafter_pl.audit import judge
from crafter_pl.audit.columns import COLUMNS, Column, mean
from crafter_pl.audit.show import tables


def test_a_column_is_in_the_json_the_table_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = mean(lambda seen: (seen.images - seen.originals).square().flatten(1).mean(1).sqrt())
    for module in (judge, tables):
        monkeypatch.setattr(module, "COLUMNS", (*COLUMNS, Column("rms", error, "RMS error", 3)))
    lab = make_lab(tmp_path, monkeypatch)
    none, strong, _ = lab.run(attacks=[Echo()])["defenses"]
    assert none["attacks"]["echo"]["rms"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    value = strong["attacks"]["echo"]["rms"]["value"]
    assert value > 0.05, "everybody's feature shows the next person"
    rows = list(csv.DictReader((lab.out / "table.csv").open()))
    assert float(rows[1]["rms"]) == value and rows[1]["rms_low"] and "rms[colour]" not in rows[1]
    page = (lab.out / "report.html").read_text()
    assert "<th>RMS error</th>" in page and f"<td>{value:.3f}<small>" in page


def test_every_key_is_there_once() -> None:
    assert len({column.key for column in COLUMNS}) == len(COLUMNS)
