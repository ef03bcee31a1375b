"""Adaptive black-box inversion: the decoder is retrained on public faces that the defence has crafted."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor

from crafter_pl.attacks.adapted import AdaptedAttack
from crafter_pl.attacks.adaptive import AdaptiveStage
from crafter_pl.attacks.black_box import BlackBox, DecoderAttack, decoder_loss
from crafter_pl.data.keyed import keyed_uniform
from crafter_pl.errors import UserError
from crafter_pl.limits import AboveZero, ClosedUnitInterval, FromZero, PositiveInt
from crafter_pl.nets import synchronised
from crafter_pl.stages.upstream import Upstream


class AdaptiveBlackBox(AdaptiveStage):
    """Goes on training the black-box decoder on (crafted feature, picture) pairs of public faces (A1).

    In rounds of queries and training; see `AdaptiveStage`.

    Args:
        defense_ckpt: the defence under attack, of any class, or the name of its run in the experiment.
        black_box_ckpt: the decoder to start from; null finds the experiment's own. One that reads answers
            reads whatever its copy of the classifier learns to tell it.
        protect: the options of the defence that is attacked, as ``predict --protect.*`` (null: as it was
            trained).
        pairs_per_round: public faces that are queried in each round.
        epochs_per_round: passes over all pairs so far in each round (paper: 70 and more in all).
        val_pairs: held-out public faces that are queried once, to watch the error.
        batch_size: pairs a step, over all processes.
        shard_size: faces crafted at a time.
        lr: the highest learning rate of each round (AdamW).
        weight_decay: of AdamW.
        loss: ``l2`` (paper) or ``l1`` (sharper).
        feature_weight: weight of ``|Enc(decoded) - Enc(X)|^2 / d``, which rewards detail that the encoder can
            see; 0 is the paper's.
        clean_share: share of the pairs whose feature is the unprotected one, ``Enc(X)``.
        queries_dir: folder of crafted pairs; null is ``queries`` beside the run.
    """

    black_box = Upstream(BlackBox)  # the decoder that it starts from
    stage_name = "adaptive_black_box"

    def __init__(
        self,
        defense_ckpt: str | None = "crafter",
        black_box_ckpt: str | None = None,
        protect: dict[str, Any] | None = None,
        pairs_per_round: PositiveInt = 256,
        epochs_per_round: PositiveInt = 10,
        val_pairs: PositiveInt = 64,
        batch_size: PositiveInt = 32,
        shard_size: PositiveInt = 64,
        lr: AboveZero = 1e-3,
        weight_decay: FromZero = 1e-2,
        loss: Literal["l1", "l2"] = "l1",
        feature_weight: FromZero = 0.1,
        clean_share: ClosedUnitInterval = 0.0,
        queries_dir: str | None = None,
    ) -> None:
        super().__init__()
        read, protected = self.black_box.upstream_files["task"], self.defense.upstream_files["task"]
        if read[1] != protected[1]:
            raise UserError(
                f"the decoder {black_box_ckpt} reads features of {read[0]}, the defence {defense_ckpt} "
                f"protects those of {protected[0]}: give two checkpoints of one task model"
            )
        self.net = synchronised(copy.deepcopy(self.black_box.net)).requires_grad_(True).train()

    def reconstruct(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> pictures ``(N, 3, S, S)`` in [0, 1]."""
        return self.net(features)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Pixel loss, and the feature loss where it has a weight."""
        images, features, edge = batch["image"], batch["features"], self.defense.edge_module()
        with torch.no_grad():
            seen = edge(images)
        if self.hparams["clean_share"] > 0:
            draw = keyed_uniform(self.current_epoch, "clean", batch["index"].cpu()).to(images.device)
            clean = (draw < self.hparams["clean_share"]).view(-1, 1, 1, 1)
            features = torch.where(clean, seen.to(features.dtype), features)
        loss = decoder_loss(self.hparams, self.net(features), images, edge, seen)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(images))
        return loss


class AdaptiveDecoderAttack(AdaptedAttack, DecoderAttack):
    """The retrained decoder as an attack: for each defence the one trained against exactly that one.

    See `AdaptedAttack`. On unprotected features it is the black-box decoder that adaptation starts from.

    Args:
        ckpt: checkpoint of an `AdaptiveBlackBox`, such as one of its rounds; null finds it as said there.
        name: how the report calls it, and how the folders begin.
        black_box_ckpt: the decoder for unprotected features; null finds the experiment's own.
        batch_size: features decoded at a time.
    """

    stage_class = AdaptiveBlackBox

    def __init__(
        self,
        ckpt: str | None = None,
        name: str = "adaptive_black_box",
        black_box_ckpt: str | None = None,
        batch_size: int = 64,
    ) -> None:
        super().__init__(name=name, batch_size=batch_size)
        self.ckpt, self.basic = ckpt, DecoderAttack(black_box_ckpt, "black_box", batch_size)
