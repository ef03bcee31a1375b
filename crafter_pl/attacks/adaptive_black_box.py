"""Adaptive black-box inversion: the decoder is retrained on public faces that the defence has crafted."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from crafter_pl.attacks.base import Attack, Target
from crafter_pl.attacks.black_box import BlackBox
from crafter_pl.attacks.queries import Queries
from crafter_pl.commands import command
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.keyed import keyed_uniform
from crafter_pl.defenses.base import Defense, load_defense
from crafter_pl.errors import UserError
from crafter_pl.nets import synchronised
from crafter_pl.stages.base import Stage, load_stage, read_checkpoint

SHOWN = 8
_WARMUP = 0.1  # share of a round in which the learning rate rises


class AdaptiveBlackBox(Stage):
    """Goes on training the black-box decoder on (crafted feature, picture) pairs of public faces (A1).

    It alternates, for any number of rounds: query the defence for ``pairs_per_round`` more public faces, then
    train ``epochs_per_round`` epochs on all pairs so far; the learning rate rises and falls once a round.
    An epoch of Lightning is one pass over the pairs, so ``--trainer.max_epochs`` is rounds x
    epochs_per_round, and a longer training that goes on with ``--ckpt_path last`` adds rounds. Pairs are kept
    (`Queries`) and shared by all attacks on the same defence. After each round, and before the first,
    ``checkpoints/round-NN.ckpt`` keeps the decoder as it is then.

    Any number of processes trains the same decoder: ``batch_size`` is that of all together, and batch norm is
    over the global batch.

    Args:
        crafter_ckpt: the defence under attack, of any class; null finds the experiment's own Crafter.
        black_box_ckpt: the decoder to start from; null finds the experiment's own.
        beta: of the defence that is attacked, as ``predict --protect.beta`` (null: as it was trained).
        steps: the same for ``--protect.steps``.
        method: the same for ``--protect.method``.
        critic: the same for ``--protect.critic``.
        defense_seed: the same for ``--protect.seed``.
        pairs_per_round: public faces that are queried in each round.
        epochs_per_round: passes over all pairs so far in each round (paper: 70 and more in all).
        val_pairs: held-out public faces that are queried once; their error picks ``best.ckpt``.
        batch_size: pairs a step, over all processes.
        shard_size: faces crafted at a time.
        lr: the highest learning rate of each round (AdamW).
        weight_decay: of AdamW.
        loss: ``l2`` (paper) or ``l1`` (sharper).
        feature_weight: weight of ``|Enc(decoded) - Enc(X)|^2 / d``, which rewards detail that the encoder can
            see; 0 is the paper's.
        clean_share: share of the pairs whose feature is the unprotected one, ``Enc(X)``.
        queries_dir: folder of crafted pairs; null is ``queries`` beside the run.
    """

    stage_name = "adaptive_black_box"
    monitor = "val/l2"
    mode = "min"

    def __init__(
        self,
        crafter_ckpt: str | None = None,
        black_box_ckpt: str | None = None,
        beta: float | None = None,
        steps: int | None = None,
        method: str | None = None,
        critic: str | None = None,
        defense_seed: int | None = None,
        pairs_per_round: int = 256,
        epochs_per_round: int = 10,
        val_pairs: int = 64,
        batch_size: int = 32,
        shard_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        loss: str = "l1",
        feature_weight: float = 0.1,
        clean_share: float = 0.0,
        queries_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        least = {
            "pairs_per_round": 1,
            "epochs_per_round": 1,
            "val_pairs": 1,
            "batch_size": 1,
            "shard_size": 1,
        }
        least |= {"weight_decay": 0, "feature_weight": 0, "clean_share": 0}
        for key, value in least.items():
            if self.hparams[key] < value:
                raise UserError(
                    f"{key} is {self.hparams[key]}; give at least {value} (--model.init_args.{key})"
                )
        if loss not in ("l1", "l2") or clean_share > 1 or lr <= 0:
            raise UserError(
                f"loss {loss!r} must be l1 or l2, clean_share {clean_share} at most 1 and lr {lr} above 0 "
                "(--model.init_args.*)"
            )
        self.use("crafter", crafter_ckpt, load_defense)
        self.defense.protect_options = {
            "beta": beta,
            "steps": steps,
            "method": method,
            "critic": critic,
            "seed": defense_seed,
        }
        black_box = self.use("black_box", black_box_ckpt, BlackBox)
        read, protected = black_box.upstream_files["task"], self.defense.upstream_files["task"]
        if read[1] != protected[1]:
            raise UserError(
                f"the decoder {black_box_ckpt} reads features of {read[0]}, the defence {crafter_ckpt} "
                f"protects those of {protected[0]}: give two checkpoints of one task model"
            )
        self.net = synchronised(copy.deepcopy(black_box.net)).requires_grad_(True).train()
        # What is attacked, in a feature store's words: `AdaptiveDecoderAttack` compares.
        self.against = {
            "defense": self.defense.stage_name,
            "settings": self.defense.protection(),
            "defense_sha256": self.defense.weights_hash(),
        }
        self._val: list[dict[str, Tensor]] | None = None

    @property
    def defense(self) -> Defense:
        """The frozen defence under attack, with the settings in force."""
        stage = self.upstream["crafter"]
        assert isinstance(stage, Defense)
        return stage

    # Rounds and their data

    def setup(self, stage: str) -> None:
        """Finds the queries; nothing is crafted yet.

        Raises:
            UserError: the epochs are not whole rounds, there are too few public faces for them, or the
                processes cannot share a batch.
        """
        super().setup(stage)
        data: FacesDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        folder = self.hparams["queries_dir"]
        if folder is None:
            if self.experiment_dir is None:
                raise UserError("where should queries be kept? give --model.init_args.queries_dir FOLDER")
            folder = self.experiment_dir / "queries"
        self.queries = Queries(
            folder, self.defense, data, seed=data.seed, shard_size=self.hparams["shard_size"]
        )
        if stage != "fit":
            return
        epochs, each = int(self.trainer.max_epochs or -1), self.hparams["epochs_per_round"]
        if not self.trainer.fast_dev_run and (epochs < 1 or epochs % each):  # type: ignore[attr-defined]
            raise UserError(
                f"--trainer.max_epochs {epochs} is not a number of whole rounds of {each} epochs: give, for "
                f"example, {max(epochs // each, 1) * each}, or another --model.init_args.epochs_per_round"
            )
        needed, there = self.pairs(epochs), len(data.dataset("public_train"))
        if needed > there:
            raise UserError(
                f"{epochs} epochs need {needed} pairs, and public_train has {there} pictures: give a smaller "
                "--model.init_args.pairs_per_round, or fewer epochs"
            )
        if self.hparams["batch_size"] % self.trainer.world_size:
            raise UserError(
                f"{self.trainer.world_size} processes cannot share a batch of {self.hparams['batch_size']}: "
                "give a multiple (--model.init_args.batch_size)"
            )
        self.trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]  # the pairs grow

    def round_of(self, epochs: int) -> int:
        """The round, from 1, in which ``epochs`` epochs end; 0 before the first."""
        return -(-epochs // int(self.hparams["epochs_per_round"]))

    def pairs(self, epochs: int) -> int:
        """How many pairs are queried in the course of ``epochs`` epochs."""
        return self.round_of(epochs) * int(self.hparams["pairs_per_round"])

    @property
    def epochs_done(self) -> int:
        """Whole epochs behind, also within Lightning's hooks at an epoch's end."""
        return self.trainer.fit_loop.epoch_progress.current.processed

    def train_loader(self, data: FacesDataModule) -> DataLoader[dict[str, Tensor]]:
        """Crafts what the round lacks, the work shared by all processes, and deals the pairs so far."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        pairs = self.pairs(self.current_epoch + 1)
        self.queries.ensure(pairs, rank=rank, world=world, barrier=self.trainer.strategy.barrier)
        return self.queries.loader(
            pairs,
            batch_size=self.hparams["batch_size"] // world,
            epoch=self.current_epoch,
            seed=data.seed,
            rank=rank,
            world=world,
        )

    def val_loader(self, data: FacesDataModule) -> DataLoader[dict[str, Tensor]]:
        """The held-out pairs, all of them on every process."""
        if self._val is None:
            count, split = self.hparams["val_pairs"], self.val_split
            rank, world = self.trainer.global_rank, self.trainer.world_size
            self.queries.ensure(count, split, rank, world, self.trainer.strategy.barrier)
            features, images, _ = self.queries.batch(count, split)
            size = self.hparams["batch_size"]
            self._val = [
                {"features": part, "image": pictures}
                for part, pictures in zip(features.split(size), images.split(size), strict=True)
            ]
        return DataLoader(self._val, batch_size=None)  # type: ignore[arg-type]  # a list is a map-style data set

    # Training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; `on_train_batch_start` sets its learning rate."""
        return torch.optim.AdamW(
            self.net.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The learning rate at this place of the round: a linear rise, then a cosine fall."""
        each = self.hparams["epochs_per_round"]
        place = (self.current_epoch % each + batch_idx / self.trainer.num_training_batches) / each
        rise = place / _WARMUP
        fall = 0.5 + 0.5 * math.cos(math.pi * (place - _WARMUP) / (1 - _WARMUP))
        lr = self.hparams["lr"] * max(min(rise, fall) if place < _WARMUP else fall, 1e-3)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = lr

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Pixel loss, and the feature loss where it has a weight."""
        images, features, edge = batch["image"], batch["features"], self.defense.edge_module()
        if self.hparams["clean_share"] > 0:
            draw = keyed_uniform(self.current_epoch, "clean", batch["index"].cpu()).to(images.device)
            with torch.no_grad():
                clean = edge(images).to(features.dtype)
            features = torch.where((draw < self.hparams["clean_share"]).view(-1, 1, 1, 1), clean, features)
        decoded = self.net(features)
        error = decoded - images
        loss = error.abs().mean() if self.hparams["loss"] == "l1" else error.square().mean()
        if self.hparams["feature_weight"] > 0:
            with torch.no_grad():
                seen = edge(images)
            loss = loss + self.hparams["feature_weight"] * (edge(decoded) - seen).square().mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Mean squared pixel error on crafted features of held-out public people."""
        error = (self.net(batch["features"]) - batch["image"]).square().mean()
        self.log("val/l2", error, prog_bar=True, batch_size=len(batch["image"]))

    def on_train_start(self) -> None:
        """Keeps the decoder as it was before the first round."""
        if self.epochs_done == 0:
            self._keep_round()

    def on_train_epoch_end(self) -> None:
        """Logs how many pairs are known; keeps the decoder of every round."""
        self.log("train/pairs", float(self.pairs(self.epochs_done)))
        if self.epochs_done % self.hparams["epochs_per_round"] == 0:
            self._keep_round()

    def _keep_round(self) -> None:
        """Writes ``round-NN.ckpt`` and draws held-out faces above what is made of their crafted features."""
        if self.run_dir is not None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            file = self.run_dir / "checkpoints" / f"round-{self.round_of(self.epochs_done):02d}.ckpt"
            self.trainer.save_checkpoint(file, weights_only=True)
        features, images, _ = self.queries.batch(min(SHOWN, self.hparams["val_pairs"]), self.val_split)
        self.net.eval()
        with torch.no_grad():
            made = self.net(features.to(self.device))
        self.net.train()
        self.log_grid(
            "original_reconstruction", torch.cat([images.to(self.device), made]), step=self.epochs_done
        )

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> pictures ``(N, 3, S, S)`` in [0, 1]."""
        return self.net(features)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the decoder has adapted to, and how far: rounds, pairs and epochs."""
        super().on_save_checkpoint(checkpoint)
        epochs = self.epochs_done
        progress = {"round": self.round_of(epochs), "pairs": self.pairs(epochs), "epochs": epochs}
        checkpoint["adaptation"] = {**self.against, **progress}


class AdaptiveDecoderAttack(Attack):
    """The retrained decoder as an attack: for each defence the one that was trained against exactly that one.

    It looks among the experiment's finished stages whose folder begins with the attack's name, for example
    ``adaptive_black_box`` and ``adaptive_black_box-beta1``; of several that fit it takes the one that has
    learned from most pairs. On unprotected features, where there is nothing to adapt to, it is the black-box
    decoder that adaptation starts from.

    Args:
        ckpt: checkpoint of an `AdaptiveBlackBox`, such as one of its rounds; null finds it as said.
        name: how the report calls it, and how the folders begin.
        black_box_ckpt: the decoder for unprotected features; null finds the experiment's own.
        batch_size: features decoded at a time.
    """

    def __init__(
        self,
        ckpt: str | None = None,
        name: str = "adaptive_black_box",
        black_box_ckpt: str | None = None,
        batch_size: int = 64,
    ) -> None:
        self.name, self.ckpt, self.batch_size = name, ckpt, batch_size
        self.checkpoints = {"black_box": black_box_ckpt}
        self.experiment_dir: Path | None = None
        self._loaded: tuple[str, BlackBox | AdaptiveBlackBox] | None = None

    def resolve(self, experiment_dir: str | Path) -> None:
        """Remembers where to look."""
        super().resolve(experiment_dir)
        self.basic = self.checkpoint("black_box")
        self.experiment_dir = Path(experiment_dir)

    def aim(self, target: Target | None) -> None:
        """Chooses the decoder for the features to come.

        Raises:
            UserError: none was trained against this defence; the message says how to train it.
        """
        super().aim(target)
        if target is None:
            self.checkpoints = {"black_box": self.basic}
        else:
            self.checkpoints = {self.name: self._choose(target)}

    def _choose(self, target: Target) -> str:
        if self.ckpt is not None:
            if not _fits(read_checkpoint(self.ckpt).get("adaptation"), target):
                raise UserError(
                    f"attack {self.name}: {self.ckpt} was not trained against {_what(target)}; give the "
                    "checkpoint that was, or none at all to let it be found"
                )
            return self.ckpt
        assert self.experiment_dir is not None, "resolve() comes before aim()"
        found = []
        for folder in sorted(self.experiment_dir.glob(f"{self.name}*")):
            best = folder / "checkpoints" / "best.ckpt"
            if (folder / "summary.json").is_file() and best.is_file():
                adaptation = read_checkpoint(best).get("adaptation")
                if _fits(adaptation, target):
                    found.append((adaptation["pairs"], str(best)))
        if not found:
            raise UserError(
                f"attack {self.name}: no decoder in {self.experiment_dir} was trained against "
                f"{_what(target)}; train it first: {self._train(target)}"
            )
        return max(found, key=lambda entry: entry[0])[1]

    def _train(self, target: Target) -> str:
        """The command that trains the decoder against this defence."""
        assert self.experiment_dir is not None
        experiment, settings = self.experiment_dir.name, target.manifest["settings"]
        config = Path("configs", experiment, "attacks/adaptive_black_box.yaml")
        args = [
            "fit",
            "--config",
            str(config if config.is_file() else "configs/attacks/adaptive_black_box.yaml"),
        ]
        args += ["--experiment", experiment] if experiment != "synthetic" else []
        runs_dir = str(self.experiment_dir.parent)
        args += ["--runs_dir", runs_dir] if runs_dir != "runs" else []
        told = {
            key: settings[key]
            for key in ("beta", "steps", "method", "critic")
            if settings.get(key) is not None
        }
        beta = f"-beta{settings['beta']:g}" if settings.get("beta") is not None else ""
        args += ["--name", f"{self.name}-{target.manifest['defense']}{beta}"]
        args += [part for key, value in told.items() for part in (f"--model.init_args.{key}", str(value))]
        if target.manifest["defense"] != "crafter":
            file = self.experiment_dir / target.manifest["defense"] / "checkpoints" / "best.ckpt"
            args += ["--model.init_args.crafter_ckpt", str(file)]
        return command(args)

    def prepare(self, device: str) -> None:
        """Loads the chosen decoder."""
        self.device = device
        self._net()

    def _net(self) -> BlackBox | AdaptiveBlackBox:
        """The decoder for the features that the attack is aimed at."""
        stage = next(iter(self.checkpoints))
        path = self.checkpoint(stage)
        if self._loaded is None or self._loaded[0] != path:
            cls: type[BlackBox] | type[AdaptiveBlackBox] = (
                BlackBox if stage == "black_box" else AdaptiveBlackBox
            )
            self._loaded = (path, load_stage(path, cls).to(self.device))
        return self._loaded[1]

    @torch.no_grad()
    def reconstruct(self, features: Tensor) -> Tensor:
        """Decodes features ``(N, C, h, w)`` into pictures in [0, 1]."""
        net = self._net()
        return torch.cat(
            [net.reconstruct(part.to(self.device)).cpu() for part in features.split(self.batch_size)]
        )

    def settings(self) -> dict[str, Any]:
        """The decoder's are in its checkpoint."""
        return {}


def _fits(adaptation: dict[str, Any] | None, target: Target) -> bool:
    """Whether a decoder has adapted to exactly this defence: class, settings but for the seed, weights."""
    if adaptation is None:
        return False
    digest = target.manifest.get("defense_sha256")
    if digest is None and target.defense is not None:
        digest = target.defense.weights_hash()
    return (
        adaptation["defense"] == target.manifest["defense"]
        and _seedless(adaptation["settings"]) == _seedless(target.manifest["settings"])
        and adaptation["defense_sha256"] == digest
    )


def _seedless(settings: dict[str, Any]) -> str:
    return json.dumps({key: value for key, value in settings.items() if key != "seed"}, sort_keys=True)


def _what(target: Target) -> str:
    beta = target.manifest["settings"].get("beta")
    return str(target.manifest["defense"]) + ("" if beta is None else f" (beta {beta:g})") + " as it is"
