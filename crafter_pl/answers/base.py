"""The one interface of what outputs mean.

A *statistic* is what an output says, as
a point in a space where means are meaningful: probabilities, standardised values, unit vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from crafter_pl.metrics import Bootstrapped, IdentityBootstrap
from crafter_pl.metrics.collected import Collected

Kind = Literal["multilabel", "multiclass", "regression", "embedding"]


class Figures(NamedTuple):
    """Of utility: by name, and the AUC of the columns that have both classes."""

    figures: dict[str, Bootstrapped]
    per_column: dict[int, Bootstrapped]


class Answers(nn.Module, ABC):
    """What outputs ``(N, A)`` mean. Outputs are as the net gives them; truth as labels are in `Faces`.

    The divergence is Bregman's of the statistic: of a cluster the mean serves best, and the nearest word is
    found by a product.

    Class attributes:
        kind: as `make` knows it.
        labelled: whether people label it; else a model's own answers are the only truth there is.
        main: name of the figure that stands for the utility; the higher the better.
        served: what `serve` calls its answers.
        separate: whether each output answers by itself, so that a service can need some of them.
    """

    kind: ClassVar[Kind]
    main: ClassVar[str]
    served: ClassVar[str]
    separate: ClassVar[bool] = False
    labelled: ClassVar[bool] = True

    def part(self, columns: Tensor) -> Answers:
        """What these columns of the outputs mean, int64 ``(S,)``; where they are not separate, all."""
        return self

    def begin(self, net: nn.Module) -> None:
        """Brings a fresh net's last layer to where its outputs should begin: here it stays."""

    # ---- outputs and what they say ------------------------------------------------------------------------
    @abstractmethod
    def statistic(self, outputs: Tensor) -> Tensor:
        """What outputs say, ``(N, A)``."""

    def aims(self, truth: Tensor) -> Tensor:
        """Labels as a statistic, ``(N, A)``; NaN stays."""
        return truth

    @abstractmethod
    def own(self, outputs: Tensor) -> Tensor:
        """The labels that the outputs amount to, ``(N, A)``: the truth where there is no other."""

    def answer(self, outputs: Tensor) -> Tensor:
        """What is served, ``(N, A)``."""
        return self.statistic(outputs)

    # ---- how far two are apart ----------------------------------------------------------------------------
    @abstractmethod
    def terms(self, outputs: Tensor, statistic: Tensor) -> Tensor:
        """Cross divergence of outputs from a statistic, for each output ``(N, A)``; see `pooled`."""

    def terms_at(self, statistic: Tensor) -> Tensor:
        """What `terms` is where the outputs say exactly that, ``(N, A)``."""
        return torch.zeros_like(statistic)

    def pooled(self, terms: Tensor) -> Tensor:
        """Of one sample, ``(N,)``: the mean over separate outputs, else the sum."""
        return terms.mean(1) if self.separate else terms.sum(1)

    def loss(self, outputs: Tensor, aims: Tensor) -> Tensor:
        """Mean cross divergence, a scalar; samples whose statistic ``aims`` has a NaN are left out."""
        known = ~aims.isnan().any(1)
        each = self.pooled(self.terms(outputs, aims.nan_to_num()))
        return (each * known).sum() / known.sum().clamp(min=1)

    # ---- codewords ----------------------------------------------------------------------------------------
    def settled(self, words: Tensor) -> Tensor:
        """Means of statistics ``(M, A)`` as codewords: where the divergence from them is finite."""
        return words

    def weights(self, statistics: Tensor) -> Tensor | None:
        """Of the outputs in the choice of a codeword ``(A,)``, learnt from public faces; None: all alike."""
        return None

    @abstractmethod
    def plane(self, words: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The potential's tangent at each word: slopes ``(M, A)`` and offsets ``(M,)``."""

    @abstractmethod
    def far(self, statistic: Tensor, words: Tensor, weights: Tensor | None = None) -> Tensor:
        """Divergence of statistics ``(N, A)`` from words ``(M, A)``: ``(N, M)``, float64."""

    def natural(self, outputs: Tensor) -> Tensor:
        """Coordinates of outputs for linear methods, ``(N, A)``."""
        return self.statistic(outputs)

    def natural_at(self, words: Tensor) -> Tensor:
        """The same of codewords, ``(M, A)``."""
        return words

    def told(self, words: Tensor) -> Tensor:
        """Codewords for a reader: probabilities, or values in their units."""
        return words

    # ---- figures ------------------------------------------------------------------------------------------
    @abstractmethod
    def figures(self, boot: IdentityBootstrap, outputs: Tensor, truth: Tensor) -> Figures:
        """Of outputs beside the truth, both ``(N, A)``, no NaN; `main` is missing where undefined."""

    def blind(self, truth: Tensor) -> float | None:
        """`main` of who answers the truth ``(N, A)`` best without looking; None: nothing needs to be said."""
        return None

    def metric(self) -> Metric:
        """`main` as stages log it: ``update(outputs, truth)``."""
        return _Main(self)


class Unweighted(Answers):
    """Answers whose outputs count alike in the divergence, which then follows from the potential."""

    @abstractmethod
    def potential(self, statistic: Tensor) -> Tensor:
        """The convex function behind the divergence, ``(N,)``."""

    def far(self, statistic: Tensor, words: Tensor, weights: Tensor | None = None) -> Tensor:
        """Divergence of statistics ``(N, A)`` from words ``(M, A)``: ``(N, M)``, float64."""
        s, w = statistic.double(), self.settled(words.double())
        slopes, offsets = self.plane(w, torch.ones_like(w[0]))
        return self.potential(s)[:, None] - s @ slopes.T - offsets


class _Main(Collected):
    """The main figure over all that was seen and is known; 0 where it is not defined."""

    parts = ("outputs", "truth")  # both (N, A)

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = [answers]  # not as a module of its own

    def compute(self) -> Tensor:
        """Scalar, float32."""
        outputs, truth = (part.float() for part in self.seen)
        known = ~truth.isnan().any(1)
        if not bool(known.any()):
            return torch.tensor(0.0)
        boot = IdentityBootstrap(torch.arange(int(known.sum())), 1)
        found = self.answers[0].figures(boot, outputs[known], truth[known]).figures
        return torch.tensor(found[self.answers[0].main].value if self.answers[0].main in found else 0.0)
