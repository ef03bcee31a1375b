"""What is answered, by the kind of the model's answers.

Annotations here are objects and not strings: FastAPI reads them.
"""

import json
import math
from itertools import chain

from fastapi import HTTPException
from pydantic import BaseModel

from crafter_pl.answers import Kind
from crafter_pl.cloud.batching import Rows
from crafter_pl.cloud.classifier import Facts


class Answer(BaseModel):
    """One feature's."""

    index: int | None
    """The sender's number of the feature; null if the body had none."""
    attributes: dict[str, float]
    """Probability of each attribute, in the checkpoint's order."""


class Classes(BaseModel):
    """One feature's."""

    index: int | None
    classes: dict[str, float]
    """Probability of each class; they sum to 1."""


class Values(BaseModel):
    """One feature's."""

    index: int | None
    values: dict[str, float]
    """In the units of the labels that the model was trained on."""


class Embedding(BaseModel):
    """One feature's."""

    index: int | None
    embedding: list[float]
    """Of length 1."""


class Answers(BaseModel):
    """In the order of the features in the body."""

    answers: list[Answer]
    not_answered: list[str] = []
    """Attributes that these features say nothing about: nobody may take a guess at them for the person's."""


class ClassAnswers(BaseModel):
    """In the order of the features in the body."""

    answers: list[Classes]


class ValueAnswers(BaseModel):
    """In the order of the features in the body."""

    answers: list[Values]
    not_answered: list[str] = []
    """Values that these features say nothing about."""


class EmbeddingAnswers(BaseModel):
    """In the order of the features in the body."""

    answers: list[Embedding]


NOUNS: dict[Kind, str] = {
    "multilabel": "attributes",
    "multiclass": "classes",
    "regression": "values",
    "embedding": "numbers of an embedding",
}
SCHEMAS: dict[Kind, type[BaseModel]] = {
    "multilabel": Answers,
    "multiclass": ClassAnswers,
    "regression": ValueAnswers,
    "embedding": EmbeddingAnswers,
}


def to_answers(rows: Rows, index: list[int] | None, facts: Facts) -> str:
    """JSON of the schema of its kind, such as `Answers`.

    Raises:
        HTTPException: the net gives no finite answer (422).
    """
    if not all(map(math.isfinite, chain.from_iterable(rows))):
        raise HTTPException(422, "the classifier gives no finite answer to these features")
    numbers: list[int] | list[None] = index or [None] * len(rows)
    answers = [
        {"index": number, facts.served: facts.named(row)} for number, row in zip(numbers, rows, strict=True)
    ]
    absent = {"not_answered": facts.not_answered} if facts.not_answered else {}
    return json.dumps({"answers": answers, **absent}, separators=(",", ":"), ensure_ascii=False)
