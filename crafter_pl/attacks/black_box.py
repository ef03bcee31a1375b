"""Black-box inversion: a decoder learned on public (feature, picture) pairs."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from crafter_pl.attacks.base import Attack
from crafter_pl.limits import FromZero
from crafter_pl.nets import AnswersDecoder, build_decoder
from crafter_pl.stages import Scored, TaskModel, Upstream, flip, load_stage, read_checkpoint


class BlackBox(Scored):
    """Decoder from features to pictures, trained on public people (the paper's black-box).

    Args:
        task_ckpt: the task model, queried for features; null finds the experiment's own.
        decoder: ``residual`` (the stronger) or ``paper``.
        width: the decoder's first width.
        lr: peak learning rate of Adam with a one-cycle schedule (paper: constant 1e-3, 500 epochs).
        loss: ``l2`` (paper) or ``l1`` (sharper).
        feature_weight: weight of ``|Enc(decoded) - F|^2 / d``, which rewards detail that the encoder can see;
            0 is the paper's.
        reads: ``feature`` (the paper's), or ``answers``: nothing but the cloud's answers to the feature,
            which a defence must keep where the cloud is to go on working.
    """

    task = Upstream(TaskModel)  # the frozen task model
    stage_name = "black_box"
    monitor = "val/l2"
    mode = "min"
    rise = 0.1

    def __init__(
        self,
        task_ckpt: str | None = None,
        decoder: str = "residual",
        width: int = 128,
        lr: float = 2e-3,
        loss: Literal["l1", "l2"] = "l1",
        feature_weight: FromZero = 0.1,
        reads: Literal["feature", "answers"] = "feature",
    ) -> None:
        super().__init__()
        task, size = self.task, self.task.hparams["image_size"]
        self.net = (
            AnswersDecoder(task.net.cloud, len(task.hparams["attribute_names"]), size, decoder, width)
            if reads == "answers"
            else build_decoder(decoder, task.feature_shape, size, width)
        )

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> pictures ``(N, 3, S, S)`` in [0, 1]."""
        return self.net(features)

    def encode(self, images: Tensor) -> Tensor:
        """The query that a black-box attacker may make: pictures -> features."""
        return self.task.edge(images)

    def new_optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam([p for p in self.net.parameters() if p.requires_grad], lr=self.hparams["lr"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Pixel loss, and the feature loss where it has a weight."""
        images = flip(batch["image"])
        with torch.no_grad():
            features = self.encode(images)
        loss = decoder_loss(self.hparams, self.net(features), images, self.encode, features)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def score(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Metric]:
        """Mean squared pixel error on unprotected features."""
        images = batch["image"]
        return {"l2": (self.net(self.encode(images)) - images).square().mean()}

    def on_validation_epoch_end(self) -> None:
        """Draws held-out public faces above their reconstructions."""
        images = self.fixed_images(self.val_split, 8)
        self.log_grid("reconstructions", torch.cat([images, self.net(self.encode(images))]))


def decoder_loss(
    h: Mapping[str, Any],
    decoded: Tensor,
    images: Tensor,
    encode: Callable[[Tensor], Tensor],
    features: Tensor,
) -> Tensor:
    """What a decoder is trained by: the pixels' ``loss``, and ``feature_weight`` times the features' error.

    Args:
        h: its settings.
        decoded: its pictures ``(N, 3, S, S)``.
        images: the right ones.
        encode: pictures -> unprotected features.
        features: those of ``images``.
    """
    error = decoded - images
    loss = error.abs().mean() if h["loss"] == "l1" else error.square().mean()
    if h["feature_weight"] > 0:
        loss = loss + h["feature_weight"] * (encode(decoded) - features).square().mean()
    return loss


class DecoderAttack(Attack):
    """The trained decoder as an attack.

    One that reads answers reads those of the defence's own cloud where that was retrained; the decoder itself
    is not.

    Args:
        ckpt: checkpoint of a `BlackBox`; null finds the experiment's own.
        name: how the report calls it; also the stage folder looked in.
        batch_size: features decoded at a time.
    """

    def __init__(self, ckpt: str | None = None, name: str = "black_box", batch_size: int = 64) -> None:
        self.name = self.stage = name
        self.batch_size = batch_size
        self.checkpoints = {name: ckpt}

    def prepare(self, device: str) -> None:
        """Loads the decoder."""
        self.device = device
        self.net: Any = load_stage(self.checkpoint(self.stage), BlackBox)
        if self._other_cloud():
            self.net.net.classifier = copy.deepcopy(self.published("cloud")).eval()
        self.net.to(device)

    def _other_cloud(self) -> dict[str, str]:
        """`retrained`, for a decoder that reads answers."""
        if not (found := self.retrained("cloud")):
            return {}
        settings = read_checkpoint(self.checkpoint(self.stage), self.stage).get("hyper_parameters", {})
        return found if settings.get("reads") == "answers" else {}

    @torch.no_grad()
    def reconstruct(self, features: Tensor) -> Tensor:
        """Decodes features ``(N, C, h, w)`` into pictures in [0, 1]."""
        return torch.cat(
            [self.net.reconstruct(part.to(self.device)).cpu() for part in features.split(self.batch_size)]
        )

    def settings(self) -> dict[str, Any]:
        """The decoder's are in its checkpoint; and whose answers it reads, if not the task model's."""
        return self._other_cloud()
