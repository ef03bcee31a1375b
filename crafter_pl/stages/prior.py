"""The public prior: a Wasserstein GAN of faces that belong to nobody private."""

import copy
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.transforms.functional import resize

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.limits import PositiveInt
from crafter_pl.nets import (
    Critic,
    Enlarged,
    Generator,
    ImageEncoder,
    InceptionFeatures,
    StyleGenerator,
    build_generator,
    gradient_penalty,
)
from crafter_pl.stages.augment import flip
from crafter_pl.stages.base import Stage
from crafter_pl.stages.quality import kernel_distance, kid

DRAWS = 64  # pixels of a side: what a small budget learns to draw


class GanPrior(Stage):
    """WGAN-GP on public faces (appendix), with an EMA of the generator for sampling and inversion.

    Args:
        generator: ``G1`` (the defence's), ``G2`` or ``style`` (attackers', which the defence has not seen).
        latent_dim: Z (paper: 500 at 64 pixels).
        width: the generator's last width (paper: 64).
        critic_width: the critic's first width (paper: 64).
        lr: Adam's learning rate of both (paper: 4e-4, betas 0.5 and 0.999).
        n_critic: critic steps for one generator step (paper: 5).
        penalty: weight of the gradient penalty (paper: 10).
        ema: decay of the generator's running mean.
        autoencode: weight of an autoencoding term (mean squared error times the pixels, plus ``kl`` times the
            KL divergence) that teaches the generator to cover the public faces long before an adversarial
            game does on a small budget; 0 is the paper's plain WGAN-GP.
        kl: weight of the KL divergence inside the autoencoding term.
        warmup_epochs: epochs of the autoencoding term alone, before the adversarial game begins.
        inception: None, a state-dict file of torchvision's inception_v3, or ``download`` (ImageNet). With it,
            the end of `fit` logs ``val/kid``, of up to 1000 of the EMA's samples against as many held-out
            public pictures (minutes on a CPU). It is KID on torchvision's ImageNet weights: comparable only
            with itself, not with published figures, which are on another Inception's weights.
        draws: side of the pictures that the generator draws, enlarged to image_size; null: that size, and on
            the command line 64 where it is larger.
        image_size: side of the pictures in pixels; the command line takes it from the data.
    """

    stage_name = "prior"

    def __init__(
        self,
        generator: Literal["G1", "G2", "style"] = "G1",
        latent_dim: int = 500,
        width: int = 64,
        critic_width: int = 64,
        lr: float = 4e-4,
        n_critic: int = 5,
        penalty: float = 10.0,
        ema: float = 0.995,
        autoencode: float = 0.0,
        kl: float = 1.0,
        warmup_epochs: int = 0,
        inception: str | None = None,
        draws: PositiveInt | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.latent_dim = latent_dim
        self._inception: tuple[InceptionFeatures, ...] = ()  # in a tuple: it goes into no checkpoint
        self.final_metrics: dict[str, float] = {}
        size = draws or self.needs("image_size")
        self.live = build_generator(generator, latent_dim, size, width)
        self.critic = Critic(size, critic_width)
        self.image_encoder = ImageEncoder(latent_dim, size, width) if autoencode > 0 else None
        self.ema = AveragedModel(self.live, multi_avg_fn=get_ema_multi_avg_fn(ema), use_buffers=True)
        self.ema.requires_grad_(False)

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """The size of the pictures, and of those that it draws."""
        small = given.get("draws") is None and data.image_size > DRAWS
        return {"image_size": data.image_size, **({"draws": DRAWS} if small else {})}

    @property
    def generator(self) -> Generator | StyleGenerator | Enlarged:
        """The generator to sample and invert with: the EMA, ``(N, Z)`` -> ``(N, 3, S, S)`` in [0, 1]."""
        made, size = cast(Generator | StyleGenerator, self.ema.module), self.needs("image_size")
        return made if (self.hparams["draws"] or size) == size else Enlarged(made, size)

    def _shrunk(self, images: Tensor) -> Tensor:
        """Pictures ``(N, 3, S, S)`` at the size that the generator draws."""
        side = self.hparams["draws"] or images.shape[-1]
        return images if side == images.shape[-1] else resize(images, [side, side], antialias=True)

    def setup(self, stage: str) -> None:
        """Before `fit`, reads Inception's weights.

        Raises:
            UserError: they are missing, unreadable or of another net.
        """
        super().setup(stage)
        if stage == "fit" and self.hparams["inception"] is not None:
            self._inception = (InceptionFeatures(self.hparams["inception"]),)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """Adam for the generator (with the image encoder) and for the critic."""
        makers = list(self.live.parameters())
        if self.image_encoder is not None:
            makers += list(self.image_encoder.parameters())
        lr = self.hparams["lr"]
        return (
            torch.optim.Adam(makers, lr=lr, betas=(0.5, 0.999)),
            torch.optim.Adam(self.critic.parameters(), lr=lr, betas=(0.5, 0.999)),
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """One critic step; after every ``n_critic`` of them one generator step."""
        maker, judge = self.optimizers()  # type: ignore[attr-defined]
        images = self._shrunk(flip(batch["image"]))
        warming = self.current_epoch < self.hparams["warmup_epochs"]
        if not warming:
            with self.toggled_optimizer(judge):
                self._critic_step(judge, images)
        if warming or batch_idx % self.hparams["n_critic"] == 0:
            with self.toggled_optimizer(maker):
                self._generator_step(maker, images, adversarial=not warming)
            self.ema.update_parameters(self.live)

    def _critic_step(self, judge: Any, images: Tensor) -> None:  # noqa: ANN401 (LightningOptimizer)
        with torch.no_grad():
            fake = self.live(torch.randn(len(images), self.latent_dim, device=self.device)).float()
        emd = self.critic(images).mean() - self.critic(fake).mean()
        penalty = gradient_penalty(
            self.critic, images, fake, mix=torch.rand(len(images), 1, 1, 1, device=self.device)
        )
        judge.zero_grad()
        self.manual_backward(self.hparams["penalty"] * penalty - emd)
        judge.step()
        self.log_dict({"train/emd": emd, "train/penalty": penalty}, prog_bar=True)

    def _generator_step(self, maker: Any, images: Tensor, adversarial: bool) -> None:  # noqa: ANN401 (LightningOptimizer)
        loss = images.new_zeros(())
        if adversarial:
            loss = -self.critic(
                self.live(torch.randn(len(images), self.latent_dim, device=self.device))
            ).mean()
            self.log("train/generator", loss)
        if self.image_encoder is not None:
            mean, log_variance = self.image_encoder(images)
            rebuilt = self.live(mean + torch.randn_like(mean) * (log_variance / 2).exp())
            error = (rebuilt - images).square().flatten(1).sum(1).mean()
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
            loss = loss + self.hparams["autoencode"] * (error + self.hparams["kl"] * kl)
            self.log_dict({"train/autoencode": error, "train/kl": kl}, prog_bar=True)
        maker.zero_grad()
        self.manual_backward(loss)
        maker.step()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The critic's score of held-out public faces."""
        score = self.critic(self._shrunk(batch["image"])).mean()
        self.log("val/critic_real", score, batch_size=len(batch["image"]))

    def on_validation_epoch_end(self) -> None:
        """Draws samples; logs the kernel distance of the EMA's samples to held-out public faces."""
        z = torch.randn(256, self.latent_dim, generator=torch.Generator().manual_seed(0))
        fake = self.generator(z.to(self.device))
        self.log_grid("samples", fake[:32])
        real = self.fixed_images(self.val_split, 256)
        if len(real) > 1:  # a kernel distance needs two pictures
            self.log("val/kernel_distance", kernel_distance(fake, real), prog_bar=True)

    @torch.no_grad()
    def on_train_end(self) -> None:
        """Logs the KID of the EMA's samples to held-out public faces, if it has Inception's weights."""
        if not self._inception or not self.trainer.is_global_zero:
            return
        real = self.spread_images(self.val_split, 1000)
        if len(real) < 2:
            return
        generator = copy.deepcopy(self.generator).eval()  # the stage's own stays in its mode
        z = torch.randn(len(real), self.latent_dim, generator=torch.Generator().manual_seed(0))
        fake = torch.cat([generator(part.to(real)) for part in z.split(64)])
        distance = float(kid(self._inception[0].to(self.device), fake, real))
        self.final_metrics = {"val/kid": distance}  # for summary.json
        for logger in self.loggers:
            logger.log_metrics(self.final_metrics, step=self.trainer.current_epoch)
