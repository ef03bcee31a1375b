"""Relatives of Crafter: in fewer steps, in the latent, as released, and by the cloud's answers alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from crafter_pl.crafting.craft import craft, craft_answers, craft_z
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.crafting.reference import reference_craft
from crafter_pl.crafting.settings import PRECISIONS, CraftSettings, CraftState
from crafter_pl.defenses.crafter import Crafter
from crafter_pl.defenses.crafting import Crafting, CraftOptions, FrozenNets
from crafter_pl.defenses.untrained import Untrained
from crafter_pl.errors import UserError
from crafter_pl.stages import GanPrior, Upstream

# Few, large and light steps, and a polish, at a third of the default's work. On the synthetic faces with its
# utility and privacy, on CelebA with more of the one and less of the other (dev/LOG.md).
FAST: dict[str, Any] = {
    "steps": 12,
    "lr": 0.45,
    "start_steps": 10,
    "inner_steps": 1,
    "iterations": 1,
    "polish_steps": 40,
}
# The released algorithm's constants, which are the defaults of `reference_craft`, in our words.
RELEASED = CraftSettings(
    steps=450,
    lr=0.01,
    update="adam",
    start_steps=0,
    inner_steps=80,
    inner_lr=5e-3,
    solver="neumann",
    damping=0.0,
    iterations=120,
    alpha=1e-3,
    critic_steps=10,
    double_start=False,
)


class CrafterVariant(Crafting[CraftOptions], Untrained[CraftOptions]):
    """A defence by a trained Crafter's nets, settings and critic; a subclass says by which settings and how.

    Class attributes:
        way: from Crafter's nets, critic, begun state and the settings to the crafted state.

    Args:
        task_ckpt: the task model (edge encoder); null finds the experiment's own.
        crafter_ckpt: the Crafter; null finds the experiment's own.
        seed: of the keyed noise in `predict`.
    """

    crafter = Upstream(Crafter)  # the frozen Crafter
    way: ClassVar[Callable[..., CraftState]] = staticmethod(craft)

    def __init__(self, task_ckpt: str | None = None, crafter_ckpt: str | None = None, seed: int = 0) -> None:
        super().__init__()
        self.crafter.expect_upstream(crafter_ckpt, task=str(task_ckpt))

    def constants(self) -> CraftSettings:
        """By default Crafter's."""
        return self.crafter.craft_settings

    def protect(self, images: Tensor, index: Tensor, options: CraftOptions) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> crafted features ``(N, C, h, w)``."""
        return self.craft(images, index, options).features.float()

    def craft(self, images: Tensor, index: Tensor, options: CraftOptions) -> CraftState:
        """Crafts pictures ``(N, 3, H, W)``, by default along the trained critic by `way`."""
        settings = self.settings_of(options)
        return self.way(*self.crafter.begin(images, settings), settings)


class CrafterFast(CrafterVariant):
    """Crafter in fewer and lighter steps (`FAST`); it needs a Crafter with ``task_weight``."""

    stage_name = "crafter_fast"

    def constants(self) -> CraftSettings:
        """Crafter's, with `FAST` in their place."""
        return replace(super().constants(), **FAST)


class CrafterZ(CrafterVariant):
    """Crafter-z (the paper's appendix): moves the latent and emits ``Enc(G(z))``, see `craft_z`."""

    stage_name = "crafter_z"
    way = staticmethod(craft_z)


class CrafterReference(CrafterVariant):
    """The released algorithm with its constants (`RELEASED`) and its batch coupling, for comparison.

    Of the Crafter it takes the nets and beta; its critic is a fresh one for each batch.
    """

    stage_name = "crafter_reference"

    def constants(self) -> CraftSettings:
        """`RELEASED`, with Crafter's beta."""
        return replace(RELEASED, beta=self.crafter.craft_settings.beta)

    def settings_of(self, options: CraftOptions) -> CraftSettings:
        """The released algorithm's, with the options.

        Raises:
            UserError: another precision than float32.
        """
        if options.precision != "float32":
            raise UserError(
                f"--protect.precision {options.precision} is not for crafter_reference: the released "
                "algorithm is float32"
            )
        return super().settings_of(options)

    def craft(
        self,
        images: Tensor,
        index: Tensor,
        options: CraftOptions,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> CraftState:
        """Crafts pictures ``(N, 3, H, W)``; ``on_step`` as `reference_craft` calls it."""
        settings, crafter = self.settings_of(options), self.crafter
        features = self.task.edge(images).detach()
        with torch.no_grad():
            crafted, z = reference_craft(
                crafter.nets.encoder,
                crafter.nets.generator,
                crafter.nets.amortizer,
                features,
                beta=settings.beta,
                critic=lambda: crafter.fresh_critic(options.seed),
                prior_critic=crafter.prior.critic,
                rng=torch.Generator().manual_seed(options.seed + int(index[0])),
                steps=settings.steps,
                on_step=on_step,
            )
        return CraftState(crafted, features, z, features.new_full((len(features),), settings.beta))


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

    prior = Upstream(GanPrior)  # the frozen prior
    stage_name = "answers"
    counting = ("task_weight", "lr", "update")

    def __init__(
        self,
        task_ckpt: str | None = None,
        prior_ckpt: str | None = None,
        craft: CraftSettings = CraftSettings(beta=0.0, task_weight=1.0),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.keep(craft)
        self.frozen = FrozenNets(self.task, self.prior)

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
        z = keyed_normal(options.seed, index, self.prior.latent_dim, dtype=dtype)
        nets = self.frozen(self.device, PRECISIONS[options.precision])
        return craft_answers(nets, features, z, self.settings_of(options)).features.float()
