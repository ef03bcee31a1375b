"""Reports made by hand, as report.json has them, and what reads a page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

from crafter_pl.audit.record import from_json
from crafter_pl.audit.schema import Report
from crafter_pl.audit.show.gallery import Column, Gallery
from crafter_pl.audit.show.page import write_report
from crafter_pl.audit.show.sentences import completed

ATTACKS = ("black_box", "white_box")
ORACLES = ("colour", "grey")


def F(value: float, spread: float = 0.04) -> dict[str, Any]:
    return {"value": value, "ci95": [value - spread, value + spread]}


def fake_entry(name: str, beta: float | None, auc: float, rate: float) -> dict[str, Any]:
    def result(scale: float) -> dict[str, Any]:
        found = {"eval_acc": F(rate * scale), "eval_acc_top5": F(min(1, 1.6 * rate * scale))}
        found |= {"by_oracle": {"colour": F(rate * scale), "grey": F(rate * scale * 0.8)}}
        found |= {
            "panel_any": F(min(1, rate * scale * 1.2)),
            "panel_any_top5": F(min(1, rate * scale * 1.8)),
            "identity_similarity": F(0.2 + rate * scale / 2),
        }
        found |= {"identity_similarity_by_oracle": {oracle: F(0.4) for oracle in ORACLES}}
        return found | {"ssim": F(0.4 + 0.3 * rate), "psnr": F(15 + 5 * rate, 0.3)}

    attacks = {"black_box": result(0.9), "white_box": result(1.0)}
    for own in attacks.values():
        own["learnt"] = name == "none"
    entry: dict[str, Any] = {
        "name": name,
        "label": "none" if name == "none" else f"{name} (beta {beta:g})",
        "family": name,
        "beta": beta,
        "settings": {} if beta is None else {"beta": beta, "steps": 80},
        "utility": {
            "mean_auc": F(auc, 0.012),
            "per_attribute": {"glasses": F(auc), "long_hair": F(auc - 0.03)},
        },
        "attacks": attacks,
        "worst_case": {"eval_acc": F(min(1.0, rate * 1.25)), "chance": 0.045},
        "cost": {"seconds_per_image": 0.0 if name == "none" else 1.1, "peak_memory_mb": 900.0},
    }
    if name != "none":
        entry["change"] = {
            "mean_auc": F(auc - 0.912, 0.004),
            "worst_case_eval_acc": F(rate * 1.25 - 0.85, 0.05),
        }
    return entry


def fake_report(
    points: tuple[tuple[float, float, float], ...] = ((0.5, 0.88, 0.2), (1.0, 0.9, 0.3), (2, 0.907, 0.45)),
) -> dict:
    entries = [fake_entry("none", None, 0.912, 0.68)]
    entries += [fake_entry("crafter", beta, auc, rate) for beta, auc, rate in points]
    data = {"source": "synthetic", "split_hash": "ab" * 32, "image_size": 32, "identities": 60, "images": 240}
    oracle = {"accuracy_on_originals": 0.93, "ci95": [0.9, 0.96], "people": 60}
    oracles = [{"name": name, **oracle, "settings": {"grey": name == "grey"}} for name in ORACLES]
    return {
        "schema": 1,
        "created": "2026-11-23 12:00 UTC",
        "version": "0.1.0",
        "data": data | {"chance": 1 / 60, "attributes_left_out": ["hat <b>"]},
        "oracles": oracles,
        "panel": {"accuracy_on_originals": F(0.97, 0.02)},
        "attacks": {name: {"name": name, "settings": {"steps": 300}} for name in ATTACKS},
        "defenses": entries,
        "notes": [],
        "settings": {"seed": 0, "bootstrap": 1000},
    }


def under_attack(report: dict[str, Any]) -> dict[str, Any]:
    """The same with an attack that adapts, its rounds, a ruler, verification, and a defence that retrains."""
    report["attacks"] |= {"adaptive_black_box": {"name": "adaptive_black_box", "adaptive": True}}
    report["rulers"] = {"feature_to_id": {"name": "feature_to_id"}}
    for oracle in report["oracles"]:
        oracle["tar_on_originals"] = F(0.9)
    for number, entry in enumerate(report["defenses"]):
        basic = entry["worst_case"]["eval_acc"]["value"]
        rate = min(1.0, basic + (0.3 if number == 2 else 0.01))
        entry["worst_case_basic"] = dict(entry["worst_case"])
        entry["worst_case"] = {"eval_acc": F(rate), "chance": 0.07}
        adapted = {"eval_acc": F(rate * 0.9), "learnt": True}
        entry["attacks"]["adaptive_black_box"] = {**entry["attacks"]["black_box"], **adapted}
        for result in entry["attacks"].values():
            result |= {"tar": F(0.3), "tar_by_oracle": {oracle: F(0.3) for oracle in ORACLES}}
        entry["rulers"] = {"feature_to_id": {"top1": F(0.77), "top5": F(0.9), "learnt": number < 2}}
        entry["retrains"] = ["encoder", "cloud"] if number == 3 else []
        if not number:
            continue
        entry["false_security"] = {
            "flag": number == 2,
            "basic": F(basic),
            "adaptive": F(rate),
            "gain": F(rate - basic, 0.02),
            "gain_beyond_chance": F(rate - basic - 0.02, 0.02),
            "strongest": "adaptive_black_box",
        }
        entry["history"] = {
            "adaptive_black_box": [
                {
                    "round": n,
                    "pairs": 256 * n,
                    "epochs": 10 * n,
                    **entry["attacks"]["black_box"],
                    "eval_acc": F(0.1 * number + (0.06 * n if number == 2 else 0.005 * n)),
                }
                for n in range(5)
            ]
        }
    return report


def fake_gallery(report: dict[str, Any], people: int = 6, size: int = 32) -> Gallery:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(people, 3, 4, 4, generator=generator)
    originals = torch.nn.functional.interpolate(base, size=(size, size), mode="bicubic").clamp(0, 1)
    columns = []
    for attack in report["attacks"]:
        for i, entry in enumerate(report["defenses"]):
            images = torch.nn.functional.avg_pool2d(originals, 2 ** min(i, 3)) if i else originals * 0.9
            images = torch.nn.functional.interpolate(images, size=(size, size))
            columns.append(Column(attack, _title(entry), images, [(i + j) % 3 == 0 for j in range(people)]))
    rounds = []
    for entry in report["defenses"]:
        for attack, points in entry.get("history", {}).items():
            for point in points:
                moment = {key: point[key] for key in ("round", "pairs", "epochs")}
                images = torch.nn.functional.avg_pool2d(originals, 2 ** (3 - min(point["round"], 3)))
                images = torch.nn.functional.interpolate(images, size=(size, size))
                rounds.append(Column(attack, _title(entry), images, [False] * people, moment))
    return Gallery(originals, columns, rounds)


def _title(entry: dict[str, Any]) -> str:
    return "unprotected" if entry["name"] == "none" else entry["label"]


def made(plain: dict[str, Any]) -> Report:
    """The report that these values are written as."""
    return completed(from_json(Report, plain))


def write(folder: Path, plain: dict[str, Any], people: int = 6) -> Path:
    """Writes all files of a report; returns its page."""
    return write_report(folder, made(plain), fake_gallery(plain, people))


class Page(HTMLParser):
    """Collects what a page fetches, and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img", "br", "input"):
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag
