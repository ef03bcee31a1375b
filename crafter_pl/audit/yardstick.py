"""What the cloud's answers are held against: the labels, or the unprotected model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crafter_pl.answers import Answers
from crafter_pl.audit.utility import AUC, TITLES, AttributeEstimate, Utility
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError
from crafter_pl.metrics import Bootstrapped, IdentityBootstrap
from crafter_pl.stages.task import TaskModel, has_truth

OWN = (
    "The faces have no labels that say what the model should answer: utility is the agreement of "
    "the answers with the unprotected model's own, right or wrong."
)


@dataclass(frozen=True)
class Measured:
    """What features keep.

    Attributes:
        utility: the figures.
        kept: the main one, in every resample.
        scores: the classifier's outputs ``(N, A)``.
    """

    utility: Utility
    kept: Bootstrapped
    scores: Tensor


@dataclass(frozen=True)
class Yardstick:
    """What outputs should say.

    Attributes:
        answers: what they mean.
        names: of the `A` attributes, classes or values.
        truth: of the audited pictures ``(N, A)``, without NaN.
        agreement: the truth is the unprotected model's own answers.
    """

    answers: Answers
    names: Sequence[str]
    truth: Tensor
    agreement: bool = False

    def part(self, columns: list[int]) -> Yardstick:
        """Of some of the outputs alone."""
        names, own = [self.names[column] for column in columns], self.answers.part(torch.tensor(columns))
        return replace(self, answers=own, names=names, truth=self.truth[:, columns])

    def measure(self, boot: IdentityBootstrap, outputs: Tensor) -> Measured:
        """All figures of outputs ``(N, A)``.

        Raises:
            UserError: the pictures are such that the main figure is not defined.
        """
        figures, each = self.answers.figures(boot, outputs, self.truth)
        if (main := self.answers.main) not in figures:
            raise UserError(
                f"None of the {self.answers.served} {', '.join(self.names)} has two classes or values in the "
                f"evaluated pictures, so there is no {TITLES[main]}. Evaluate more pictures, or choose other "
                "columns with --data.attribute_columns."
            )
        positives = self.truth.sum(0).long().tolist()
        utility = Utility(
            {name: one.estimate() for name, one in figures.items()},
            {
                self.names[column]: AttributeEstimate(**vars(one.estimate()), positives=positives[column])
                for column, one in each.items()
            },
            None if main == AUC else main,
            self.agreement or None,
            self.answers.blind(self.truth),
        )
        return Measured(utility, figures[main], outputs)

    @property
    def left_out(self) -> list[str]:
        """Attributes and classes that all pictures have, or none."""
        if not bool(((self.truth == 0) | (self.truth == 1)).all()):
            return []
        shares = self.truth.double().mean(0)
        return [name for name, share in zip(self.names, shares, strict=True) if not 0 < share < 1]


def yardstick(
    task: TaskModel, data: FacesDataModule, labels: Tensor, outputs: Callable[[], Tensor]
) -> Yardstick:
    """The labels, if they are what the task model answers; else its own answers.

    Args:
        task: the model.
        data: set up.
        labels: of the audited pictures.
        outputs: its outputs for them, unprotected, ``(N, A)``.

    Raises:
        UserError: the labels are of something else.
    """
    names, known = list(task.hparams["attribute_names"]), has_truth(task, data)
    return Yardstick(task.answers, names, labels if known else task.answers.own(outputs()), not known)
