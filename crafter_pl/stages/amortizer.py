"""The amortizer: a start for the inversion that saves most of its iterations."""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from crafter_pl.errors import UserError
from crafter_pl.nets import AmortizerNet
from crafter_pl.stages.augment import flip
from crafter_pl.stages.prior import GanPrior
from crafter_pl.stages.schedules import Cosine
from crafter_pl.stages.scored import Scored
from crafter_pl.stages.task import TaskModel
from crafter_pl.stages.upstream import Upstream


class Amortizer(Scored):
    """Feature -> latent, trained so that the latent's picture has the feature (the paper's amortizer).

    Half of the loss is on prior samples, whose latent is known: ``|A(Enc(G(z))) - z|^2``; half on public
    faces, whose latent is not: ``|Enc(G(A(Enc(X)))) - Enc(X)|^2``, which is the inversion's own objective.

    In the space w+ of a style generator it is the encoder of GLASS++: where that attack starts.

    Args:
        task_ckpt: the task model (edge encoder); null finds the experiment's own.
        prior_ckpt: the prior (generator); null finds the experiment's own.
        width: first width of the net (paper: 128).
        lr: Adam's learning rate, with a cosine decay.
        latent_weight: weight of the loss on known latents.
        space: of the latents: ``z``; of a style generator also ``w`` or ``w+``.
    """

    task = Upstream(TaskModel)  # the frozen task model
    prior = Upstream(GanPrior)  # the frozen prior
    stage_name = "amortizer"
    monitor = "val/feature_loss"
    mode = "min"

    def __init__(
        self,
        task_ckpt: str | None = None,
        prior_ckpt: str | None = None,
        width: int = 128,
        lr: float = 1e-3,
        latent_weight: float = 0.1,
        space: Literal["z", "w", "w+"] = "z",
    ) -> None:
        super().__init__()
        sizes = self.task.hparams["image_size"], self.prior.hparams["image_size"]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{task_ckpt} takes pictures of {sizes[0]} pixels, {prior_ckpt} makes {sizes[1]}; "
                "give two checkpoints of one size"
            )
        with torch.no_grad():
            size = self.enter(torch.zeros(1, self.prior.latent_dim)).shape[1]
        self.net = AmortizerNet(self.task.feature_shape, size, width)

    def expect_latents(self, path: str | None) -> None:
        """Refuses this amortizer, loaded from ``path``, where latents of z are needed.

        Raises:
            UserError: its space is another.
        """
        if (its := self.hparams["space"]) != "z":
            raise UserError(f"the amortizer {path} gives latents in {its}, and z is needed: give another")

    def enter(self, z: Tensor) -> Tensor:
        """The prior's latents ``(N, Z)`` in the space, ``(N, P)``."""
        return self.prior.generator.latent_space(self.hparams["space"])[0](z)

    def draw(self, latent: Tensor) -> Tensor:
        """Pictures of latents of the space."""
        return self.prior.generator.latent_space(self.hparams["space"])[1](latent)

    def render(self, latent: Tensor) -> Tensor:
        """``Enc(G(latent))``: latents ``(N, Z)`` of its space -> features ``(N, C, h, w)``."""
        return self.task.edge(self.draw(latent))

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> latents ``(N, Z)``."""
        return self.net(features)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """Adam with a cosine decay over the epochs."""
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.hparams["lr"])
        schedule = Cosine(optimizer, max(self.trainer.max_epochs or 1, 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}

    def _losses(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.task.edge(images)
        return (self.render(self.net(features)) - features).square().flatten(1).sum(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Half known latents, half public faces."""
        images = flip(batch["image"])
        on_faces = self._losses(images).mean()
        z = torch.randn(len(images), self.prior.latent_dim, device=self.device)
        with torch.no_grad():
            known = self.enter(z)
            features = self.render(known)
        on_latents = (self.net(features) - known).square().sum(1).mean()
        self.log_dict({"train/feature_loss": on_faces, "train/latent_loss": on_latents}, prog_bar=True)
        return on_faces + self.hparams["latent_weight"] * on_latents

    def score(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Metric]:
        """The inversion's objective at the amortised start."""
        return {"feature_loss": self._losses(batch["image"]).mean()}

    def on_validation_epoch_end(self) -> None:
        """Draws held-out faces above what the amortised start makes of them."""
        images = self.fixed_images(self.val_split, 8)
        self.log_grid("start", torch.cat([images, self.draw(self.net(self.task.edge(images)))]))
