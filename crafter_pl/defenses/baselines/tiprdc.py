"""TIPRDC: features that hide who it is and keep all else, whatever the task."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import check_several
from crafter_pl.defenses.baselines.retrained import Retrained
from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.limits import ClosedUnitInterval, PositiveInt
from crafter_pl.nets import FeatureHead, MutualInformation


class Tiprdc(Retrained[ProtectOptions]):
    """An encoder trained against an identity classifier, and for the information on the picture otherwise.

    Li et al., TIPRDC: Task-Independent Privacy-Respecting Data Crowdsourcing, KDD 2020. On public faces, with
    their people as the private label u, the encoder minimises

    ``-lambda min(CE_u / ln P, 1) - (1 - lambda) I(Enc(X); X | u)``

    where the adversary names the P people with cross entropy ``CE_u``, of which guessing costs ``ln P``, and
    I is a Jensen-Shannon estimate by a critic, trained with the encoder. The encoder never hears of the task:
    the cloud's classifier learns beside it on what leaves the edge. See `Retrained`.

    Args:
        task_ckpt: the task model from which encoder and classifier start; null finds the experiment's own.
        lambda_: weight of hiding, in [0, 1] (the authors': 0.6 to 0.66).
        lr: Adam's learning rate of encoder, critic and classifier.
        width: first width of the adversary and of the critic.
        adversary_lr: the adversary's Adam's learning rate.
        adversary_steps: its updates a batch.
        people: the raw identity numbers of the public people, in order; the command line takes them from the
            data.
    """

    stage_name = "tiprdc"
    tradeoff = "lambda_"
    recorded = ("lambda_", "lr", "width", "adversary_lr", "adversary_steps")

    def __init__(
        self,
        task_ckpt: str | None = None,
        lambda_: ClosedUnitInterval = 0.6,
        lr: float = 5e-4,
        width: PositiveInt = 32,
        adversary_lr: float = 1e-3,
        adversary_steps: PositiveInt = 1,
        people: list[int] | None = None,
    ) -> None:
        super().__init__()
        shape, count = self.task.feature_shape, len(self.needs("people"))
        self.adversary: FeatureHead = FeatureHead(shape, count, width)
        self.information = MutualInformation(shape[0], count, width)

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """Who is public.

        Raises:
            UserError: there are too few people.
        """
        check_several(len(data.public_identities), "public people: --data.people")
        return {"people": sorted(data.public_identities.tolist())}

    def _label(self, batch: dict[str, Tensor]) -> Tensor:
        """Classes of the batch's people."""
        people = torch.tensor(self.hparams["people"], device=batch["identity"].device)
        return torch.searchsorted(people, batch["identity"])

    def spy(self, features: Tensor, images: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the adversary's guess who it is."""
        cosines = self.adversary.cosines(self.adversary.embed(features))
        return F.cross_entropy(20.0 * cosines, self._label(batch))  # 20: an inverse temperature

    def to_cloud(self, features: Tensor) -> Tensor:
        """The task does not reach the encoder."""
        return features.detach()

    def defend(
        self, features: Tensor, images: Tensor, batch: dict[str, Tensor], task: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The classifier's loss, and the encoder's."""
        weight, people = self.hparams["lambda_"], len(self.hparams["people"])
        hidden = (self.spy(features, images, batch) / math.log(max(people, 2))).clamp(max=1)
        information = self.information(features, images, self._label(batch))
        loss = task - weight * hidden - (1 - weight) * information
        return loss, {"hidden": hidden, "information": information}

    def defenders(self) -> list[nn.Module]:
        """With the critic."""
        return [self.net, self.information]
