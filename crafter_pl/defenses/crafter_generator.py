"""The crafting generator: one forward pass that does what Crafter's optimisation does (beyond the paper)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from crafter_pl.crafting.craft import (
    craft,
    craft_answers,
    craft_gradient,
    start_crafting,
    task_gradient,
    utility_gradient,
)
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.crafting.settings import CraftNets, CraftSettings, CraftState
from crafter_pl.defenses.baselines.retrained import Game
from crafter_pl.defenses.crafter import Crafter
from crafter_pl.defenses.options import KeyedOptions
from crafter_pl.errors import UserError
from crafter_pl.limits import FromZero, NonNegativeInt, PositiveInt
from crafter_pl.nets import CraftingNet, CraftingPass, build_decoder
from crafter_pl.stages import Upstream, flip, relative_error


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions(KeyedOptions):
    """Of the crafting generator.

    Args:
        refine_steps: outer steps of Crafter after its one pass.
    """

    refine_steps: NonNegativeInt


class CrafterGenerator(Game[GeneratorOptions]):
    """Maps a feature to its crafted feature in one pass, keyed by noise; learned from hypergradients.

    For public faces, ``F = T(x, c)`` of a net ``T`` (`CraftingNet`) follows the gradient that a Crafter would
    move it along: ``L_p``'s hypergradient through the inversion of F, ``beta`` times that of ``|F - x|^2 /
    d`` and ``task_weight`` times that of the cloud's answers. What T gets to see is the protection:

    - ``features``: x is ``Enc(X)``, c the noise. A decoder that learns from crafted pairs undoes it, with or
      without noise and an adversary in the loop: no protection, kept for comparison (docs/defenses.md).
    - ``answers``: x is ``Enc(G(noise))``, the feature of a random prior face, c the cloud's answers for the
      picture, as in `Answers`. The picture reaches F through these answers alone, so no
      attacker learns more of it. There is nothing for the critic to do, and no inversion in training.

    Args:
        task_ckpt: the task model (edge encoder); null finds the experiment's own.
        crafter_ckpt: the Crafter whose critic, prior and settings it learns from; null finds the
            experiment's own.
        sees: ``features`` or ``answers``.
        beta: weight of ``|F - x|^2 / d``.
        task_weight: gamma, weight of the divergence of the cloud's answers.
        width: the net's first width, a multiple of 8.
        lr: Adam's learning rate.
        start_steps: inversion steps from the amortized start in each hypergradient.
        adversary_weight: with ``features``: weight of the error of a decoder that learns from the crafted
            features in the loop (as a share of what the mean face costs); 0: there is none.
        adversary_width: the decoder's first width.
        adversary_steps: its updates a batch.
        refine_steps: outer steps of Crafter after the pass in `predict`.
        seed: of the keyed noise in `predict`.
    """

    crafter = Upstream(Crafter)  # the frozen Crafter
    stage_name = "crafter_generator"
    tradeoff = "beta"
    options_class = GeneratorOptions
    recorded = (
        *("sees", "beta", "task_weight", "width", "lr", "start_steps"),
        *("adversary_weight", "adversary_width", "adversary_steps"),
    )

    def __init__(
        self,
        task_ckpt: str | None = None,
        crafter_ckpt: str | None = None,
        sees: Literal["features", "answers"] = "answers",
        beta: FromZero = 0.001,
        task_weight: FromZero = 0.5,
        width: PositiveInt = 64,
        lr: float = 5e-4,
        start_steps: int = 10,
        adversary_weight: FromZero = 0.0,
        adversary_width: int = 48,
        adversary_steps: PositiveInt = 1,
        refine_steps: NonNegativeInt = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if adversary_weight and sees == "answers":
            raise UserError(
                "a generator that sees answers alone has nothing to hide from an adversary_weight"
            )
        if width % 8:
            raise UserError(f"width {width} must be a multiple of 8 (--model.init_args.width)")
        task = self.task
        self.crafter.expect_upstream(crafter_ckpt, task=str(task_ckpt))
        condition = len(task.hparams["attribute_names"]) if sees == "answers" else self.edge_noise
        self.net: CraftingNet = CraftingNet(task.feature_shape, condition, width)
        if adversary_weight:
            size = task.hparams["image_size"]
            self.adversary = build_decoder("residual", task.feature_shape, size, adversary_width)

    @property
    def nets(self) -> CraftNets:
        """Crafter's frozen nets, on this device."""
        return self.crafter.nets

    def craft_settings(self) -> CraftSettings:
        """Crafter's settings with the weights and the inversion steps of this stage."""
        names = ("beta", "task_weight", "start_steps")
        return replace(self.crafter.craft_settings, **{name: self.hparams[name] for name in names})

    def _pass(self) -> CraftingPass:
        nets = self.nets
        generator = nets.generator if self.hparams["sees"] == "answers" else None
        return CraftingPass(self.net, nets.encoder, nets.classifier, generator, nets.answers)

    # ---- fit ----------------------------------------------------------------------------------------------
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The adversary's updates, then one of the net along Crafter's gradient."""
        images, adversary = flip(batch["image"]), self.adversary
        with torch.no_grad():
            whole = self._pass()
            clean, answers = whole.clean(images)
            noise = torch.randn(len(images), self.edge_noise, device=self.device)
            x, condition = whole.seen(clean, answers, noise)
        crafted = self.net(x, condition)
        fixed, logged = crafted.detach(), {}
        if adversary is not None:
            self.turn(1, lambda: relative_error(adversary(fixed), images), self.hparams["adversary_steps"])
        gradient, info = self._gradient(fixed, x, answers)

        def along() -> Tensor:
            # A loss whose gradient with respect to each crafted feature is the one wanted.
            loss = (crafted * gradient).flatten(1).sum(1).mean()
            if adversary is not None:
                logged["decoder_error"] = relative_error(adversary(crafted), images)
                loss = loss - self.hparams["adversary_weight"] * logged["decoder_error"]
            return loss

        self.turn(0, along)
        logged |= {
            name: info[name].mean() for name in ("privacy_loss", "utility_loss", "task_loss") if name in info
        }
        self.log_dict({f"train/{key}": value for key, value in logged.items()}, prog_bar=True)

    def _gradient(self, crafted: Tensor, x: Tensor, answers: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient of the objective with respect to each crafted feature, and its parts' values."""
        settings = self.craft_settings()
        if self.hparams["sees"] == "answers":
            loss, pull = task_gradient(self.nets.classifier, crafted, answers, self.nets.answers)
            utility_loss, kept = utility_gradient(crafted, x, settings.beta)
            return settings.task_weight * pull + kept, {"task_loss": loss, "utility_loss": utility_loss}
        state = self._begun(crafted, x, answers, settings)
        return craft_gradient(self.nets, self.crafter.critic, state, settings), state.info

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The cloud's scores for crafted features of held-out public people; the adversary's error."""
        crafted = self.protect(batch["image"], batch["index"], self.options(seed=0, refine_steps=0))
        self.utility.update(self.task.cloud(crafted), self.task.truth(batch))
        self.log(f"val/{self.task.answers.main}", self.utility, prog_bar=True)
        figures = {"val/distance": (crafted - self.nets.encoder(batch["image"])).square().mean()}
        if self.adversary is not None and len(crafted) > 1:
            figures["val/decoder_error"] = relative_error(self.adversary(crafted), batch["image"])
        self.log_dict(figures, batch_size=len(crafted))

    def on_validation_epoch_end(self) -> None:
        """Draws held-out public faces above the inversions of their crafted features."""
        images = self.fixed_images(self.val_split, 8)
        index = torch.arange(len(images), device=self.device)
        crafted = self.protect(images, index, self.options(seed=0, refine_steps=0))
        with torch.enable_grad():
            z = start_crafting(self.nets, crafted, self.crafter.craft_settings).z
        self.log_grid("original_crafted", torch.cat([images, self.nets.generator(z)]))

    # ---- predict ------------------------------------------------------------------------------------------
    def protect(self, images: Tensor, index: Tensor, options: GeneratorOptions) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> crafted features ``(N, C, h, w)``.

        A function of the picture, the checkpoint and the noise keyed by (seed, index), whatever the batch.
        """
        whole, steps = self._pass(), options.refine_steps
        noise = keyed_normal(options.seed, index, self.edge_noise)
        with torch.no_grad():
            clean, answers = whole.clean(images)
            crafted: Tensor = self.net(*whole.seen(clean, answers, noise))
        if not steps:
            return crafted
        settings = replace(self.craft_settings(), steps=steps)
        if self.hparams["sees"] == "answers":
            # No pull towards the face's own feature: it would give away more than the answers.
            return craft_answers(self.nets, clean, noise, replace(settings, beta=0.0), crafted).features
        return craft(
            self.nets, self.crafter.critic, self._begun(crafted, clean, answers, settings), settings
        ).features

    def _begun(self, crafted: Tensor, clean: Tensor, answers: Tensor, settings: CraftSettings) -> CraftState:
        """Crafter's state with the crafted feature as it stands, and the utility's terms of the clean one."""
        state = start_crafting(self.nets, crafted, settings)
        state.clean, state.answers = clean, answers if settings.task_weight else None
        return state

    def edge_graph(self, options: GeneratorOptions) -> nn.Module | None:
        """The whole pass from picture and noise; refinement is an optimisation, and no graph."""
        return None if options.refine_steps else self._pass()

    @property
    def edge_noise(self) -> int:
        """The size of a latent."""
        return int(self.crafter.prior.latent_dim)

    def store_name(self, options: GeneratorOptions) -> str:
        """``answers-beta0``, ``features-beta0.1-adversary1-refine5`` and the like."""
        h = self.hparams
        counts = {"adversary": h["adversary_weight"], "refine": options.refine_steps}
        more = "".join(f"-{name}{value:g}" for name, value in counts.items() if value)
        return f"{h['sees']}-beta{h['beta']:g}{more}"
