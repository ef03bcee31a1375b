"""What stages that adapt to a defence share (A1): rounds of queries and training."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.queries import Queries, QueriesDataModule, QueryPlan
from crafter_pl.defenses.base import load_defense
from crafter_pl.errors import UserError
from crafter_pl.stages import Stage, Upstream

_WARMUP = 0.1  # share of a round in which the learning rate rises


class AdaptiveStage(Stage):
    """Goes on training an attack on (crafted feature, picture) pairs of public faces, in rounds.

    It alternates, for any number of rounds: query the defence for ``pairs_per_round`` more public faces, then
    train ``epochs_per_round`` epochs on all pairs so far; the learning rate rises and falls once a round.
    An epoch of Lightning is one pass over the pairs, so ``--trainer.max_epochs`` is rounds x
    epochs_per_round, and a longer training that goes on with ``--ckpt_path last`` adds rounds. Pairs are kept
    (`Queries`) and shared by all attacks on the same defence. After each round, and before the first,
    ``checkpoints/round-NN.ckpt`` keeps the attack as it is then.

    Any number of processes trains the same nets: ``batch_size`` is that of all together, and batch norm is
    over the global batch (`nets.synchronised`).

    A subclass has among its init arguments `defense_ckpt` and `protect` (its options), `pairs_per_round`,
    `epochs_per_round`, `val_pairs`, `batch_size`, `shard_size`, `queries_dir` and `lr`, and implements
    `reconstruct` and the training. One that makes no pictures has, instead of `reconstruct`, a
    `validation_step` and a `draw_round` of its own.

    Raises:
        UserError: a number is below its `lowest`, or the checkpoint is not of a defence.
    """

    defense = Upstream(load_defense)  # the frozen defence under attack
    data_class = QueriesDataModule
    # No figure picks the checkpoint: the last round is the attack, the blurriest guess may err the least.

    def __init__(self) -> None:
        super().__init__()
        self.options = self.defense.options(**(self.hparams["protect"] or {}))
        # What is attacked, in a feature store's words: `AdaptedAttack` compares.
        self.against = {
            "defense": self.defense.stage_name,
            "version": self.defense.version,
            "settings": self.defense.settings(self.options),
            "defense_sha256": self.defense.weights_hash(),
        }
        h = self.hparams
        self.plan = QueryPlan(h["pairs_per_round"], h["epochs_per_round"], h["val_pairs"], h["batch_size"])

    @classmethod
    def upgraded(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """In earlier versions the defence was called `crafter`, and its options were arguments themselves."""
        if "crafter" not in checkpoint.get("upstream", {}):
            return checkpoint
        given = dict(checkpoint["hyper_parameters"])
        if (method := given.pop("method", None)) not in (None, "crafter"):
            raise UserError(
                f"it was trained against Crafter's method {method!r}, which is a defence of its own now: "
                "train that defence, and the attack against it"
            )
        options = {
            name: given.pop(name, None)
            for name in ("beta", "steps", "critic", "precision", "refine_steps", "transport")
        }
        options["seed"] = given.pop("defense_seed", None)
        given["protect"] = {name: value for name, value in options.items() if value is not None}
        return {
            **checkpoint,
            "hyper_parameters": given,
            "upstream": {
                "defense" if key == "crafter" else key: e for key, e in checkpoint["upstream"].items()
            },
        }

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> pictures ``(N, 3, S, S)`` in [0, 1]; in eval mode."""
        raise TypeError(f"{type(self).__name__} does not implement reconstruct")

    # Rounds and their data

    def setup(self, stage: str) -> None:
        """Finds the queries; nothing is crafted yet.

        Raises:
            UserError: the epochs are not whole rounds, there are too few public faces for them, or the
                processes cannot share a batch.
        """
        super().setup(stage)
        data = self.data
        if self.hparams["queries_dir"] is None and self.experiment_dir is None:
            raise UserError("where should queries be kept? give --model.init_args.queries_dir FOLDER")
        self.queries = Queries(
            self.hparams["queries_dir"] or Path(self.experiment_dir or "", "queries"),
            self.defense,
            self.options,
            data,
            seed=data.order_seed,
            shard_size=self.hparams["shard_size"],
        )
        assert isinstance(data, QueriesDataModule)
        data.ask(self.queries, self.plan)
        if stage != "fit":
            return
        epochs, each = int(self.trainer.max_epochs or -1), self.plan.epochs_per_round
        if not self.trainer.fast_dev_run and (epochs < 1 or epochs % each):  # type: ignore[attr-defined]
            raise UserError(
                f"--trainer.max_epochs {epochs} is not a number of whole rounds of {each} epochs: give, for "
                f"example, {max(epochs // each, 1) * each}, or another --model.init_args.epochs_per_round"
            )
        needed, there = self.plan.pairs(epochs), len(data.dataset("public_train"))
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

    @property
    def epochs_done(self) -> int:
        """Whole epochs behind, also within Lightning's hooks at an epoch's end."""
        return self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]

    # Training

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """`new_optimizer`; `on_train_batch_start` sets its learning rate."""
        return self.new_optimizer()

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The learning rate at this place of the round: a linear rise, then a cosine fall."""
        each = self.hparams["epochs_per_round"]
        place = (self.current_epoch % each + batch_idx / self.trainer.num_training_batches) / each
        fall = 0.5 + 0.5 * math.cos(math.pi * (place - _WARMUP) / (1 - _WARMUP))
        lr = self.hparams["lr"] * max(min(place / _WARMUP, fall) if place < _WARMUP else fall, 1e-3)
        for group in self.optimizers().param_groups:  # type: ignore[union-attr]
            group["lr"] = lr

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Mean squared pixel error on crafted features of held-out public people."""
        error = (self.reconstruct(batch["features"]) - batch["image"]).square().mean()
        self.log("val/l2", error, prog_bar=True, batch_size=len(batch["image"]))

    def on_train_start(self) -> None:
        """Keeps the attack as it was before the first round."""
        if self.epochs_done == 0:
            self._keep_round()

    def on_train_epoch_end(self) -> None:
        """Logs how many pairs are known; keeps the attack of every round."""
        self.log("train/pairs", float(self.plan.pairs(self.epochs_done)))
        if self.epochs_done % self.hparams["epochs_per_round"] == 0:
            self._keep_round()

    def _keep_round(self) -> None:
        """Writes ``round-NN.ckpt``, and draws what the attack makes."""
        if self.run_dir is not None:
            file = self.run_dir / "checkpoints" / f"round-{self.plan.rounds(self.epochs_done):02d}.ckpt"
            self.trainer.save_checkpoint(file, weights_only=True)
        self.draw_round()

    @torch.no_grad()
    def draw_round(self) -> None:
        """Draws held-out faces above what is made of their crafted features."""
        features, images, _ = self.queries.batch(min(8, self.hparams["val_pairs"]), self.val_split)
        self.eval()
        made = self.reconstruct(features.to(next(self.parameters())))
        self.train()
        self.log_grid(
            "original_reconstruction", torch.cat([images.to(self.device), made]), step=self.epochs_done
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the attack has adapted to, and how far: rounds, pairs and epochs."""
        super().on_save_checkpoint(checkpoint)
        epochs = self.epochs_done
        checkpoint["adaptation"] = {
            **self.against,
            "round": self.plan.rounds(epochs),
            "pairs": self.plan.pairs(epochs),
            "epochs": epochs,
        }
