"""The kinds of answers: attributes, classes, values, and vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from crafter_pl.answers.base import Answers, Figures, Unweighted
from crafter_pl.metrics import AttributeAUC, Bootstrapped, IdentityBootstrap, attribute_loss, mean_of
from crafter_pl.metrics.scores import macro_f1, r2

_EDGE = 1e-4  # codewords' probabilities stay that far from 0 and 1


class MultiLabel(Answers):
    """Independent attributes, each a logit."""

    kind, main, served, separate = "multilabel", "mean_auc", "attributes", True

    def statistic(self, outputs: Tensor) -> Tensor:
        """Probabilities."""
        return outputs.sigmoid()

    def own(self, outputs: Tensor) -> Tensor:
        """Yes or no."""
        return (outputs > 0).float()

    def terms(self, outputs: Tensor, statistic: Tensor) -> Tensor:
        """Binary cross entropy."""
        return F.binary_cross_entropy_with_logits(outputs, statistic, reduction="none")

    def terms_at(self, statistic: Tensor) -> Tensor:
        """Entropy."""
        return F.binary_cross_entropy(statistic, statistic, reduction="none")

    def loss(self, outputs: Tensor, aims: Tensor) -> Tensor:
        """The mean over what is known, entry by entry."""
        return attribute_loss(outputs, aims)

    def settled(self, words: Tensor) -> Tensor:
        """Neither 0 nor 1."""
        return words.clamp(_EDGE, 1 - _EDGE)

    def weights(self, statistics: Tensor) -> Tensor:
        """One over what a public face's answers tell of each attribute, in nats, scaled to a mean of 1.

        A rare attribute has few nats, and codewords would be spent on the common ones alone: a mean AUC
        counts all alike.
        """
        p = statistics.double().cpu()
        told = _entropy(p.mean(0)) - _entropy(p).mean(0)
        weights = 1 / told.clamp(min=1e-3)
        return weights / weights.mean()

    def plane(self, words: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Of the sum of weighted negative entropies."""
        return weights * torch.logit(words), (weights * torch.log1p(-words)).sum(1)

    def far(self, statistic: Tensor, words: Tensor, weights: Tensor | None = None) -> Tensor:
        """Weighted sum over attributes of ``KL``, nats."""
        p, c = statistic.double(), self.settled(words.double())
        w = torch.ones_like(c[0]) if weights is None else weights.double()
        return -(w * _entropy(p)).sum(1)[:, None] - (w * p) @ c.log().T - (w * (1 - p)) @ torch.log1p(-c).T

    def natural(self, outputs: Tensor) -> Tensor:
        """Logits."""
        return outputs

    def natural_at(self, words: Tensor) -> Tensor:
        """Logits."""
        return torch.logit(words)

    def figures(self, boot: IdentityBootstrap, outputs: Tensor, truth: Tensor) -> Figures:
        """The AUC of every attribute that has both classes, and their mean."""
        each = _aucs(boot, outputs, truth)
        return Figures({"mean_auc": mean_of(list(each.values()))} if each else {}, each)

    def metric(self) -> Metric:
        """0.5 where no attribute has both classes."""
        return AttributeAUC()


