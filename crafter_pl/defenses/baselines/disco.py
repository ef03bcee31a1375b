"""DISCO: a learned filter prunes the channels that tell most of the picture."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from crafter_pl.defenses.baselines.adversarial_learning import AdversarialLearning
from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.limits import AboveZero, BelowOne, NonNegativeInt, PositiveInt
from crafter_pl.nets import ChannelPruner


class Disco(AdversarialLearning[ProtectOptions]):
    """Adversarial learning in which a filter behind the encoder prunes channels, chosen for each picture.

    Singh et al., DISCO: Dynamic and Invariant Sensitive Channel Obfuscation, CVPR 2021. The game is that of
    `AdversarialLearning` with ``features = Prune(Enc(X))``, but only the filter plays it against the decoder:
    encoder and classifier learn the task alone. What attackers know of the edge includes the filter.

    Args:
        task_ckpt: the task model from which encoder and classifier start; null finds the experiment's own.
        ratio: share of the channels that is pruned, in [0, 1).
        temperature: of the soft threshold (the authors': 1/30).
        lambda_: weight of the decoder's error against the task, in [0, 1) (the authors': 0.5).
        lr: Adam's learning rate of encoder, filter and classifier.
        decoder: the adversary, ``residual`` or ``paper``.
        width: its first width.
        adversary_lr: its Adam's learning rate.
        adversary_steps: its updates a batch.
        restart_epochs: every so many epochs the decoder starts again from nothing; 0: never.
    """

    stage_name = "disco"
    tradeoff = "ratio"
    recorded = ("ratio", "temperature", *AdversarialLearning.recorded)

    def __init__(
        self,
        task_ckpt: str | None = None,
        ratio: BelowOne = 0.8,
        temperature: AboveZero = 1 / 30,
        lambda_: BelowOne = 0.5,
        lr: float = 5e-4,
        decoder: str = "residual",
        width: int = 48,
        adversary_lr: float = 1e-3,
        adversary_steps: PositiveInt = 1,
        restart_epochs: NonNegativeInt = 0,
    ) -> None:
        super().__init__(
            task_ckpt, lambda_, lr, decoder, width, adversary_lr, adversary_steps, restart_epochs
        )
        self.pruner = ChannelPruner(self.task.feature_shape[0], ratio, temperature)

    def features(self, images: Tensor) -> Tensor:
        """What the filter leaves."""
        return self.pruner(self.net.encode(images))

    def defend(
        self, features: Tensor, images: Tensor, batch: dict[str, Tensor], task: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss, less the decoder's, which reaches the filter and not the encoder."""
        with torch.no_grad():
            encoded = self.net.encode(images)
        return super().defend(self.pruner(encoded), images, batch, task)

    def defenders(self) -> list[nn.Module]:
        """With the filter."""
        return [self.net, self.pruner]

    def edge_module(self) -> nn.Module:
        """Its own encoder, and the filter."""
        return nn.Sequential(OrderedDict({"encoder": super().edge_module(), "pruner": self.pruner}))
