"""Adversarial learning: encoder and classifier trained against a decoder (the paper's main rival)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from crafter_pl.defenses.baselines.retrained import Retrained
from crafter_pl.defenses.options import OptionsT
from crafter_pl.limits import BelowOne, NonNegativeInt, PositiveInt
from crafter_pl.nets import build_decoder
from crafter_pl.stages.quality import relative_error


class AdversarialLearning(Retrained[OptionsT]):
    """Encoder and classifier trained to solve the task and to spoil what a decoder makes of the features.

    The game, on public faces, is
    ``min over (Enc, f) of (1 - lambda) L_task - lambda L_rec``, ``min over Dec of L_rec``, with
    ``L_task`` the binary cross entropy of ``f(Enc(X))`` and
    ``L_rec = |Dec(Enc(X)) - X|^2 / |mean(X) - X|^2``, the squared error as a share of what guessing the
    batch's mean face costs: 1 means that the decoder has learned nothing, and lambda means the same whatever
    the pictures' contrast is. See `Retrained` for the turns.

    The defence protects against the decoder that it was trained with. A decoder that is trained for the
    finished encoder recovers much of what that one misses (the paper's "false security").

    Args:
        task_ckpt: the task model from which encoder and classifier start; null finds the experiment's own.
        lambda_: weight of the decoder's error against the task, in [0, 1) (paper: 0.1, 0.5, 0.8).
        lr: Adam's learning rate of encoder and classifier.
        decoder: the adversary, ``residual`` or ``paper``.
        width: its first width.
        adversary_lr: its Adam's learning rate (paper's decoders: 1e-3).
        adversary_steps: its updates a batch.
        restart_epochs: every so many epochs the decoder starts again from nothing, so that the encoder does
            not only learn to evade one decoder; 0: never.
    """

    stage_name = "adversarial_learning"
    tradeoff = "lambda_"
    recorded: ClassVar[tuple[str, ...]] = (
        "lambda_",
        "lr",
        "decoder",
        "width",
        "adversary_lr",
        "adversary_steps",
        "restart_epochs",
    )

    def __init__(
        self,
        task_ckpt: str | None = None,
        lambda_: BelowOne = 0.5,
        lr: float = 5e-4,
        decoder: str = "residual",
        width: int = 48,
        adversary_lr: float = 1e-3,
        adversary_steps: PositiveInt = 1,
        restart_epochs: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.adversary = self._fresh_decoder() if lambda_ else None

    def _fresh_decoder(self) -> nn.Module:
        size, h = self.task.hparams["image_size"], self.hparams
        return build_decoder(h["decoder"], self.task.feature_shape, size, h["width"])

    def on_train_epoch_start(self) -> None:
        """Starts the decoder again where its period is over; the same one on every process."""
        period = self.hparams["restart_epochs"]
        if self.adversary is None or not period or not self.current_epoch or self.current_epoch % period:
            return
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self.current_epoch)  # not the GPUs, too
            self.adversary.load_state_dict(self._fresh_decoder().state_dict())
        self.optimizers()[1].optimizer.state.clear()  # type: ignore[index]

    def spy(self, features: Tensor, images: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The decoder's error."""
        assert self.adversary is not None
        return relative_error(self.adversary(features), images)

    def defend(
        self, features: Tensor, images: Tensor, batch: dict[str, Tensor], task: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss, less the decoder's."""
        if self.adversary is None:
            return task, {}
        error, weight = self.spy(features, images, batch), self.hparams["lambda_"]
        return (1 - weight) * task - weight * error, {"decoder_error": error}

    def watch(self, features: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Its own decoder's errors."""
        if self.adversary is None:
            return {}
        decoded, images = self.adversary(features), batch["image"]
        figures = {"decoder_l2": (decoded - images).square().mean()}
        if len(images) > 1:  # the mean of one picture is the picture
            figures["decoder_error"] = relative_error(decoded, images)
        return figures

    def on_validation_epoch_end(self) -> None:
        """Draws held-out public faces above what its own decoder makes of them."""
        if self.adversary is None:
            return
        images = self.fixed_images(self.val_split, 8)
        self.log_grid(
            "own_decoder", torch.cat([images, self.adversary(self.to_cloud(self.features(images)))])
        )
