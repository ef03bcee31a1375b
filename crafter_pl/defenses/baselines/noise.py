"""Noise on features: the simplest defence, and the yardstick of all others."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from crafter_pl.crafting.noise import keyed_bits, keyed_normal, uniform
from crafter_pl.defenses.options import KeyedOptions
from crafter_pl.defenses.untrained import Untrained
from crafter_pl.limits import FromZero
from crafter_pl.nets import Noisy


class Noise(Untrained[KeyedOptions]):
    """Adds noise of one size to every entry of a feature; nothing of the backend changes.

    `fit` measures the standard deviation of the features of public faces, in one epoch; nothing is learned.
    The noise is keyed by (seed, picture): who knows the store's seed can take it off again.

    Args:
        task_ckpt: the task model (edge encoder); null finds the experiment's own.
        kind: ``gaussian`` or ``laplace``.
        scale: standard deviation of the noise, as a share of that of the features' entries.
        seed: of the keyed noise in `predict`.
    """

    stage_name = "noise"
    options_class = KeyedOptions
    recorded = ("kind", "scale")
    tradeoff = "scale"

    def __init__(
        self,
        task_ckpt: str | None = None,
        kind: Literal["gaussian", "laplace"] = "gaussian",
        scale: FromZero = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.count: Tensor = nn.Buffer(torch.zeros((), dtype=torch.float64))
        self.mean: Tensor = nn.Buffer(torch.zeros((), dtype=torch.float64))
        self.square: Tensor = nn.Buffer(torch.zeros((), dtype=torch.float64))

    @property
    def deviation(self) -> float:
        """Standard deviation of the features' entries, about their common mean."""
        return float((self.square - self.mean**2).clamp(min=0).sqrt())

    @torch.no_grad()
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Takes a batch into the running moments."""
        features = self.task.edge(batch["image"]).double()
        self.count += len(features)
        share = len(features) / self.count
        self.mean += share * (features.mean() - self.mean)
        self.square += share * (features.square().mean() - self.square)
        self.log("train/deviation", self.deviation)

    @torch.no_grad()
    def protect(self, images: Tensor, index: Tensor, options: KeyedOptions) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)`` with keyed noise."""
        features = self.task.edge(images)
        seed, size = options.seed, features[0].numel()
        if self.hparams["kind"] == "gaussian":
            noise = keyed_normal(seed, index, size)
        else:  # by the inverse of the distribution function, of variance 1
            place = uniform(keyed_bits(seed, index, size)) + 2.0**-54 - 0.5
            noise = -place.sign() * torch.log1p(-2 * place.abs()) / math.sqrt(2)
        return features + self.hparams["scale"] * self.deviation * noise.view_as(features).to(features)

    def edge_graph(self, options: KeyedOptions) -> nn.Module | None:
        """Encoder and Gaussian noise; Laplace's is not made of normal numbers."""
        h = self.hparams
        return Noisy(self.edge_module(), h["scale"] * self.deviation) if h["kind"] == "gaussian" else None

    @property
    def edge_noise(self) -> int:
        """One for each entry of a feature."""
        return math.prod(self.task.feature_shape)

    def store_name(self, options: KeyedOptions) -> str:
        """``gaussian1`` and the like."""
        return f"{self.hparams['kind']}{self.hparams['scale']:g}"
