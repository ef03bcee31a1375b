"""Adaptive white-box inversion: the generator learns to draw the faces behind features that were crafted."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from crafter_pl.attacks.adapted import AdaptedAttack
from crafter_pl.attacks.adaptive import AdaptiveStage
from crafter_pl.attacks.base import Attack
from crafter_pl.attacks.black_box import DecoderAttack
from crafter_pl.attacks.white_box import WhiteBoxAttack
from crafter_pl.crafting.inversion import invert
from crafter_pl.errors import UserError
from crafter_pl.limits import AboveZero, NonNegativeInt, PositiveInt
from crafter_pl.nets import fold_batchnorm, synchronised
from crafter_pl.stages import Amortizer, GanPrior, Upstream


class AdaptiveWhiteBox(AdaptiveStage):
    """Alternates inversion and updates of the generator, so that ``G(z*(F))`` matches the picture (A1).

    For each batch of (crafted feature F, picture X) of public people, in rounds (see `AdaptiveStage`):

    1. ``z*(F) = argmin_z |F - Enc(G(z))|^2`` is followed for ``inversion_steps`` Adam steps, all nets in eval
       mode, from the adapted amortizer's ``A(F)``, or without it from the sample's last ``z*``.
    2. RMSProp takes one step on ``|G(z*) - X|`` with ``z*`` held fixed and, if there is an adapted amortizer,
       on ``|G(A(F)) - X|``, which teaches both nets.

    ``Enc`` is the encoder that the defence has published. The paper adapts G alone (``amortize`` false). The
    amortizer makes the attack far stronger: ``z*`` is an inverse of the crafted feature, not of the face's
    own, and each step towards it leads away from the face. So by default none is taken: the attack is
    ``G(A(F))``, both nets adapted (dev/LOG.md has the figures). With steps, ``val/l2_start`` says how good
    the start is without them.

    Args:
        defense_ckpt: the defence under attack, of any class, or the name of its run in the experiment.
        prior_ckpt: the generator to start from (its EMA); null finds the experiment's own.
        amortizer_ckpt: the amortized start of that generator; null finds the experiment's own.
        protect: the options of the defence that is attacked, as ``predict --protect.*`` (null: as it was
            trained).
        pairs_per_round: public faces that are queried in each round.
        epochs_per_round: passes over all pairs so far in each round (paper: 400 in all).
        val_pairs: held-out public faces that are queried once, to watch the error.
        batch_size: pairs a step, over all processes.
        shard_size: faces crafted at a time.
        lr: the highest learning rate of each round (RMSProp; paper: constant 1e-3).
        loss: ``l2`` or ``l1`` (sharper).
        amortize: adapt the amortizer, too; false is the paper's.
        inversion_steps: inversion steps a batch; at least 1 without an adapted amortizer.
        attack_steps: inversion steps of the whole attack, from the start to the picture; null is
            inversion_steps. Without an adapted amortizer more are needed: a sample's ``z*`` is followed
            through all epochs, while the attack starts at the published amortizer's latent.
        inversion_lr: size of an inversion step.
        queries_dir: folder of crafted pairs; null is ``queries`` beside the run.
    """

    prior = Upstream(GanPrior)  # what it starts from
    public_amortizer = Upstream(Amortizer, "amortizer")  # likewise
    stage_name = "adaptive_white_box"

    def __init__(
        self,
        defense_ckpt: str | None = "crafter",
        prior_ckpt: str | None = None,
        amortizer_ckpt: str | None = None,
        protect: dict[str, Any] | None = None,
        pairs_per_round: PositiveInt = 256,
        epochs_per_round: PositiveInt = 10,
        val_pairs: PositiveInt = 64,
        batch_size: PositiveInt = 32,
        shard_size: PositiveInt = 64,
        lr: AboveZero = 1e-3,
        loss: Literal["l1", "l2"] = "l1",
        amortize: bool = True,
        inversion_steps: NonNegativeInt = 0,
        attack_steps: NonNegativeInt | None = None,
        inversion_lr: AboveZero = 0.01,
        queries_dir: str | None = None,
    ) -> None:
        super().__init__()
        if not amortize and inversion_steps < 1:
            raise UserError(
                f"inversion_steps {inversion_steps} must be at least 1 without amortize "
                "(--model.init_args.inversion_steps)"
            )
        task = self.defense.upstream_files["task"][0]
        self.public_amortizer.expect_latents(amortizer_ckpt)
        self.public_amortizer.expect_upstream(amortizer_ckpt, task=task, prior=str(prior_ckpt))
        self.generator = synchronised(copy.deepcopy(self.prior.generator)).requires_grad_(True).train()
        self.amortizer: nn.Module | None = None
        if amortize:
            self.amortizer = (
                synchronised(copy.deepcopy(self.public_amortizer.net)).requires_grad_(True).train()
            )
        self._encoder: tuple[torch.device, nn.Module] | None = None
        self._last: dict[int, Tensor] = {}  # without an adapted amortizer: z* by the picture's index

    # The attack

    def render(self, z: Tensor) -> Tensor:
        """``Enc(G(z))``, by the published encoder."""
        if self._encoder is None or self._encoder[0] != self.device:
            self._encoder = (self.device, fold_batchnorm(self.defense.edge_module()).to(self.device))
        return self._encoder[1](self.generator(z))

    def start(self, features: Tensor) -> Tensor:
        """Where the inversion begins: latents ``(N, Z)`` by the adapted amortizer, or the published one."""
        return (self.public_amortizer if self.amortizer is None else self.amortizer)(features)

    def _follow(self, features: Tensor, z: Tensor, steps: int) -> Tensor:
        target, start = features.to(self.dtype), z.to(self.dtype)
        return invert(self.render, target, start, steps=steps, lr=self.hparams["inversion_lr"]).z

    def reconstruct(self, features: Tensor) -> Tensor:
        """The whole attack: features ``(N, C, h, w)`` -> pictures ``(N, 3, S, S)`` in [0, 1]."""
        steps = self.hparams["inversion_steps" if self.hparams["attack_steps"] is None else "attack_steps"]
        return self.generator(self._follow(features, self.start(features), steps))

    # Training

    def new_optimizer(self) -> torch.optim.Optimizer:
        """RMSProp, as in the paper."""
        return torch.optim.RMSprop(self.parameters(), lr=self.hparams["lr"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Inverts, then gives the pixel loss of what is drawn at the start and at its end."""
        features, images, index = batch["features"], batch["image"], batch["index"]
        z = self.start(features) if self.amortizer is not None else self._recall(features, index)
        latents = [] if self.amortizer is None else [z]
        if self.hparams["inversion_steps"] > 0:
            self.generator.eval()
            z = self._follow(features, z, self.hparams["inversion_steps"])
            self.generator.train()
            latents.append(z)
        if self.amortizer is None:
            self._remember(z, index)
        error = self.generator(torch.cat(latents)) - images.repeat(len(latents), 1, 1, 1)
        loss = error.abs().mean() if self.hparams["loss"] == "l1" else error.square().mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(images))
        return loss

    @torch.no_grad()
    def _recall(self, features: Tensor, index: Tensor) -> Tensor:
        """Each sample's last ``z*``, or where it begins when it is seen for the first time."""
        pairs = zip(index, self.start(features), strict=True)
        return torch.stack([self._last.get(int(i), z).to(self.device) for i, z in pairs])

    def _remember(self, z: Tensor, index: Tensor) -> None:
        """Every process knows the latents of all: the next epoch deals the samples otherwise."""
        indices, latents = self.all_gather((index, z))
        self._last.update(zip(indices.flatten().tolist(), latents.cpu().view(-1, z.shape[1]), strict=True))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Mean squared pixel error of the whole attack, and of its start alone, on held-out public people."""
        super().validation_step(batch, batch_idx)
        error = (self.generator(self.start(batch["features"])) - batch["image"]).square().mean()
        self.log("val/l2_start", error, batch_size=len(batch["image"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the samples' last ``z*``."""
        super().on_save_checkpoint(checkpoint)
        if self._last:
            index = torch.tensor(sorted(self._last))
            checkpoint["latents"] = (index, torch.stack([self._last[int(i)] for i in index]))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from the samples' last ``z*``."""
        super().on_load_checkpoint(checkpoint)
        if "latents" in checkpoint:
            index, z = checkpoint["latents"]
            self._last = dict(zip(index.tolist(), z.unbind(), strict=True))


