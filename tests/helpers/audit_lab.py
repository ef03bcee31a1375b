"""A laboratory for audits: fakes whose every figure is known, and a function that audits them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from crafter_pl.answers import ATTRIBUTES
from crafter_pl.attacks.base import Attack, Target
from crafter_pl.audit import audit as audit_module
from crafter_pl.audit import bind, features, load
from crafter_pl.audit.audit import audit
from crafter_pl.audit.options import Options
from crafter_pl.data.store import write_manifest, write_shard
from crafter_pl.judges import judge

PEOPLE, PICTURES, SIZE = 6, 3, 8
IDENTITIES = [41, 7, 13, 99, 58, 20]  # raw numbers, in the order of the pictures
SHA, SPLIT_HASH = "e" * 64, "5" * 64


def templates() -> Tensor:
    """One flat colour a person, by ascending raw number, `(P, 3)`."""
    return torch.rand(PEOPLE, 3, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1


class FakeData:
    """Pictures are their person's colour with a little noise; two attributes, and one of a single class."""

    source, image_size, split_hash, private_people = "fake", SIZE, SPLIT_HASH, PEOPLE
    same_people = SPLIT_HASH.__eq__
    attribute_names = ("reddish", "noisy", "always")
    labels_kind, identities = "multilabel", "folder"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        identity = torch.tensor(IDENTITIES).repeat_interleave(PICTURES)
        colour = templates()[torch.searchsorted(torch.tensor(sorted(IDENTITIES)), identity)]
        noise = torch.rand(len(identity), 3, SIZE, SIZE, generator=generator) * 0.02
        image = colour[:, :, None, None] + noise
        red = image[:, 0].mean((1, 2))
        attributes = torch.stack([red > red.median(), torch.arange(len(red)) % 2 == 0, red > -1], 1).float()
        self.all = {"image": image, "attributes": attributes, "identity": identity}
        self.all["index"] = torch.randperm(len(identity), generator=generator) + 100

    def setup(self, stage: str) -> None:
        """Nothing to load."""

    def rows(self, part: str) -> dict[str, Tensor]:
        assert part == "private_test"
        return self.all


class FakeTask(torch.nn.Module):
    """The feature is the picture; the first attribute is read from it exactly, the others by luck."""

    feature_shape, answers = (3, SIZE, SIZE), ATTRIBUTES
    hparams = {"attribute_names": list(FakeData.attribute_names), "image_size": SIZE}  # noqa: RUF012

    def edge(self, images: Tensor) -> Tensor:
        return images

    def cloud(self, features: Tensor) -> Tensor:
        return features.mean((2, 3))


class FakeOracle(torch.nn.Module):
    """Names the person of the nearest colour; or, turned by `shift`, that of another: no use."""

    device = "cpu"

    def __init__(self, name: str, shift: int = 0, identities: list[int] | None = None) -> None:
        super().__init__()
        self.hparams = {"name": name, "identities": identities or sorted(IDENTITIES)[::-1], "width": 8}
        self.hparams |= {"image_size": SIZE, "backbone": name, "grey": False}
        self.shift = shift

    def scores(self, embeddings: Tensor) -> Tensor:
        return embeddings @ lifted(templates()).flip(0).roll(self.shift, 0).T

    def embed(self, images: Tensor) -> Tensor:
        return lifted(images.mean((2, 3)))


def lifted(colours: Tensor) -> Tensor:
    """Unit vectors `(N, 4)`, the nearer the nearer the colours `(N, 3)` are."""
    rest = (1 - (colours - 0.5).square().sum(1, keepdim=True)).sqrt()
    return torch.cat([colours - 0.5, rest], 1)


