"""What the cloud's answers are held against: the labels, or the unprotected model's own answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crafter_pl.answers import Answers, Figures
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
        columns: which of the outputs these are; None: all.
        unlabelled: names of the others.
    """

    answers: Answers
    names: Sequence[str]
    truth: Tensor
    agreement: bool = False
    columns: list[int] | None = None
    unlabelled: Sequence[str] = ()

    def part(self, columns: list[int]) -> Yardstick:
        """Of some of the outputs alone, as far as there is a truth of them.

        Raises:
            UserError: there is none of any.
        """
        mine = [*range(len(self.names))] if self.columns is None else self.columns
        if not (places := [mine.index(column) for column in columns if column in mine]):
            raise UserError(
                "the data label nothing that the service needs, so there is no utility to measure: give data "
                "with such labels, or without any (--data.labels null)"
            )
        names, own = [self.names[place] for place in places], self.answers.part(torch.tensor(places))
        kept = [mine[place] for place in places]
        return replace(self, answers=own, names=names, truth=self.truth[:, places], columns=kept)

    def figures(self, boot: IdentityBootstrap, outputs: Tensor) -> Figures:
        """Of outputs ``(N, A)``, all of them."""
        own = outputs if self.columns is None else outputs[:, self.columns]
        return self.answers.figures(boot, own, self.truth)

    def measure(self, boot: IdentityBootstrap, outputs: Tensor) -> Measured:
        """All figures of outputs ``(N, A)``, all of them.

        Raises:
            UserError: the pictures are such that the main figure is not defined.
        """
        figures, each = self.figures(boot, outputs)
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
        """Attributes and classes that all pictures have, or none, or that nobody labels."""
        if not bool(((self.truth == 0) | (self.truth == 1)).all()):
            return []
        shares = self.truth.double().mean(0)
        alike = [name for name, share in zip(self.names, shares, strict=True) if not 0 < share < 1]
        return [*alike, *self.unlabelled]

    @property
    def note(self) -> str | None:
        """What a report must say of it."""
        if self.unlabelled:
            count = len(self.names)
            return (
                f"The data label {count} of the {count + len(self.unlabelled)} attributes that the model "
                "answers: utility is over these alone."
            )
        return OWN if self.agreement else None


def yardstick(
    task: TaskModel, data: FacesDataModule, labels: Tensor, outputs: Callable[[], Tensor]
) -> Yardstick:
    """The labels of what the task model answers, or of a part of it; else its own answers.

    Args:
        task: the model.
        data: set up.
        labels: of the audited pictures.
        outputs: its outputs for them, unprotected, ``(N, A)``.

    Raises:
        UserError: the labels are of something else.
    """
    names, theirs = list(task.hparams["attribute_names"]), list(data.attribute_names)
    if not has_truth(task, data, partly=True):
        return Yardstick(task.answers, names, task.answers.own(outputs()), agreement=True)
    if names == theirs:
        return Yardstick(task.answers, names, labels)
    columns = [column for column, name in enumerate(names) if name in theirs]
    known, unlabelled = [names[column] for column in columns], [one for one in names if one not in theirs]
    truth, own = labels[:, [theirs.index(name) for name in known]], task.answers.part(torch.tensor(columns))
    return Yardstick(own, known, truth, columns=columns, unlabelled=unlabelled)
