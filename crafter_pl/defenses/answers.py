"""Answers: what leaves depends on the picture through the cloud's answers alone (beyond the paper)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from crafter_pl.crafting.craft import craft_answers
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.crafting.settings import PRECISIONS, CraftSettings
from crafter_pl.defenses.crafter import Crafter
from crafter_pl.defenses.crafting import Crafting, CraftOptions, FrozenNets
from crafter_pl.defenses.untrained import Untrained
from crafter_pl.stages.prior import GanPrior
from crafter_pl.stages.task import TaskModel

_FACES = 0  # stream of the keyed noise: the prior faces


class Answers(Crafting[CraftOptions], Untrained[CraftOptions]):
    """Moves a random prior face's feature to where the cloud answers as for the picture, see `craft_answers`.

    With ``beta`` 0 the picture reaches the feature through the cloud's answers alone. It needs no critic and
    no inversion, and `fit` learns nothing.

    Args:
        task_ckpt: the task model (edge encoder and classifier); null finds the experiment's own.
        prior_ckpt: the prior; null finds the experiment's own.
        craft: of Algorithm 1's settings ``beta``, ``task_weight``, ``steps``, ``lr``, ``update`` and
            ``precision`` count. With ``beta`` 0 any ``task_weight`` is the same.
        seed: of the keyed noise in `predict`.
    """

    stage_name = "answers"
    version = 1
    options_class = CraftOptions
    counting = ("task_weight", "lr", "update")

    def __init__(
        self,
        task_ckpt: str | None = None,
        prior_ckpt: str | None = None,
        craft: CraftSettings = CraftSettings(beta=0.0, task_weight=1.0),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["craft"])
        self.keep(craft)
        prior = self.use("prior", prior_ckpt, GanPrior)
        self.frozen = FrozenNets(self.use("task", task_ckpt, TaskModel), prior)
        self.latent_dim = prior.latent_dim

    @classmethod
    def of(cls, crafter: Crafter) -> Answers:
        """By a Crafter's task model, prior, steps and seed, with ``beta`` 0."""
        files = {key: crafter.upstream_files[key][0] for key in ("task", "prior")}
        settings = crafter.craft_settings
        settings = replace(settings, beta=0.0, task_weight=settings.task_weight or 1.0)
        made = cls(files["task"], files["prior"], settings, crafter.hparams["seed"]).eval()
        made.trained_on = crafter.trained_on
        return made

    def protect(self, images: Tensor, index: Tensor, options: CraftOptions) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> crafted features ``(N, C, h, w)``."""
        dtype = torch.float64 if options.precision == "float64" else torch.float32
        with torch.no_grad():
            features = self.frozen(self.device, dtype).encoder(images.to(dtype))
        z = keyed_normal(options.seed, index, self.latent_dim, stream=_FACES, dtype=dtype)
        nets = self.frozen(self.device, PRECISIONS[options.precision])
        return craft_answers(nets, features, z, self.settings_of(options)).features.float()
