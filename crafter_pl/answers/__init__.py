"""What a model's outputs mean: how they are learnt, compared, told in messages, served and measured."""

import torch

from crafter_pl.answers.base import Answers, Figures, Kind
from crafter_pl.answers.kinds import Embedding, MultiClass, MultiLabel, Regression
from crafter_pl.errors import UserError

__all__ = [
    "ATTRIBUTES",
    "KINDS",
    "Answers",
    "Embedding",
    "Figures",
    "Kind",
    "MultiClass",
    "MultiLabel",
    "Regression",
    "make",
]

ATTRIBUTES = MultiLabel()
KINDS: dict[str, type[Answers]] = {one.kind: one for one in (MultiLabel, MultiClass, Regression, Embedding)}


def make(kind: str, mean: list[float] | None = None, std: list[float] | None = None) -> Answers:
    """The answers of a kind; of a regression with mean and standard deviation over the public faces.

    Raises:
        UserError: there is no such kind, or a regression lacks them or has a deviation of 0.
    """
    if kind not in KINDS:
        raise UserError(f"answers {kind!r} are unknown: give {', '.join(KINDS)} (--model.init_args.answers)")
    if kind != Regression.kind:
        return KINDS[kind]()
    if not mean or not std or len(mean) != len(std) or not all(one > 0 for one in std):
        raise UserError(
            f"a regression needs its values' mean and standard deviation over public faces, above 0; got "
            f"{mean} and {std} (--model.init_args.answer_mean, answer_std)"
        )
    return Regression(torch.tensor(mean), torch.tensor(std))
