"""Adversarial learning: encoder and classifier trained against a decoder (the paper's main rival)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MultilabelAUROC

from crafter_pl.defenses.base import Defense
from crafter_pl.errors import UserError
from crafter_pl.nets import build_decoder
from crafter_pl.stages.augment import flip
from crafter_pl.stages.task import TaskModel, mean_auc


class AdversarialLearning(Defense):
    """Encoder and classifier trained to solve the task and to spoil what a decoder makes of the features.

    The game, on public faces, is
    ``min over (Enc, f) of (1 - lambda) L_task - lambda L_rec``, ``min over Dec of L_rec``, with
    ``L_task`` the binary cross entropy of ``f(Enc(X))`` and
    ``L_rec = |Dec(Enc(X)) - X|^2 / |mean(X) - X|^2``, the squared error as a share of what guessing the
    batch's mean face costs: 1 means that the decoder has learned nothing, and lambda means the same whatever
    the pictures' contrast is. Each batch gives the decoder ``decoder_steps`` updates, then encoder and
    classifier one.

    The defence protects against the decoder that it was trained with. A decoder that is trained for the
    finished encoder recovers much of what that one misses (the paper's "false security"). Unlike Crafter it
    changes the backend: edge encoder *and* cloud classifier are its own.

    On several processes: ``--trainer.strategy ddp_find_unused_parameters_true``.

    Args:
        task_ckpt: the task model from which encoder and classifier start; null finds the experiment's own.
        lambda_: weight of the decoder's error against the task, in [0, 1) (paper: 0.1, 0.5, 0.8).
        lr: Adam's learning rate of encoder and classifier.
        decoder: the adversary, ``residual`` or ``paper``.
        width: its first width.
        decoder_lr: its Adam's learning rate (paper's decoders: 1e-3).
        decoder_steps: its updates a batch.
        restart_epochs: every so many epochs the decoder starts again from nothing, so that the encoder does
            not only learn to evade one decoder; 0: never.
    """

    stage_name = "adversarial_learning"

    def __init__(
        self,
        task_ckpt: str | None = None,
        lambda_: float = 0.5,
        lr: float = 5e-4,
        decoder: str = "residual",
        width: int = 48,
        decoder_lr: float = 1e-3,
        decoder_steps: int = 1,
        restart_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 0 <= lambda_ < 1 or decoder_steps < 1 or restart_epochs < 0:
            raise UserError(
                f"lambda_ {lambda_} must be in [0, 1), decoder_steps {decoder_steps} at least 1, "
                f"restart_epochs {restart_epochs} at least 0 (--model.init_args.*)"
            )
        self.automatic_optimization = False
        task = self.use("task", task_ckpt, TaskModel)
        self.net = copy.deepcopy(task.net).requires_grad_(True).train()
        self.adversary = self._fresh_decoder()
        self.auc = MultilabelAUROC(
            num_labels=len(task.hparams["attribute_names"]), average="none", thresholds=None
        )

    def _fresh_decoder(self) -> nn.Module:
        h = self.hparams
        return build_decoder(
            h["decoder"], self.task.feature_shape, self.task.hparams["image_size"], h["width"]
        )

    # ---- fit ----------------------------------------------------------------------------------------------
    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """Adam for encoder and classifier, and for the decoder."""
        return (
            torch.optim.Adam(self.net.parameters(), lr=self.hparams["lr"]),
            torch.optim.Adam(self.adversary.parameters(), lr=self.hparams["decoder_lr"]),
        )

    def on_train_epoch_start(self) -> None:
        """Starts the decoder again where its period is over; the same one on every process."""
        period = self.hparams["restart_epochs"]
        if not period or not self.current_epoch or self.current_epoch % period:
            return
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.current_epoch)  # not the GPUs, too
            self.adversary.load_state_dict(self._fresh_decoder().state_dict())
        self.optimizers()[1].optimizer.state.clear()  # type: ignore[index]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The decoder's updates, then one of encoder and classifier."""
        defender, attacker = self.optimizers()  # type: ignore[attr-defined]
        images, weight = flip(batch["image"]), self.hparams["lambda_"]
        with torch.no_grad():
            features = self.net.encode(images)
        with self.toggled_optimizer(attacker):
            for _ in range(self.hparams["decoder_steps"]):
                error = relative_error(self.adversary(features), images)
                attacker.zero_grad()
                self.manual_backward(error)
                attacker.step()
        with self.toggled_optimizer(defender):
            features = self.net.encode(images)
            task = F.binary_cross_entropy_with_logits(self.net.classify(features), batch["attributes"])
            error = relative_error(self.adversary(features), images)
            defender.zero_grad()
            self.manual_backward((1 - weight) * task - weight * error)
            defender.step()
        self.log_dict({"train/task": task, "train/decoder_error": error}, prog_bar=True)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Its own classifier's scores and its own decoder's error on held-out public people."""
        images = batch["image"]
        features = self.net.encode(images)
        decoded = self.adversary(features)
        self.auc.update(self.net.classify(features).float().sigmoid(), batch["attributes"].long())
        errors = {
            "val/decoder_l2": (decoded - images).square().mean(),
            "val/decoder_error": relative_error(decoded, images),
        }
        self.log_dict(errors, batch_size=len(images))

    def on_validation_epoch_end(self) -> None:
        """Logs the mean AUC; draws held-out public faces above what its own decoder makes of them."""
        self.log("val/mean_auc", mean_auc(self.auc), prog_bar=True)
        images = self.fixed_images(self.val_split, 8)
        self.log_grid("own_decoder", torch.cat([images, self.adversary(self.net.encode(images))]))

    # ---- predict ------------------------------------------------------------------------------------------
    @torch.no_grad()
    def protect(self, images: Tensor, index: Tensor) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)`` of its own encoder, no noise."""
        return self.net.encode(images)

    def protection(self) -> dict[str, Any]:
        """The settings in force: those that it was trained with.

        Raises:
            UserError: `predict` was told to change what cannot be changed after training.
        """
        for name in ("beta", "steps", "critic"):
            if self.protect_options.get(name) is not None:
                raise UserError(
                    f"--protect.{name} is Crafter's: the trade-off of {self.stage_name} is set in training "
                    "(--model.init_args.lambda_)"
                )
        kept = ("lr", "decoder", "width", "decoder_lr", "decoder_steps", "restart_epochs")
        return {"lambda": self.hparams["lambda_"], **{name: self.hparams[name] for name in kept}}

    def store_name(self) -> str:
        """``lambda0.5`` and the like."""
        return f"lambda{self.hparams['lambda_']:g}"

    def edge_module(self) -> nn.Module:
        """Its own encoder."""
        return self.net.encoder_module()

    def cloud_module(self) -> nn.Module:
        """Its own classifier."""
        return self.net.cloud

    @property
    def retrains(self) -> tuple[str, ...]:
        """Both."""
        return ("encoder", "cloud")


def relative_error(decoded: Tensor, images: Tensor) -> Tensor:
    """Squared error of ``(N, 3, H, W)`` over what the batch's mean picture would cost: scalar, >= 0."""
    spread = (images - images.mean(0)).square().mean()
    return (decoded - images).square().mean() / spread.clamp(min=1e-6)
