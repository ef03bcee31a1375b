"""White-box inversion through the public prior."""

from typing import Any

import torch
from torch import Tensor, nn

from crafter_pl.attacks.base import Attack
from crafter_pl.crafting.inversion import InversionResult, Objective, invert
from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.errors import UserError
from crafter_pl.nets import fold_batchnorm
from crafter_pl.stages import Amortizer, GanPrior, TaskModel, load_stage


def edge_encoder(attack: Attack, task: TaskModel) -> nn.Module:
    """The published encoder behind the features, pictures -> features, batch norms folded.

    It is the task model's, unless the defence has retrained it.

    Raises:
        UserError: the defence has retrained it and is not at hand.
    """
    return fold_batchnorm(
        attack.published("encoder") if attack.retrained("encoder") else task.net.encoder_module()
    )


class WhiteBoxAttack(Attack):
    """GAN inversion: ``z*(F) = argmin_z |F - Enc(G(z))|^2``, reconstruction ``G(z*)``.

    The paper's white-box attack, and the inner problem of its Algorithm 1.

    Stronger than the paper's: Adam instead of momentum descent, several restarts of which the best by feature
    loss is kept per face, the first of them at the amortizer's latent.

    With an amortizer in w+ it is of GLASS++'s kind (NeurIPS 2023): an encoder is the start, and the feature
    loss alone leads from there.

    With a ``prior_ckpt`` that the defence has never seen it is the paper's A2. A checkpoint is a path, or the
    name of a run of the experiment (``prior_g2``).

    Where the defence has retrained the encoder, the attack inverts through that one, and starts cold: the
    amortizer was trained for the other.

    Args:
        task_ckpt: the edge encoder; null finds the experiment's own.
        prior_ckpt: the generator; null finds the experiment's own.
        amortizer_ckpt: the amortized start; null finds the experiment's own; ``none`` starts cold.
        space: where the latent is searched: ``z``; with a style generator also ``w`` (its style) or ``w+`` (a
            style for each of its convolutions: more than the generator itself can draw).
        steps: Adam steps for each start (paper: 600).
        lr: their size; null: the best in z on public faces, 1.6 for a generator of up to 32 pixels, 0.4 for
            larger ones (dev/LOG.md).
        restarts: starts in all; the first is amortized (unless ``none``), the others are cold.
        prior_weight: rho of ``|F - Enc(G(z))|^2 + rho |z|^2``; in space z alone.
        seed: of the cold starts.
        batch_size: features inverted at a time.
        name: how the report calls it.
    """

    amortized_space = "z"  # of the amortizer's latents

    def __init__(
        self,
        task_ckpt: str | None = None,
        prior_ckpt: str | None = None,
        amortizer_ckpt: str | None = None,
        space: str = "z",
        steps: int = 300,
        lr: float | None = None,
        restarts: int = 2,
        prior_weight: float = 0.0,
        seed: int = 0,
        batch_size: int = 64,
        name: str = "white_box",
    ) -> None:
        if restarts < 1 or steps < 0 or (lr is not None and lr <= 0) or batch_size < 1:
            raise UserError(
                f"attack {name}: restarts {restarts} and batch_size {batch_size} must be at least 1, "
                f"steps {steps} at least 0, lr {lr} above 0"
            )
        if space not in ("z", "w", "w+") or (space != "z" and prior_weight):
            raise UserError(
                f"attack {name}: space {space!r} must be z, w or w+, and prior_weight {prior_weight} is for "
                "z alone"
            )
        self.name, self.space = name, space
        self.steps, self.lr, self.restarts, self.prior_weight = steps, lr, restarts, prior_weight
        self.seed, self.batch_size = seed, batch_size
        self.amortized = amortizer_ckpt != "none"
        self.checkpoints = {"task": task_ckpt, "prior": prior_ckpt}
        if self.amortized:
            self.checkpoints["amortizer"] = amortizer_ckpt

    def prepare(self, device: str) -> None:
        """Loads encoder, generator and amortizer."""
        paths = {stage: self.checkpoint(stage) for stage in self.checkpoints}
        self.device = device
        task, prior = load_stage(paths["task"], TaskModel), load_stage(paths["prior"], GanPrior)
        sizes = task.hparams["image_size"], prior.hparams["image_size"]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"attack {self.name}: {paths['task']} takes pictures of {sizes[0]} pixels, {paths['prior']} "
                f"makes {sizes[1]}; give two checkpoints of one size"
            )
        self.encoder = edge_encoder(self, task).to(device)
        self._open(prior, device)
        self.latent_dim = prior.latent_dim
        self.amortizer: Amortizer | None = None
        if self.amortized and not self.retrained("encoder"):
            self.amortizer = load_stage(paths["amortizer"], Amortizer).to(device)
            self.amortizer.expect_upstream(paths["amortizer"], task=paths["task"], prior=paths["prior"])
            self.amortized_space = its = self.amortizer.hparams["space"]
            if its not in ("z", self.space):
                raise UserError(
                    f"attack {self.name}: {paths['amortizer']} gives latents in {its}, the search is in "
                    f"{self.space}: give space {its}"
                )

    def _open(self, prior: GanPrior, device: str) -> None:
        """Sets ``enter``, from z into the space, ``generator``, from there to pictures, and ``step``."""
        self.step = self.lr or (1.6 if prior.hparams["image_size"] <= 32 else 0.4)
        enter, draw = prior.generator.latent_space(self.space)
        self.enter, self.generator = fold_batchnorm(enter).to(device), fold_batchnorm(draw).to(device)

    def render(self, latent: Tensor) -> Tensor:
        """``Enc(G(z))``."""
        return self.encoder(self.generator(latent))

    def reconstruct(self, features: Tensor) -> Tensor:
        """Inverts features ``(N, C, h, w)`` into pictures in [0, 1]."""
        indices = torch.arange(len(features), device=self.device).split(self.batch_size)
        parts = zip((part.to(self.device) for part in features.split(self.batch_size)), indices, strict=True)
        return torch.cat([self._draw(part, self._search(part, index)).cpu() for part, index in parts])

    @torch.no_grad()
    def _draw(self, features: Tensor, latent: Tensor) -> Tensor:
        """The pictures of the latents found."""
        return self.generator(latent)

    @torch.no_grad()
    def _start(self, features: Tensor, index: Tensor, restart: int) -> Tensor:
        if restart == 0 and self.amortizer is not None:
            start = self.amortizer(features)
            return start if self.amortized_space == self.space else self.enter(start)
        return self.enter(
            keyed_normal(self.seed, index, self.latent_dim, stream=restart, dtype=features.dtype)
        )

    def objective(self, features: Tensor) -> Objective:
        """What the search minimises for each face: ``|F - E|^2`` as a function of ``E = Enc(G(z))``."""
        return lambda seen: (features - seen).flatten(1).square().sum(1)

    def _search(self, features: Tensor, index: Tensor) -> Tensor:
        """The latents ``(N, P)`` of the best start of each face."""
        objective = self.objective(features)
        found = [
            invert(
                self.render,
                objective,
                self._start(features, index, restart),
                steps=self.steps,
                lr=self.step,
                prior_weight=self.prior_weight,
                keep_best=True,
            )
            for restart in range(self.restarts)
        ]
        ranks = torch.stack([self._rank(result, features, index) for result in found])
        best = ranks.nan_to_num(torch.inf).argmin(0)
        return torch.stack([result.z for result in found])[best, torch.arange(len(best), device=best.device)]

    def _rank(self, result: InversionResult, features: Tensor, index: Tensor) -> Tensor:
        """What the starts of a face are compared by, ``(N,)``; the smallest is kept."""
        return result.loss

    def settings(self) -> dict[str, Any]:
        """Everything that changes a reconstruction."""
        names = ("space", "steps", "lr", "restarts", "prior_weight", "seed", "amortized")
        return {**{name: getattr(self, name) for name in names}, **self.retrained("encoder")}
