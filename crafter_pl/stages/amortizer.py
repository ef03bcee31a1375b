"""The amortizer: a start for the inversion that saves most of its iterations."""

from typing import Any

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
    faces, whose latent is
    not: ``|Enc(G(A(Enc(X)))) - Enc(X)|^2``, which is the inversion's own objective.

    Args:
        task_ckpt: the task model (edge encoder); null finds the experiment's own.
        prior_ckpt: the prior (generator); null finds the experiment's own.
        width: first width of the net (paper: 128).
        lr: Adam's learning rate, with a cosine decay.
        latent_weight: weight of the loss on known latents.
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
    ) -> None:
        super().__init__()
        sizes = self.task.hparams["image_size"], self.prior.hparams["image_size"]
        if sizes[0] != sizes[1]:
            raise UserError(
                f"{task_ckpt} takes pictures of {sizes[0]} pixels, {prior_ckpt} makes {sizes[1]}; "
                "give two checkpoints of one size"
            )
        self.net = AmortizerNet(self.task.feature_shape, self.prior.latent_dim, width)

    def render(self, z: Tensor) -> Tensor:
        """``Enc(G(z))``: latents ``(N, Z)`` -> features ``(N, C, h, w)``."""
        return self.task.edge(self.prior.generator(z))

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
            features = self.render(z)
        on_latents = (self.net(features) - z).square().sum(1).mean()
        self.log_dict({"train/feature_loss": on_faces, "train/latent_loss": on_latents}, prog_bar=True)
        return on_faces + self.hparams["latent_weight"] * on_latents

    def score(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Metric]:
        """The inversion's objective at the amortised start."""
        return {"feature_loss": self._losses(batch["image"]).mean()}

    def on_validation_epoch_end(self) -> None:
        """Draws held-out faces above what the amortised start makes of them."""
        images = self.fixed_images(self.val_split, 8)
        self.log_grid("start", torch.cat([images, self.prior.generator(self.net(self.task.edge(images)))]))
