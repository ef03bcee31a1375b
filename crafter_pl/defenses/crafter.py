"""Crafter (NDSS 2024) with a steering critic learned once: a single picture can be crafted at the edge."""

import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crafter_pl.crafting.craft import craft, craft_step, critic_step, start_crafting
from crafter_pl.crafting.noise import keyed_bits, keyed_normal, uniform
from crafter_pl.crafting.settings import PRECISIONS, CraftNets, CraftSettings, CraftState
from crafter_pl.defenses.crafting import Crafting, CraftOptions, FrozenNets
from crafter_pl.errors import UserError
from crafter_pl.nets import Critic
from crafter_pl.stages import Amortizer, GanPrior, Upstream

CriticUse = Literal["fixed", "adapted", "per_batch"]
# Streams of keyed noise: prior samples, the critic's places between real and fake.
_SAMPLES, _MIX = 1, 2


@dataclass(frozen=True, kw_only=True)
class CrafterOptions(CraftOptions):
    """Of Crafter.

    Args:
        critic: how the critic is treated during crafting.
    """

    critic: CriticUse = "fixed"

    def marks(self) -> list[str]:
        """An adapting critic is named, too."""
        return [self.critic] * (self.critic != "fixed") + super().marks()


class Crafter(Crafting[CrafterOptions]):
    """Crafts features whose inversion looks like a random face of the public prior (Algorithm 1).

    `fit` learns the steering critic, the Wasserstein potential between the reconstructions of features being
    crafted and prior samples, over whole crafting trajectories of public faces and over all values of
    ``betas`` at once. `predict` crafts a split with that critic ``fixed`` (a picture's result depends on that
    picture alone), lets a copy of it go on learning from each batch (``adapted``), or learns a fresh one for
    each batch as the paper does (``per_batch``).

    Args:
        task_ckpt: the task model (edge encoder); null finds the experiment's own.
        prior_ckpt: the prior; null finds the experiment's own.
        amortizer_ckpt: the inversion's start; null finds the experiment's own.
        craft: settings of Algorithm 1.
        betas: values of beta met in training; each face draws one. The settings' own beta is the default of
            `predict`.
        critic: what `predict` does with the critic: ``fixed``, ``adapted`` or ``per_batch``.
        critic_width: the critic's first width (paper: 64).
        critic_task_weight: gamma of the trajectories that the critic learns from; null is craft's own.
        replay: how many earlier reconstructions (as latents) the critic's training remembers.
        seed: of the keyed noise in `predict`.
    """

    prior = Upstream(GanPrior)  # the frozen prior
    amortizer = Upstream(Amortizer)  # its frozen encoder
    stage_name = "crafter"
    options_class = CrafterOptions

    def __init__(
        self,
        task_ckpt: str | None = None,
        prior_ckpt: str | None = None,
        amortizer_ckpt: str | None = None,
        craft: CraftSettings = CraftSettings(),  # noqa: B008 (frozen)
        betas: list[float] = [0.25, 0.5, 1.0, 2.0, 4.0],  # noqa: B006 (read by jsonargparse, never changed)
        critic: CriticUse = "fixed",
        critic_width: int = 32,
        critic_task_weight: float | None = None,
        replay: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.keep(craft)
        self.automatic_optimization = False
        self.amortizer.expect_latents(amortizer_ckpt)
        self.amortizer.expect_upstream(amortizer_ckpt, task=str(task_ckpt), prior=str(prior_ckpt))
        self.critic = Critic(self.prior.hparams["image_size"], critic_width)
        self.frozen = FrozenNets(self.task, self.prior, self.amortizer)
        self.memory = nn.Buffer(torch.zeros(replay, self.prior.latent_dim))
        self.remembered: Tensor = nn.Buffer(torch.zeros((), dtype=torch.long))

    @property
    def nets(self) -> CraftNets:
        """The frozen nets, batch norms folded, on this device."""
        return self.frozen(self.device)

    @classmethod
    def upgraded(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Refuses those of earlier versions whose ``method`` is a defence of its own now."""
        method = str(checkpoint["hyper_parameters"].get("method", "crafter"))
        if method != "crafter":
            name = method if method == "answers" else f"crafter_{method.removeprefix('crafter_')}"
            raise UserError(
                f"it was trained with Crafter's method {method!r}, which is a defence of its own now: train "
                f"{name} (fit --config configs/{name}.yaml), which takes seconds"
            )
        return checkpoint

    def on_fit_start(self) -> None:
        """The critic is fitted by one process: its many updates in a step are not what DDP synchronises."""
        if self.trainer.world_size > 1:
            raise UserError(
                "fit Crafter's critic with one process (--trainer.devices 1); predict runs on several"
            )

    # ---- fit: the steering critic -------------------------------------------------------------------------
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam as in the paper."""
        return torch.optim.Adam(
            self.critic.parameters(), lr=self.craft_settings.critic_lr, betas=(0.5, 0.999)
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Crafts one batch of public faces from start to end; the critic learns after every outer step."""
        settings, gamma = self.craft_settings, self.hparams["critic_task_weight"]
        settings = settings if gamma is None else replace(settings, task_weight=gamma)
        optimizer = self.optimizers()
        values = torch.tensor(self.hparams["betas"], device=self.device)
        with torch.no_grad():
            features = self.task.edge(batch["image"])
        beta = values[torch.randint(len(values), (len(features),), device=self.device)]
        state = start_crafting(self.nets, features, settings, beta)
        for _ in range(settings.steps):
            state = craft_step(self.nets, self.critic, state, settings)
            self._remember(state.z)
            for _ in range(settings.critic_steps):
                emd = self._critic_step(optimizer, state.z)
        means = {f"train/{key}": value.mean() for key, value in state.info.items()}
        self.log_dict({**means, "train/emd": emd}, batch_size=len(features))
        self.log("emd", emd, prog_bar=True, logger=False)

    def _remember(self, z: Tensor) -> None:
        """Puts latents into the replay memory, the oldest first out."""
        if not len(self.memory):
            return
        start = int(self.remembered) % len(self.memory)
        self.memory[torch.arange(start, start + len(z), device=z.device) % len(self.memory)] = z
        self.remembered += len(z)

    def _critic_step(self, optimizer: Any, z: Tensor) -> Tensor:  # noqa: ANN401 (LightningOptimizer)
        """One update on current and remembered reconstructions, half and half, against prior samples."""
        settings = self.craft_settings
        half = max(min(len(z), settings.critic_batch) // 2, 1)
        parts = [z[torch.randperm(len(z), device=z.device)[:half]]]
        known = min(int(self.remembered), len(self.memory))
        if known:
            parts.append(self.memory[torch.randint(known, (half,), device=z.device)])
        with torch.no_grad():
            fake = self.prior.generator(torch.cat(parts))
            real = self.prior.generator(torch.randn(len(fake), self.prior.latent_dim, device=z.device))
        mix = torch.rand(len(fake), 1, 1, 1, device=z.device)
        return critic_step(self.critic, optimizer, fake, real, mix, settings.penalty)

    def on_validation_epoch_end(self) -> None:
        """Crafts a fixed set of held-out public faces; logs EMD, losses, solver diagnostics and pictures."""
        images = self.fixed_images(self.val_split, 16)
        with torch.enable_grad():
            index = torch.arange(len(images), device=self.device)
            state = self.craft(images, index, self.options(critic="fixed"), self.craft_settings)
        with torch.no_grad():
            clean = start_crafting(self.nets, self.task.edge(images), self.craft_settings)
            z = keyed_normal(0, torch.arange(256, device=self.device), self.prior.latent_dim, stream=_SAMPLES)
            before, after, samples = (self.prior.generator(one) for one in (clean.z, state.z, z))
        self.log_dict({f"val/{key}": value.mean() for key, value in state.info.items()})
        self.log_dict(
            {"val/emd": self._emd(after, samples), "val/emd_unprotected": self._emd(before, samples)},
            prog_bar=True,
        )
        self.log_grid("original_unprotected_crafted", torch.cat([images, before, after]), columns=len(images))

    def _emd(self, made: Tensor, samples: Tensor) -> float:
        """The distance between reconstructions and prior samples (the paper's epsilon in PII).

        By a copy of the critic that has gone on learning from exactly these: the critic itself is what
        crafting has just climbed, and says nothing of what is left.
        """
        net, settings = copy.deepcopy(self.critic).requires_grad_(True), self.craft_settings
        optimizer = torch.optim.Adam(net.parameters(), lr=settings.critic_lr, betas=(0.5, 0.999))
        turns = torch.arange(60, device=self.device)
        for turn, mix in enumerate(uniform(keyed_bits(0, turns, len(made), stream=_MIX)).to(made.dtype)):
            real = samples.roll(-turn * len(made), 0)[: len(made)]
            critic_step(net, optimizer, made, real, mix.view(-1, 1, 1, 1), settings.penalty)
        with torch.no_grad():
            return float(net(samples).mean() - net(made).mean())

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Nothing a batch: the fixed set is crafted at the epoch's end."""

    # ---- predict: crafting --------------------------------------------------------------------------------
    def protect(self, images: Tensor, index: Tensor, options: CrafterOptions) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> crafted features ``(N, C, h, w)``.

        With the critic ``fixed`` a picture's features depend on the picture and the checkpoint alone (up to
        rounding).
        """
        return self.craft(images, index, options, self.settings_of(options)).features.float()

    def craft(
        self, images: Tensor, index: Tensor, options: CrafterOptions, settings: CraftSettings
    ) -> CraftState:
        """Crafts pictures ``(N, 3, H, W)`` with ``settings``, and the options' critic and seed."""
        nets, net, state = self.begin(images, settings)
        if options.critic == "fixed":
            return craft(nets, net, state, settings)
        if options.critic == "per_batch":
            net = self.fresh_critic(options.seed).to(state.features.dtype)
        net.requires_grad_(True)
        optimizer = torch.optim.Adam(net.parameters(), lr=settings.critic_lr, betas=(0.5, 0.999))
        adapt = partial(self._adapt, nets, net, optimizer, index, settings, options.seed)
        return craft(nets, net, state, settings, after_step=adapt)

    def begin(self, images: Tensor, settings: CraftSettings) -> tuple[CraftNets, Critic, CraftState]:
        """Nets and a copy of the critic in the settings' precision, and the pictures' features, inverted."""
        nets = self.frozen(self.device, PRECISIONS[settings.precision])
        dtype = torch.float64 if settings.precision == "float64" else torch.float32
        double = settings.precision == "float32" and settings.double_start and self.device.type != "mps"
        exact = torch.float64 if double else dtype  # mps has no float64
        with torch.no_grad():
            features = self.frozen(self.device, exact).encoder(images.to(exact))
        start = nets if settings.precision == "bf16" else self.frozen(self.device, exact)
        return nets, copy.deepcopy(self.critic).to(dtype), start_crafting(start, features, settings).to(dtype)

    def fresh_critic(self, seed: int) -> Critic:
        """A critic that has learned nothing, the same for every batch."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)  # torch.manual_seed seeds the GPUs, too
            net = Critic(self.prior.hparams["image_size"], self.hparams["critic_width"])
        return net.to(self.device)

    def _adapt(
        self,
        nets: CraftNets,
        net: Critic,
        optimizer: torch.optim.Optimizer,
        index: Tensor,
        settings: CraftSettings,
        seed: int,
        state: CraftState,
    ) -> None:
        """Updates ``net`` after an outer step, on faces and noise keyed by (seed, sample index).

        Each update is on ``critic_batch`` of the batch's reconstructions, and as many prior samples.
        """
        for turn in range(settings.critic_steps):
            stream = 2 * (state.step * settings.critic_steps + turn)
            words = keyed_bits(seed, index, 2, stream=stream + _MIX)
            rows = words[:, 1].argsort()[: settings.critic_batch]
            dim, dtype = self.prior.latent_dim, state.z.dtype
            z = keyed_normal(seed, index[rows], dim, stream=stream + _SAMPLES, dtype=dtype)
            mix = uniform(words[rows, 0]).to(dtype)
            with torch.no_grad():
                fake, real = nets.generator(state.z[rows]), nets.generator(z)
            critic_step(net, optimizer, fake, real, mix.view(-1, 1, 1, 1), settings.penalty)
