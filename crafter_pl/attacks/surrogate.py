"""The defence as two small nets: what it does to a feature, and how to undo that."""

from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.adaptive import AdaptiveStage
from crafter_pl.limits import AboveZero, FromZero, NonNegativeInt, PositiveInt
from crafter_pl.nets import FeatureMap, synchronised


class DefenseSurrogate(AdaptiveStage):
    """Learns a defence from pairs of a public face's own feature ``E = Enc(X)`` and its crafted one ``F``.

    In rounds of queries and training; see `AdaptiveStage`. Two residual nets are trained together: ``P`` does
    what the defence does, ``P(E) = F``, and ``Q`` undoes it, ``Q(F) = E``. The loss is the sum of both mean
    squared errors, in units of each channel's standard deviation. At first both change nothing. ``Enc`` is
    the encoder that the defence has published. `ThroughDefenceAttack` inverts through the nets.

    ``val/error`` is ``|P(E) - F| / |F - E|`` on held-out public people, ``val/undone`` the same of
    ``|Q(F) - E|``: 1 knows nothing of what the defence does.

    Args:
        defense_ckpt: the defence under attack, of any class, or the name of its run in the experiment.
        protect: the options of the defence that is attacked, as ``predict --protect.*`` (null: as it was
            trained).
        pairs_per_round: public faces that are queried in each round.
        epochs_per_round: passes over all pairs so far in each round.
        val_pairs: held-out public faces that are queried once, to watch the error.
        batch_size: pairs a step, over all processes.
        shard_size: faces crafted at a time.
        lr: the highest learning rate of each round (AdamW).
        weight_decay: of AdamW.
        width: channels of the nets.
        blocks: residual blocks of each.
        hidden: units of the dense layer of each.
        queries_dir: folder of crafted pairs; null is ``queries`` beside the run.
    """

    stage_name = "surrogate"

    def __init__(
        self,
        defense_ckpt: str | None = "crafter",
        protect: dict[str, Any] | None = None,
        pairs_per_round: PositiveInt = 256,
        epochs_per_round: PositiveInt = 10,
        val_pairs: PositiveInt = 64,
        batch_size: PositiveInt = 32,
        shard_size: PositiveInt = 64,
        lr: AboveZero = 2e-3,
        weight_decay: FromZero = 1e-2,
        width: PositiveInt = 64,
        blocks: NonNegativeInt = 2,
        hidden: PositiveInt = 128,
        queries_dir: str | None = None,
    ) -> None:
        super().__init__()
        shape = self.defense.task.feature_shape
        self.doing = FeatureMap(shape, width, blocks, hidden)
        self.undoing = FeatureMap(shape, width, blocks, hidden)
        synchronised(self)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures -> unprotected features, by the published encoder."""
        return self.defense.edge_module()(images)

    def on_train_start(self) -> None:
        """Takes the features' mean and spread from the first round's pairs."""
        if self.epochs_done == 0:
            crafted, images, _ = self.queries.batch(self.hparams["pairs_per_round"], "public_train")
            parts = images.to(self.doing.std).split(self.hparams["batch_size"])
            features = torch.cat([*map(self.encode, parts), crafted.to(self.doing.std)])
            for net in (self.doing, self.undoing):
                net.measure(features)
        super().on_train_start()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The squared errors of both nets."""
        crafted, clean = batch["features"], self.encode(batch["image"])
        wrong = torch.cat([self.doing(clean) - crafted, self.undoing(crafted) - clean])
        loss = 2 * (wrong / self.doing.std).square().mean()
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(clean))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Both errors on held-out public people, as shares of what the defence has changed."""
        crafted, clean = batch["features"], self.encode(batch["image"])
        for name, wrong in (
            ("error", self.doing(clean) - crafted),
            ("undone", self.undoing(crafted) - clean),
        ):
            error = relative(wrong, crafted - clean).mean()
            self.log(f"val/{name}", error, prog_bar=name == "error", batch_size=len(clean))

    def draw_round(self) -> None:
        """Nothing: no pictures are made here."""


def relative(wrong: Tensor, change: Tensor) -> Tensor:
    """``|wrong| / |change|`` of each sample ``(N, ...)``; 0 where both are 0."""
    norms = wrong.flatten(1).norm(dim=1), change.flatten(1).norm(dim=1)
    return norms[0] / norms[1].clamp(min=torch.finfo(norms[1].dtype).tiny)
