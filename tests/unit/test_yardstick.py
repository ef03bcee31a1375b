"""What answers are held against, where the data label a part of what a model answers."""

from types import SimpleNamespace

import pytest
import torch

from crafter_pl.answers import ATTRIBUTES, MultiClass
from crafter_pl.audit.yardstick import yardstick
from crafter_pl.errors import UserError
from crafter_pl.metrics import IdentityBootstrap
from crafter_pl.stages.task import has_truth

PEOPLE = torch.arange(12) // 2
LABELS = torch.stack([torch.arange(12) % 2, torch.arange(12) % 3 == 0], 1).float()  # old, glad


def of(theirs, kind="multilabel", answers=ATTRIBUTES):
    task = SimpleNamespace(answers=answers, hparams={"attribute_names": ["glad", "hat", "old"]})
    return task, SimpleNamespace(attribute_names=theirs, labels_kind=kind)


def test_utility_is_over_the_attributes_that_both_have():
    outputs = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    outputs[:, 0] = LABELS[:, 1]  # glad: always right
    yard = yardstick(*of(["old", "glad"]), LABELS, lambda: outputs)
    assert yard.names == ["glad", "old"] and yard.unlabelled == ["hat"] and yard.left_out == ["hat"]
    assert torch.equal(yard.truth, LABELS[:, [1, 0]]) and "2 of the 3 attributes" in yard.note
    boot = IdentityBootstrap(PEOPLE, 20)
    each = yard.measure(boot, outputs).utility.per_attribute
    assert each["glad"].value == 1 and each.keys() == {"glad", "old"}
    own = yardstick(*of(["glad", "hat", "old"]), LABELS[:, [1, 0, 0]], lambda: outputs)
    assert own.measure(boot, outputs).utility.per_attribute["old"].value == each["old"].value
    assert own.note is None and not own.left_out


def test_a_service_may_need_some_that_are_not_labelled():
    yard = yardstick(*of(["old", "glad"]), LABELS, lambda: None)
    part = yard.part([1, 2])  # hat, old
    assert part.names == ["old"] and part.columns == [2] and torch.equal(part.truth, LABELS[:, [0]])
    with pytest.raises(UserError, match="nothing that the service needs"):
        yard.part([1])


def test_labels_of_something_else_are_refused():
    for task, data in (of(["tall"]), of(["glad", "old"], "multiclass", MultiClass())):
        with pytest.raises(UserError, match="knows the"):
            has_truth(task, data, partly=True)
    with pytest.raises(UserError, match="knows the"):
        has_truth(*of(["glad", "old"]))  # to train on, all must be there
