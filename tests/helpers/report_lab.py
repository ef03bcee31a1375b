"""Reports that have learnt from every defence."""

from __future__ import annotations

from typing import Any


def adapted(report: dict[str, Any]) -> dict[str, Any]:
    """The same of attacks of which one has learnt from every defence."""
    for entry in report["defenses"]:
        entry["attacks"]["white_box"]["learnt"] = True
    return report