class AdaptiveWhiteBoxAttack(AdaptedAttack, DecoderAttack):
    """Inversion through the adapted generator, from the adapted start (see `AdaptedAttack`).

    On unprotected features it is the white-box attack that adaptation starts from, which is also the first
    round of its history.

    Args:
        ckpt: checkpoint of an `AdaptiveWhiteBox`, such as one of its rounds; null finds it as said there.
        name: how the report calls it, and how the folders begin.
        plain: settings of that `WhiteBoxAttack`; of them only ``batch_size`` counts for the adapted one,
            whose own are in its checkpoint.
    """

    stage_class = AdaptiveWhiteBox

    def __init__(
        self,
        ckpt: str | None = None,
        name: str = "adaptive_white_box",
        **plain: Any,  # noqa: ANN401 (WhiteBoxAttack says)
    ) -> None:
        self.basic: WhiteBoxAttack = WhiteBoxAttack(name=name, **plain)
        self.name, self.ckpt, self.checkpoints = name, ckpt, self.basic.checkpoints
        self.batch_size = self.basic.batch_size

    def history(self) -> list[tuple[dict[str, int], Attack]]:
        """Of the rounds, the one before the first is the plain attack: the stage's own has few steps."""
        later = [one for one in super().history() if one[0]["round"] > 0]
        return [({"round": 0, "pairs": 0, "epochs": 0}, self.basic), *later]
