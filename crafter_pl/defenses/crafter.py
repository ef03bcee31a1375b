"""Crafter (NDSS 2024) with a steering critic learned once: a single picture can be crafted at the edge."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from crafter_pl.crafting.craft import (
    PRECISIONS,
    CraftNets,
    CraftSettings,
    CraftState,
    craft,
    craft_answers,
    craft_step,
    craft_z,
    critic_step,
    start_crafting,
)
from crafter_pl.crafting.noise import keyed_bits, keyed_normal, uniform
from crafter_pl.crafting.reference import reference_craft
from crafter_pl.defenses.base import Defense
from crafter_pl.errors import UserError
from crafter_pl.nets import Bfloat16, Critic, bf16_is_slow, freeze
from crafter_pl.stages.amortizer import Amortizer
from crafter_pl.stages.prior import GanPrior
from crafter_pl.stages.task import TaskModel

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
# Few, large and light steps, and a polish, at a third of the default's work. On the synthetic faces with its
# utility and privacy, on CelebA with more of the one and less of the other (docs/LOG.md).
FAST: dict[str, Any] = {
    "steps": 12,
    "lr": 0.45,
    "start_steps": 10,
    "inner_steps": 1,
    "iterations": 1,
    "polish_steps": 40,
}
METHODS = ("crafter", "fast", "crafter_z", "answers", "reference")
CRITICS = ("fixed", "adapted", "per_batch")
# Streams of keyed noise: the answers' prior faces, prior samples, the critic's places between real and fake.
_FACES, _SAMPLES, _MIX = 0, 1, 2
EMD_STEPS = 60  # updates of the critic that measures the distance in validation


class Crafter(Defense):
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
        method: ``crafter``; ``fast`` (the same in fewer and lighter steps, `FAST`; needs ``task_weight``);
            ``crafter_z`` (moves the latent, emits ``Enc(G(z))``); ``answers`` (from the
            feature of a random prior face to the cloud's answers for the picture, see `craft_answers`; it
            uses no critic); or ``reference``, the
            released algorithm with its constants and its batch coupling, for comparison (of ``craft`` it
            takes beta alone; ``--protect.steps`` shortens its 450 steps).
        critic: what `predict` does with the critic: ``fixed``, ``adapted`` or ``per_batch``.
        critic_width: the critic's first width (paper: 64).
        critic_task_weight: gamma of the trajectories that the critic learns from; null is craft's own.
        replay: how many earlier reconstructions (as latents) the critic's training remembers.
        seed: of the keyed noise in `predict`.
    """

    stage_name = "crafter"
    version = 1
    memory: Tensor
    remembered: Tensor

    def __init__(
        self,
        task_ckpt: str | None = None,
        prior_ckpt: str | None = None,
        amortizer_ckpt: str | None = None,
        craft: CraftSettings = CraftSettings(),  # noqa: B008 (frozen)
        betas: list[float] = [0.25, 0.5, 1.0, 2.0, 4.0],  # noqa: B006 (read by jsonargparse, never changed)
        method: str = "crafter",
        critic: str = "fixed",
        critic_width: int = 32,
        critic_task_weight: float | None = None,
        replay: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__()
        craft = CraftSettings(**craft) if isinstance(craft, dict) else craft
        self.save_hyperparameters(ignore=["craft"])
        self.hparams["craft"] = asdict(craft)
        if method not in METHODS or critic not in CRITICS:
            raise UserError(
                f"method {method!r} must be one of {', '.join(METHODS)}, "
                f"critic {critic!r} one of {', '.join(CRITICS)}"
            )
        self.automatic_optimization = False
        self.craft_settings = craft
        self.use("task", task_ckpt, TaskModel)
        self.use("prior", prior_ckpt, GanPrior)
        amortizer = self.use("amortizer", amortizer_ckpt, Amortizer)
        amortizer.expect_upstream(amortizer_ckpt, task=str(task_ckpt), prior=str(prior_ckpt))
        self.critic = Critic(self.prior.hparams["image_size"], critic_width)
        self._nets: dict[tuple[torch.device, torch.dtype], CraftNets] = {}
        self.register_buffer("memory", torch.zeros(replay, self.prior.latent_dim))
        self.register_buffer("remembered", torch.zeros((), dtype=torch.long))

    @property
    def prior(self) -> GanPrior:
        """The frozen prior."""
        stage = self.upstream["prior"]
        assert isinstance(stage, GanPrior)
        return stage

    @property
    def nets(self) -> CraftNets:
        """The frozen nets, batch norms folded, on this device."""
        return self._frozen(torch.float32)

    def _frozen(self, dtype: torch.dtype) -> CraftNets:
        if any(device != self.device for device, _ in self._nets):
            self._nets = {}
        key = (self.device, dtype)
        if key not in self._nets:
            narrow = dtype == torch.bfloat16
            if narrow and bf16_is_slow(self.device.type):
                print("note: no instructions for bf16 here: crafting in float32 is much faster", flush=True)
            wide = torch.float32 if narrow else dtype
            walked = (self.task.net.encoder_module(), self.prior.generator, self.task.net.cloud)
            nets = [freeze(net).to(self.device, wide) for net in walked]
            if self.device.type == "cpu":  # half the time for a single picture's answers (docs/LOG.md)
                nets[2] = nets[2].to(memory_format=torch.channels_last)
            encoder, generator, classifier = (Bfloat16(net) for net in nets) if narrow else nets
            amortizer = copy.deepcopy(self.upstream["amortizer"]).to(self.device, wide)
            self._nets[key] = CraftNets(encoder, generator, amortizer, classifier)
        return self._nets[key]

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
        if gamma is not None:
            settings = replace(settings, task_weight=gamma)
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
        places = torch.arange(start, start + len(z), device=z.device) % len(self.memory)
        self.memory[places] = z
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
            state = self._craft(images, index, self.craft_settings, "crafter", "fixed", 0)
        with torch.no_grad():
            before = self.prior.generator(self._invert_clean(images))
            after = self.prior.generator(state.z)
            z = keyed_normal(0, torch.arange(256, device=self.device), self.prior.latent_dim, stream=_SAMPLES)
            samples = self.prior.generator(z)
        self.log_dict({f"val/{key}": value.mean() for key, value in state.info.items()})
        emd = {"val/emd": self._emd(after, samples), "val/emd_unprotected": self._emd(before, samples)}
        self.log_dict(emd, prog_bar=True)
        self.log_grid("original_unprotected_crafted", torch.cat([images, before, after]), columns=len(images))

    def _emd(self, made: Tensor, samples: Tensor) -> float:
        """The distance between reconstructions and prior samples (the paper's epsilon in PII).

        By a copy of the critic that has gone on learning from exactly these: the critic itself is what
        crafting has just climbed, and says nothing of what is left.
        """
        net, settings = copy.deepcopy(self.critic).requires_grad_(True), self.craft_settings
        optimizer = torch.optim.Adam(net.parameters(), lr=settings.critic_lr, betas=(0.5, 0.999))
        turns = torch.arange(EMD_STEPS, device=self.device)
        for turn, mix in enumerate(uniform(keyed_bits(0, turns, len(made), stream=_MIX)).to(made.dtype)):
            real = samples.roll(-turn * len(made), 0)[: len(made)]
            critic_step(net, optimizer, made, real, mix.view(-1, 1, 1, 1), settings.penalty)
        with torch.no_grad():
            return float(net(samples).mean() - net(made).mean())

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Nothing a batch: the fixed set is crafted at the epoch's end."""

    def _invert_clean(self, images: Tensor) -> Tensor:
        return start_crafting(self.nets, self.task.edge(images), self.craft_settings).z

    # ---- predict: crafting --------------------------------------------------------------------------------
    def settings_in_force(self) -> tuple[CraftSettings, str, str, int]:
        """Settings, method, critic and seed: the checkpoint's, with what `predict` was told on top."""
        told = {key: value for key, value in self.protect_options.items() if value is not None}
        if "refine_steps" in told:
            raise UserError("--protect.refine_steps is the crafting generator's: give --protect.steps")
        method = told.get("method", self.hparams["method"])
        if method not in METHODS:
            raise UserError(f"--protect.method {method!r}: choose one of {', '.join(METHODS)}")
        changes = {key: told[key] for key in ("beta", "steps", "precision") if key in told}
        critic = told.get("critic", self.hparams["critic"])
        if critic not in CRITICS:
            raise UserError(f"--protect.critic {critic!r}: choose one of {', '.join(CRITICS)}")
        if critic != "fixed" and method != "crafter":
            raise UserError(f"--protect.critic {critic} is for method crafter, not for {method}")
        settings = self.craft_settings
        if method == "reference":
            critic, settings = "per_batch", replace(RELEASED, beta=settings.beta)
        if method == "fast":
            settings = replace(settings, **FAST)
        if method == "answers" and not settings.task_weight:  # with beta 0 any weight is the same
            settings = replace(settings, task_weight=1.0)
        settings = replace(settings, **changes)
        if settings.steps < 1:
            raise UserError(
                f"{settings.steps} crafting steps would send the feature as good as unprotected: give at "
                "least 1 (--protect.steps)"
            )
        if settings.precision != "float32" and method == "reference":
            raise UserError(
                f"--protect.precision {settings.precision} is not for method reference: the released "
                "algorithm is float32"
            )
        return settings, method, critic, self.seed_in_force()

    def protection(self) -> dict[str, Any]:
        """The settings in force, for the manifest."""
        settings, method, critic, seed = self.settings_in_force()
        return {**asdict(settings), "method": method, "critic": critic, "seed": seed}

    def store_name(self) -> str:
        """``beta1`` and the like; an adapting critic and another precision than float32 are named."""
        settings, method, critic, _ = self.settings_in_force()
        prefix = "" if method == "crafter" else f"{method}-"
        suffix = "" if critic == "fixed" or method == "reference" else f"-{critic}"
        precision = "" if settings.precision == "float32" else f"-{settings.precision}"
        return f"{prefix}beta{settings.beta:g}{suffix}{precision}"

    def protect(self, images: Tensor, index: Tensor) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> crafted features ``(N, C, h, w)``.

        With the critic ``fixed`` a picture's features depend on the picture and the checkpoint alone (up to
        rounding).
        """
        return self._craft(images, index, *self.settings_in_force()).features.float()

    def _craft(
        self, images: Tensor, index: Tensor, settings: CraftSettings, method: str, critic: str, seed: int
    ) -> CraftState:
        if method == "reference":
            with torch.no_grad():
                return self.reference(self.task.edge(images), index, settings, seed)
        nets = self._frozen(PRECISIONS[settings.precision])
        dtype = torch.float64 if settings.precision == "float64" else torch.float32
        if method == "answers":
            with torch.no_grad():
                features = self._frozen(dtype).encoder(images.to(dtype))
            z = keyed_normal(seed, index, self.prior.latent_dim, stream=_FACES, dtype=dtype)
            return craft_answers(nets, features, z, settings)
        net = self._fresh_critic(seed) if critic == "per_batch" else self.critic
        net = copy.deepcopy(net).to(dtype)
        exact = dtype
        if settings.precision == "float32" and settings.double_start and self.device.type != "mps":
            exact = torch.float64  # mps has none
        with torch.no_grad():
            features = self._frozen(exact).encoder(images.to(exact))
        start = nets if settings.precision == "bf16" else self._frozen(exact)
        state = start_crafting(start, features, settings).to(dtype)
        if method == "crafter_z":
            return craft_z(nets, net, state, settings)
        if critic == "fixed":
            return craft(nets, net, state, settings)
        adapt = self._adaptation(nets, net.requires_grad_(True), index, settings, seed)
        return craft(nets, net, state, settings, after_step=adapt)

    def _fresh_critic(self, seed: int) -> Critic:
        """A critic that has learned nothing, the same for every batch."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)  # torch.manual_seed seeds the GPUs, too
            net = Critic(self.prior.hparams["image_size"], self.hparams["critic_width"])
        return net.to(self.device)

    def _adaptation(
        self, nets: CraftNets, net: Critic, index: Tensor, settings: CraftSettings, seed: int
    ) -> Callable[[CraftState], None]:
        """What updates ``net`` after every outer step, on faces and noise keyed by (seed, sample index).

        Each update is on ``critic_batch`` of the batch's reconstructions, and as many prior samples.
        """
        optimizer = torch.optim.Adam(net.parameters(), lr=settings.critic_lr, betas=(0.5, 0.999))

        def adapt(state: CraftState) -> None:
            for turn in range(settings.critic_steps):
                stream = 2 * (state.step * settings.critic_steps + turn)
                words = keyed_bits(seed, index, 2, stream=stream + _MIX)
                rows = words[:, 1].argsort()[: settings.critic_batch]
                z = keyed_normal(
                    seed, index[rows], self.prior.latent_dim, stream=stream + _SAMPLES, dtype=state.z.dtype
                )
                mix = uniform(words[rows, 0]).to(state.z.dtype)
                with torch.no_grad():
                    fake, real = nets.generator(state.z[rows]), nets.generator(z)
                critic_step(net, optimizer, fake, real, mix.view(-1, 1, 1, 1), settings.penalty)

        return adapt

    def reference(
        self,
        features: Tensor,
        index: Tensor,
        settings: CraftSettings,
        seed: int,
        on_step: Callable[[int, dict[str, float], Tensor], None] | None = None,
    ) -> CraftState:
        """The released algorithm with its constants (`RELEASED`); beta and steps are the settings'."""
        result = reference_craft(
            self.nets.encoder,
            self.nets.generator,
            self.nets.amortizer,
            features,
            beta=settings.beta,
            critic=lambda: self._fresh_critic(seed),
            prior_critic=self.prior.critic,
            rng=torch.Generator().manual_seed(seed + int(index[0])),
            steps=settings.steps,
            on_step=on_step,
        )
        beta = torch.full((len(features),), settings.beta, device=features.device)
        state = CraftState(result.features, features, result.z, beta, step=settings.steps)
        state.info = {"utility_loss": (result.features - features).square().flatten(1).mean(1)}
        return state