class Echo(Attack):
    """Shows the feature itself; remembers what it was handed, and can be told to stop after some batches."""

    def __init__(self, name: str = "echo", noise: float = 0.0, stop_after: int | None = None) -> None:
        self.name, self.noise, self.stop_after = name, noise, stop_after
        self.checkpoints = {}
        self.aims, self.prepared, self.seen = [], [], []  # bound copies share them

    def aim(self, target: Target | None) -> None:
        super().aim(target)
        self.aims.append(target)

    def prepare(self, device: str) -> None:
        self.prepared.append(device)

    def reconstruct(self, features: Tensor) -> Tensor:
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        self.seen.append(features)
        return (features + self.noise * torch.rand(features.shape)).clamp(0, 1)

    def settings(self) -> dict[str, Any]:
        return {"noise": self.noise}


class Blank(Echo):
    """Shows one person's colour, whatever the feature."""

    def reconstruct(self, features: Tensor) -> Tensor:
        super().reconstruct(features)
        return templates()[2][None, :, None, None].expand(len(features), 3, SIZE, SIZE)


def write_store(folder: Path, data: FakeData, features: Tensor, beta: float, **changes: Any) -> str:
    """A real store of these features, in a mixed order and two shards."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(3))
    parts = order.split(10)
    for number, rows in enumerate(parts):
        write_shard(folder, number, features[rows], data.all["index"][rows])
    manifest = {
        "format_version": 1, "defense": "crafter", "settings": {"beta": beta, "steps": 5}, "seed": 0,
        "encoder_sha256": SHA, "split_hash": SPLIT_HASH, "split": "private_test",
        "shape": [3, SIZE, SIZE], "dtype": "float32",
        "count": len(features), "cost": {"seconds_per_image": 0.5, "peak_memory_mb": 70.0},
        "shards": {f"shard-{number:05d}.safetensors": len(rows) for number, rows in enumerate(parts)},
    }  # fmt: skip
    write_manifest(folder, manifest | changes)
    return str(folder)


def make_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Data, two stores, and stages that are found by their file's name."""
    stages = {"task": FakeTask(), "colour": FakeOracle("colour"), "turned": FakeOracle("turned", shift=1)}
    splits: dict[str, str] = {}
    monkeypatch.setattr(load, "load_stage", lambda path, cls: stages[Path(path).name])
    monkeypatch.setattr(load, "load_oracle", lambda path: stages[Path(path).name])
    for module in (load, bind):
        monkeypatch.setattr(module, "trained_on", lambda path: splits.get(Path(path).name, SPLIT_HASH))
    for module in (load, features, judge, audit_module):
        digest = lambda path: SHA if Path(path).name == "task" else f"of {Path(path).name}"  # noqa: E731
        monkeypatch.setattr(module, "sha256", digest)
    data = FakeData()
    images = data.all["image"]
    swapped = images.roll(PICTURES, 0)  # everybody's feature shows the next person
    half = torch.where((torch.arange(len(images)) % 2 == 0)[:, None, None, None], images, swapped)
    stores = [write_store(tmp_path / "b2", data, half, 2.0), write_store(tmp_path / "b1", data, swapped, 1.0)]
    base = {
        "data": data,
        "features": stores,
        "task_ckpt": str(tmp_path / "task"),
        "batch_size": 5,
    }
    base |= {"runs_dir": str(tmp_path / "runs"), "experiment": "e", "bootstrap": 50, "device": "cpu"}
    out = tmp_path / "runs" / "e" / "audit"

    def file(name: str) -> str:
        (tmp_path / name).touch()
        return str(tmp_path / name)

    base["oracles"] = [file("colour"), file("turned")]
    file("task")

    def run(**changes: Any) -> dict[str, Any]:
        if "oracles" in changes:
            changes["oracles"] = [one if "/" in one else file(one) for one in changes["oracles"]]
        page = audit(Options(**(base | {"attacks": [Echo(), Blank("blank")]} | changes)))
        assert page == out / "report.html" and page.is_file()
        return json.loads((out / "report.json").read_text())

    return SimpleNamespace(
        run=run, out=out, data=data, stages=stages, splits=splits, base=base, tmp=tmp_path, half=half
    )