class MultiClass(Unweighted):
    """One of K classes, by logits; labels are one-hot."""

    kind, main, served = "multiclass", "accuracy", "classes"

    def statistic(self, outputs: Tensor) -> Tensor:
        """Probabilities that sum to 1."""
        return outputs.softmax(1)

    def own(self, outputs: Tensor) -> Tensor:
        """The likeliest class."""
        return F.one_hot(outputs.argmax(1), outputs.shape[1]).float()

    def terms(self, outputs: Tensor, statistic: Tensor) -> Tensor:
        """Cross entropy."""
        return -statistic * outputs.log_softmax(1)

    def terms_at(self, statistic: Tensor) -> Tensor:
        """Entropy."""
        return torch.special.entr(statistic)

    def settled(self, words: Tensor) -> Tensor:
        """Every class has a little."""
        words = words.clamp(min=_EDGE)
        return words / words.sum(1, keepdim=True)

    def potential(self, statistic: Tensor) -> Tensor:
        """Negative entropy."""
        return -torch.special.entr(statistic).sum(1)

    def plane(self, words: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities; they are all of it where probabilities sum to 1."""
        return words.log(), torch.zeros_like(words[:, 0])

    def natural(self, outputs: Tensor) -> Tensor:
        """Log-probabilities."""
        return outputs.log_softmax(1)

    def natural_at(self, words: Tensor) -> Tensor:
        """Log-probabilities."""
        return words.log()

    def figures(self, boot: IdentityBootstrap, outputs: Tensor, truth: Tensor) -> Figures:
        """Accuracy, macro-F1, and the mean over classes of the AUC of one against the rest."""
        said, true = (one.argmax(1).numpy() for one in (outputs, truth))
        each = _aucs(boot, outputs.softmax(1), truth)
        found = {
            "accuracy": boot.mean(said == true),
            "macro_f1": boot.figure(lambda weights: macro_f1(said, true, weights)),
        }
        return Figures({**found, **({"mean_auc": mean_of(list(each.values()))} if each else {})}, each)

    def blind(self, truth: Tensor) -> float:
        """The commonest class's share."""
        return float(truth.mean(0).max())


class Regression(Unweighted):
    """K values, compared in units of their standard deviation over the public faces.

    Args:
        mean: ``(K,)`` over the public faces.
        std: standard deviation, likewise.
    """

    kind, main, served, separate = "regression", "r2", "values", True
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = nn.Buffer(mean, persistent=False), nn.Buffer(std, persistent=False)

    def part(self, columns: Tensor) -> Regression:
        """Their means and deviations."""
        return Regression(self.mean[columns], self.std[columns])

    @torch.no_grad()
    def begin(self, net: nn.Module) -> None:
        """The last linear layer gives standardised values in their own units."""
        for last in [module for module in net.modules() if isinstance(module, nn.Linear)][-1:]:
            last.weight.mul_(self.std.to(last.weight)[:, None])
            last.bias.copy_(self.told(last.bias))

    def statistic(self, outputs: Tensor) -> Tensor:
        """Standardised values."""
        return (outputs - self.mean.to(outputs)) / self.std.to(outputs)

    def aims(self, truth: Tensor) -> Tensor:
        """Standardised values."""
        return self.statistic(truth)

    def own(self, outputs: Tensor) -> Tensor:
        """The values themselves."""
        return outputs

    def answer(self, outputs: Tensor) -> Tensor:
        """The values themselves."""
        return outputs

    def terms(self, outputs: Tensor, statistic: Tensor) -> Tensor:
        """Squared errors in units of the variance."""
        return (self.statistic(outputs) - statistic).square()

    def potential(self, statistic: Tensor) -> Tensor:
        """Half the square."""
        return statistic.square().sum(1) / 2

    def plane(self, words: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Of half the square."""
        return words, -words.square().sum(1) / 2

    def told(self, words: Tensor) -> Tensor:
        """In the values' own units."""
        return self.mean.to(words) + self.std.to(words) * words

    def figures(self, boot: IdentityBootstrap, outputs: Tensor, truth: Tensor) -> Figures:
        """R² and the mean absolute error, both means over the values."""
        said, true = outputs.double().numpy(), truth.double().numpy()
        found = {
            "r2": boot.figure(lambda weights: r2(said, true, weights)),
            "mae": boot.mean(abs(said - true).mean(1)),
        }
        return Figures({name: one for name, one in found.items() if one.value == one.value}, {})

    def blind(self, truth: Tensor) -> float:
        """That of the mean."""
        return 0.0


class Embedding(Unweighted):
    """A vector, compared by its direction; nobody labels it, so its yardstick is always the model's own."""

    kind, main, served, labelled = "embedding", "cosine", "embedding", False

    def statistic(self, outputs: Tensor) -> Tensor:
        """Unit vectors."""
        return F.normalize(outputs)

    def own(self, outputs: Tensor) -> Tensor:
        """Unit vectors."""
        return F.normalize(outputs)

    def terms(self, outputs: Tensor, statistic: Tensor) -> Tensor:
        """Parts of ``1 - cosine``, if the statistic has length 1."""
        return statistic * (statistic - self.statistic(outputs))

    def settled(self, words: Tensor) -> Tensor:
        """Of length 1."""
        return F.normalize(words)

    def potential(self, statistic: Tensor) -> Tensor:
        """Length: 1 of one vector; of a mean less."""
        return statistic.norm(dim=1)

    def plane(self, words: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The words themselves: on the sphere the divergence is ``1 - cosine``."""
        return words, torch.zeros_like(words[:, 0])

    def figures(self, boot: IdentityBootstrap, outputs: Tensor, truth: Tensor) -> Figures:
        """The mean cosine."""
        return Figures({"cosine": boot.mean(F.cosine_similarity(outputs, truth).numpy())}, {})


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) + torch.special.entr(1 - p)


def _aucs(boot: IdentityBootstrap, scores: Tensor, truth: Tensor) -> dict[int, Bootstrapped]:
    """The AUC of every column whose truth has both classes."""
    positives = truth.sum(0).long().tolist()
    kept = [column for column, count in enumerate(positives) if 0 < count < len(truth)]
    if not kept:
        return {}
    return dict(zip(kept, boot.auc(scores[:, kept], truth[:, kept]), strict=True))
