"""The one interface of defences: pictures in, the features that leave the edge out."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from crafter_pl.data.store import (
    FORMAT_VERSION,
    MANIFEST,
    read_manifest,
    shard_done,
    shard_name,
    write_file,
    write_manifest,
    write_shard,
)
from crafter_pl.data.transport import TRANSPORTS, bytes_each
from crafter_pl.errors import UserError
from crafter_pl.memory import peak_memory_mb
from crafter_pl.stages.base import Stage, load_stage, read_checkpoint
from crafter_pl.stages.task import TaskModel

CRAFTERS = ("beta", "steps", "method", "critic", "precision", "refine_steps")  # of `--protect.*`, Crafter's
PROTECT = (*CRAFTERS, "transport")  # all that change what leaves the edge, but for the seed


class Defense(Stage):
    """A stage whose `predict` protects a split and writes the feature store.

    A subclass implements `protect` and `protection` (its settings in force), and holds the task model
    upstream.

    Class attributes:
        version: raised by hand whenever equal weights, settings and pictures give other features than before;
            stores, attackers' queries and what has learnt from them name it (tests/versions.py).
    """

    version: ClassVar[int] = 1

    def protect(self, images: Tensor, index: Tensor) -> Tensor:
        """Turns pictures into features that may leave the edge.

        Args:
            images: ``(N, 3, H, W)`` in [0, 1].
            index: the pictures' stable indices, int64 ``(N,)``.

        Returns:
            Features ``(N, C, h, w)``.
        """
        raise TypeError(f"{type(self).__name__} does not implement protect")

    def protection(self) -> dict[str, Any]:
        """The settings in force, for the manifest."""
        raise TypeError(f"{type(self).__name__} does not implement protection")

    def refuse_crafters_options(self, knob: str, own: tuple[str, ...] = ()) -> None:
        """For defences whose trade-off is set by `fit`, by the init argument ``knob``; ``own`` are theirs.

        Raises:
            UserError: `predict` was told to change what cannot be changed after training.
        """
        for name in CRAFTERS:
            if name not in own and self.protect_options.get(name) is not None:
                raise UserError(
                    f"--protect.{name} is Crafter's: the trade-off of {self.stage_name} is set in training "
                    f"(--model.init_args.{knob})"
                )

    def seed_in_force(self) -> int:
        """Seed of the keyed noise: the init argument, or what `predict` was told."""
        told = self.protect_options.get("seed")
        return int(self.hparams["seed"] if told is None else told)

    @property
    def transport(self) -> str:
        """How the features travel, one of `TRANSPORTS`: float32 unless told otherwise.

        Raises:
            UserError: `predict` was told of another.
        """
        told = self.protect_options.get("transport") or "float32"
        if told not in TRANSPORTS:
            raise UserError(f"transport {told!r} is unknown: choose from {', '.join(TRANSPORTS)}")
        return str(told)

    def in_force(self) -> dict[str, Any]:
        """The manifest's settings: `protection`, and how features travel if that is not in float32."""
        transport = {} if self.transport == "float32" else {"transport": self.transport}
        return {**self.protection(), **transport}

    def edge_module(self) -> nn.Module:
        """The encoder that runs on the edge: pictures -> unprotected features; attackers know it."""
        return self.task.net.encoder_module()

    def edge_graph(self) -> nn.Module | None:
        """`protect` as one net: what runs on a device that has no Python.

        Returns:
            Pictures ``(N, 3, S, S)`` in [0, 1], and where `edge_noise` is above 0 that many standard normal
            numbers for each, ``(N, edge_noise)``, -> features ``(N, C, h, w)``, with the settings in force.
            By default None: protecting is no single forward pass.
        """
        return None

    @property
    def edge_noise(self) -> int:
        """How many standard normal numbers `edge_graph` takes for each picture."""
        return 0

    def cloud_module(self) -> nn.Module:
        """The classifier that answers in the cloud: features -> logits; another where it is retrained."""
        return self.task.net.cloud

    @property
    def retrains(self) -> tuple[str, ...]:
        """What the defence changes of the backend: ``encoder``, ``cloud``, or nothing."""
        return ()

    def weights_hash(self) -> str:
        """SHA-256 over the own weights and the upstream files: with the settings in force, the defence."""
        upstream = sorted(digest for _, digest in self.upstream_files.values())
        digest = hashlib.sha256(json.dumps(upstream).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def task(self) -> TaskModel:
        """The frozen task model."""
        stage = self.upstream["task"]
        assert isinstance(stage, TaskModel)
        return stage

    def store_folder(self) -> Path:
        """Where the feature store goes: ``--protect.out``, or ``features/<split>-<name>`` of the run."""
        out = self.protect_options.get("out")
        if out:
            return Path(out)
        if self.run_dir is None:
            raise UserError("where should the feature store go? give --protect.out FOLDER")
        suffix = "" if self.transport == "float32" else f"-{self.transport}"
        name = self.protect_options.get("name") or self.store_name() + suffix
        return self.run_dir / "features" / f"{self.trainer.datamodule.predict_split}-{name}"  # type: ignore[attr-defined]

    def store_name(self) -> str:
        """Default name of a set of features with the settings in force."""
        return self.stage_name

    def on_predict_start(self) -> None:
        """Looks at the store that is there already: one of other settings or weights is refused."""
        self._folder = self.store_folder()
        self._timed, self._seconds = 0, 0.0
        self._plan = self._manifest()
        claim, manifest = self._folder / "fingerprint", self._folder / MANIFEST
        there = None
        if manifest.is_file():
            there = read_manifest(self._folder).get("fingerprint")
        elif claim.is_file():
            there = claim.read_text().strip()
        elif any(self._folder.glob("shard-*")):
            there = "unknown"
        if there not in (None, self._plan["fingerprint"]):
            raise UserError(
                f"{self._folder} holds features of other settings, checkpoints or versions of the defence; "
                "choose another --protect.out, or delete the folder"
            )
        if self.trainer.is_global_zero and not claim.is_file():
            write_file(claim, f"{self._plan['fingerprint']}\n".encode())

    def manifest(self, split_hash: str, split: str) -> dict[str, Any]:
        """What a manifest says of features that this defence makes, but for their count and shards."""
        return {
            "format_version": FORMAT_VERSION,
            "defense": self.stage_name,
            "version": self.version,
            "settings": self.in_force(),
            "encoder_sha256": self.upstream_files["task"][1],
            "split_hash": split_hash,
            "split": split,
            "shape": list(self.task.feature_shape),
            "dtype": self.transport,
            "seed": int(self.protection().get("seed", 0)),
            "defense_sha256": self.weights_hash(),
            "retrains": list(self.retrains),
        }

    def _manifest(self) -> dict[str, Any]:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        plan = {**self.manifest(data.split_hash, data.predict_split), "pictures": data.pictures}
        # What the shards depend on besides the pictures: all of that, and the batch size.
        text = json.dumps([plan, data.predict_batch_size])
        return {**plan, "fingerprint": hashlib.sha256(text.encode()).hexdigest()}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Protects one batch and writes its shard, unless that shard is there already."""
        number, index = int(batch["batch"]), batch["index"]
        if shard_done(self._folder, number, index.cpu()):
            return
        began = time.perf_counter()
        with torch.inference_mode(False), torch.enable_grad():
            features = self.protect(batch["image"], index)
        self._seconds += time.perf_counter() - began
        self._timed += len(index)
        write_shard(self._folder, number, features, index, self.transport)

    def on_predict_end(self) -> None:
        """Waits for all processes; the first one writes the manifest, which makes the store complete."""
        self.trainer.strategy.barrier("crafted")
        if not self.trainer.is_global_zero:
            return
        if (self._folder / MANIFEST).is_file() and not self._timed:
            print(f"{self._folder} is complete already", flush=True)
            return
        loader = self.trainer.datamodule.predict_dataloader()  # type: ignore[attr-defined]
        sizes = [len(loader.dataset.index_of(number)) for number in range(len(loader.dataset))]
        cost: dict[str, float | None] = {
            "seconds_per_image": self._seconds / self._timed if self._timed else None,
            "peak_memory_mb": peak_memory_mb(),
            "bytes_per_image": bytes_each(self._plan["shape"], self.transport),
        }
        shards = {shard_name(number): size for number, size in enumerate(sizes)}
        write_manifest(self._folder, {**self._plan, "count": sum(sizes), "shards": shards, "cost": cost})
        print(f"wrote {sum(sizes)} features to {self._folder}", flush=True)


def defenses() -> dict[str, type[Defense]]:
    """Every class of defence that has been imported, by its name."""
    return {cls.__name__: cls for cls in _subclasses(Defense)}


def load_defense(path: str | Path) -> Defense:
    """Rebuilds any defence from its checkpoint, frozen.

    Raises:
        UserError: the file is missing, damaged, or not of a defence.
    """
    checkpoint, found = read_checkpoint(path, "defense"), defenses()
    name = checkpoint.get("stage_class")
    if name not in found:
        raise UserError(f"{path} is a checkpoint of {name or 'something else'}, not of a defence")
    return load_stage(path, found[name], checkpoint)


def _subclasses(cls: type[Defense]) -> list[type[Defense]]:
    return [cls, *(deeper for sub in cls.__subclasses__() for deeper in _subclasses(sub))]
