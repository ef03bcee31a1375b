"""NoPeek: features that are little correlated with the picture, in the sense of distance correlation."""

import torch
from torch import Tensor

from crafter_pl.defenses.baselines.retrained import Retrained
from crafter_pl.defenses.options import ProtectOptions
from crafter_pl.limits import BelowOne


class NoPeek(Retrained[ProtectOptions]):
    """Encoder and classifier trained on the task and on the distance correlation of picture and feature.

    Minimises ``(1 - lambda) L_task + lambda dCor(X, Enc(X))`` on public faces (Vepakomma et al., NoPeek,
    ICDMW 2020), ``dCor`` in [0, 1] over each batch. No adversary is trained: what a decoder can still make of
    such features is for the audit to say. See `Retrained`.

    Args:
        task_ckpt: the task model from which encoder and classifier start; null finds the experiment's own.
        lambda_: weight of the correlation against the task, in [0, 1) (the benchmark SIMBA: 0.8).
        lr: Adam's learning rate.
    """

    stage_name = "nopeek"
    tradeoff = "lambda_"
    recorded = ("lambda_", "lr")

    def __init__(self, task_ckpt: str | None = None, lambda_: BelowOne = 0.8, lr: float = 5e-4) -> None:
        super().__init__()

    def defend(
        self, features: Tensor, images: Tensor, batch: dict[str, Tensor], task: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss and the correlation."""
        correlation, weight = distance_correlation(images, features), self.hparams["lambda_"]
        return (1 - weight) * task + weight * correlation, {"correlation": correlation}

    def watch(self, features: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The correlation on held-out public people."""
        return {"correlation": distance_correlation(batch["image"], features)}


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Distance correlation of two samples of equal length (Szekely et al. 2007), scalar in [0, 1].

    Args:
        x: ``(N, ...)``.
        y: ``(N, ...)``; the same N, at least 2.
    """
    a, b = _centred_distances(x), _centred_distances(y)
    spread = (a.square().mean() * b.square().mean()).clamp(min=1e-24).sqrt()
    return ((a * b).mean() / spread).clamp(min=1e-12).sqrt()


def _centred_distances(x: Tensor) -> Tensor:
    """Euclidean distances within a sample, ``(N, N)``, less the means of their row and column."""
    flat = x.flatten(1).float()
    flat = flat - flat.mean(0)  # distances stay, and what cancels below is small
    with torch.autocast(x.device.type, enabled=False):
        inner = flat @ flat.T
    squares = inner.diagonal()
    square = squares[:, None] + squares - 2 * inner
    apart = (square > 1e-12) & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    distance = torch.where(apart, square.clamp(min=1e-12).sqrt(), 0.0)  # equal ones: 0, with no gradient
    return distance - distance.mean(0) - distance.mean(1, keepdim=True) + distance.mean()
