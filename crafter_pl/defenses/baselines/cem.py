"""CEM: noise on features in tight clusters, so that it covers what tells their members apart."""

import math

import torch
from torch import Tensor, nn

from crafter_pl.crafting.noise import keyed_normal
from crafter_pl.defenses.baselines.adversarial_learning import AdversarialLearning
from crafter_pl.defenses.options import KeyedOptions
from crafter_pl.errors import UserError
from crafter_pl.limits import AboveZero, BelowOne, FromZero, NonNegativeInt, PositiveInt
from crafter_pl.nets import Noisy


class Cem(AdversarialLearning[KeyedOptions]):
    """Gaussian noise on features that training pulls to the centres of their clusters.

    Xia et al., Theoretical Insights in Model Inversion Robustness and Conditional Entropy Maximization, CVPR
    2025. To the task's loss comes
    ``entropy * sum_k pi_k ReLU(log(var_k + gamma) - log(tau sigma^2 + gamma))``: a cluster's mean squared
    distance from its centre should not exceed a share of the noise's variance, so that noise covers what
    tells its members apart. The clusters are ``centres`` k-means of each class, found again at the start of
    every epoch. Faces have many attributes and no single class: the classes here are the combinations of the
    ``class_attributes`` best balanced attributes.

    It can be stacked on adversarial learning (``lambda_`` above 0).

    Args:
        task_ckpt: the task model from which encoder and classifier start; null finds the experiment's own.
        sigma: standard deviation of the noise, in the units of the features (the authors': 0.01 to 0.15).
        entropy: weight of the loss on clusters (the authors': 8 to 16).
        tau: share of the noise's variance that a cluster may have (the authors': 0.125).
        gamma: smooths the logarithms (the authors': 0.01).
        centres: k-means of a class (the authors': 5).
        class_attributes: attributes whose combinations are the classes; 0: one class.
        lambda_: weight of the decoder's error against the task, in [0, 1); at 0 there is no decoder.
        lr: Adam's learning rate of encoder and classifier.
        decoder: the adversary, ``residual`` or ``paper``.
        width: its first width.
        adversary_lr: its Adam's learning rate.
        adversary_steps: its updates a batch.
        restart_epochs: every so many epochs the decoder starts again from nothing; 0: never.
        seed: of the keyed noise in `predict`.
    """

    stage_name = "cem"
    train_split = "labelled_train"  # its classes are of attributes
    options_class = KeyedOptions
    tradeoff = "sigma"
    recorded = (
        *("sigma", "entropy", "tau", "gamma", "centres", "class_attributes", "seed"),
        *AdversarialLearning.recorded,
    )

    def __init__(
        self,
        task_ckpt: str | None = None,
        sigma: AboveZero = 0.15,
        entropy: FromZero = 8.0,
        tau: AboveZero = 0.125,
        gamma: AboveZero = 0.01,
        centres: PositiveInt = 5,
        class_attributes: NonNegativeInt = 3,
        lambda_: BelowOne = 0.0,
        lr: float = 5e-4,
        decoder: str = "residual",
        width: int = 48,
        adversary_lr: float = 1e-3,
        adversary_steps: PositiveInt = 1,
        restart_epochs: NonNegativeInt = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            task_ckpt, lambda_, lr, decoder, width, adversary_lr, adversary_steps, restart_epochs
        )
        self._means = torch.empty(0)  # (classes, centres, d) of this epoch
        self._chosen: list[int] = []

    def setup(self, stage: str) -> None:
        """The classes need attributes.

        Raises:
            UserError: the faces have none.
        """
        super().setup(stage)
        there = bool(self.data.attribute_names) and self.data.labels_kind != "regression"
        if stage == "fit" and self.hparams["class_attributes"] and not there:
            raise UserError(
                "cem's classes are combinations of attributes, and these faces have none: give "
                "--model.init_args.class_attributes 0 for a single class, or labels (--data.labels FILE)"
            )

    # ---- the clusters -------------------------------------------------------------------------------------
    def on_train_epoch_start(self) -> None:
        """Finds the clusters' centres on some public faces; the same ones on every process."""
        super().on_train_epoch_start()
        faces = self.data.dataset(self.train_split)
        rows = torch.randperm(len(faces), generator=torch.Generator().manual_seed(self.current_epoch))[:2048]
        batches = [faces.__getitems__(part.tolist()) for part in rows.split(256)]
        attributes = torch.cat([batch["attributes"] for batch in batches])
        balance = (faces.faces.attributes[faces.index].mean(0) - 0.5).abs()  # the same every epoch
        self._chosen = balance.argsort(stable=True)[: self.hparams["class_attributes"]].tolist()
        self.net.eval()
        with torch.no_grad():
            encode = self.net.encode
            parts = [encode(batch["image"].to(self.device)).flatten(1).float() for batch in batches]
        self.net.train()
        classes, count = self._class(attributes.to(self.device)), 2 ** len(self._chosen)
        self._means = class_means(torch.cat(parts), classes, count, self.hparams["centres"])

    def _class(self, attributes: Tensor) -> Tensor:
        """The class of each sample, int64 ``(N,)``."""
        weights = 2 ** torch.arange(len(self._chosen), device=attributes.device)
        return (attributes[:, self._chosen].long() * weights).sum(1)

    def to_cloud(self, features: Tensor) -> Tensor:
        """With fresh noise; `protect` adds keyed noise."""
        return features + self.hparams["sigma"] * torch.randn_like(features)

    def spy(self, features: Tensor, images: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The decoder sees them with noise, too."""
        return super().spy(self.to_cloud(features), images, batch)

    def defend(
        self, features: Tensor, images: Tensor, batch: dict[str, Tensor], task: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of adversarial learning, and that on clusters."""
        loss, figures = super().defend(features, images, batch, task)
        h, classes = self.hparams, self._class(batch["attributes"])
        allowed = h["tau"] * h["sigma"] ** 2
        spread = cluster_loss(
            features.flatten(1), self._means[classes], classes, allowed=allowed, gamma=h["gamma"]
        )
        return loss + h["entropy"] * spread, {**figures, "clusters": spread}

    @torch.no_grad()
    def protect(self, images: Tensor, index: Tensor, options: KeyedOptions) -> Tensor:
        """Pictures ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)`` with keyed noise."""
        encoded = self.net.encode(images)
        noise = keyed_normal(options.seed, index, encoded[0].numel()).to(encoded)
        return encoded + self.hparams["sigma"] * noise.view_as(encoded)

    def edge_graph(self, options: KeyedOptions) -> nn.Module:
        """Its own encoder, and noise."""
        return Noisy(self.edge_module(), self.hparams["sigma"])

    @property
    def edge_noise(self) -> int:
        """One for each entry of a feature."""
        return math.prod(self.task.feature_shape)


def class_means(points: Tensor, classes: Tensor, count: int, centres: int) -> Tensor:
    """k-means of each class, ``(count, centres, d)``; of a class without points all zeros.

    Args:
        points: ``(N, d)``.
        classes: int64 ``(N,)`` below ``count``.
        count: number of classes.
        centres: of each; a class of fewer points repeats them.
    """
    found = points.new_zeros(count, centres, points.shape[1])
    for number in range(count):
        mine = points[classes == number]
        if not len(mine):
            continue
        means = mine[torch.arange(centres, device=points.device) * len(mine) // centres]
        for _ in range(10):
            nearest = torch.cdist(mine, means).argmin(1)
            size = torch.bincount(nearest, minlength=centres)
            sums = torch.zeros_like(means).index_add_(0, nearest, mine)
            means = torch.where((size > 0)[:, None], sums / size.clamp(min=1)[:, None], means)
        found[number] = means
    return found


def cluster_loss(points: Tensor, means: Tensor, classes: Tensor, *, allowed: float, gamma: float) -> Tensor:
    """``sum_k pi_k ReLU(log(var_k + gamma) - log(allowed + gamma))`` over the clusters met in a batch.

    ``var_k`` is the mean over a cluster's members and the feature's entries of the squared distance to its
    centre.

    Args:
        points: features ``(N, d)``.
        means: the centres of each one's class, ``(N, centres, d)``; a member is of the nearest.
        classes: int64 ``(N,)``.
        allowed: variance that costs nothing.
        gamma: smooths the logarithms.
    """
    squares = (points[:, None].float() - means.float()).square().mean(2)
    nearest = squares.detach().argmin(1)
    distance = squares.gather(1, nearest[:, None])[:, 0]
    _, cluster, size = torch.unique(
        classes * means.shape[1] + nearest, return_inverse=True, return_counts=True
    )
    variance = distance.new_zeros(len(size)).index_add(0, cluster, distance) / size
    over = (torch.log(variance + gamma) - torch.log(torch.tensor(allowed + gamma))).relu()
    return (size / len(points) * over).sum()
