"""The classifier that answers in the cloud, from the checkpoint of any stage that has one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from crafter_pl.answers import ATTRIBUTES, KINDS, Answers, Kind
from crafter_pl.data.pool import Pool
from crafter_pl.defenses.base import defenses, load_defense
from crafter_pl.defenses.certified import Certified
from crafter_pl.errors import UserError
from crafter_pl.files import sha256
from crafter_pl.nets.certified import Columns
from crafter_pl.nets.fold import fold_batchnorm
from crafter_pl.plugins import import_modules
from crafter_pl.stages import CloudClassifier, TaskModel, load_stage, read_checkpoint


@dataclass(frozen=True)
class Facts:
    """What a classifier tells of itself.

    Attributes:
        stage: class of the stage that it came from.
        attributes: names of its answers, in their order: of attributes, classes or values.
        shape: ``(C, h, w)`` of the features that it takes.
        encoder_sha256: of the task model's checkpoint whose edge encoder makes them.
        defense_sha256: of the one defence whose features it understands; None: those of any on that encoder.
        kind: what its answers are, see `crafter_pl.answers`.
        not_answered: attributes that the classifier knows, but a certified defence's features do not: what
            it would answer is a random prior face's, and nobody's.
    """

    stage: str
    attributes: tuple[str, ...]
    shape: tuple[int, int, int]
    encoder_sha256: str
    defense_sha256: str | None
    not_answered: tuple[str, ...] = ()
    kind: Kind = "multilabel"

    @property
    def served(self) -> str:
        """What an answer calls them."""
        return KINDS[self.kind].served

    def named(self, row: Sequence[float]) -> dict[str, float] | list[float]:
        """One feature's answers by their names; the numbers of an embedding have none."""
        return dict(zip(self.attributes, row, strict=True)) if KINDS[self.kind].labelled else list(row)


class Answering(Columns):
    """The classifier behind certified features; ``pool``, if there is one, looks up what came compactly."""

    def __init__(self, classifier: nn.Module, columns: list[int], pool: Pool | None) -> None:
        super().__init__(classifier, columns)
        self.pool = pool


def load_classifier(path: str | Path) -> tuple[nn.Module, Facts, Answers]:
    """Rebuild the classifier from the checkpoint of a task model, a `CloudClassifier` or a defence.

    A task model's, and that of a defence that leaves it as it is, answers for features of any defence on its
    encoder. One that a defence has retrained, or that has learned from a defence's features, answers for
    features of that defence alone; so does a certified defence's, and for the attributes alone that it sends.

    Returns:
        The net in eval mode, features float32 ``(N, C, h, w)`` -> outputs ``(N, A)``, on the CPU; its facts;
        what its outputs mean.

    Raises:
        UserError: the file is missing, damaged, or of a stage without a cloud classifier.
    """
    import_modules("defenses")
    name = read_checkpoint(path).get("stage_class") or "something else"
    net: nn.Module
    defense: str | None = None
    columns: list[int] | None = None
    pool: Pool | None = None
    if name == "TaskModel":
        task = load_stage(path, TaskModel)
        net, encoder = task.net.cloud, sha256(path)
    elif name == "CloudClassifier":
        stage = load_stage(path, CloudClassifier)
        task, net, encoder = stage.task, stage.net, stage.upstream_files["task"][1]
        defense = (stage.hparams["learned_from"] or {}).get("defense_sha256")
    elif name in defenses():
        trained = load_defense(path)
        task, net, encoder = trained.task, trained.cloud_module(), trained.upstream_files["task"][1]
        defense = trained.weights_hash() if trained.retrains else None
        if isinstance(trained, Certified):
            defense, columns = trained.weights_hash(), trained.columns
            pool = Pool(trained.pool) if trained.pool.numel() else None
    else:
        raise UserError(
            f"{path} is a checkpoint of {name}, which has no cloud classifier: give one of a task model, "
            "a CloudClassifier or a defence"
        )
    if any(isinstance(one, fx.GraphModule) for one in net.modules()):
        net = fold_batchnorm(net)
    # Convolutions of many small maps are up to twice as fast on the CPU with the channels side by side.
    net = net.eval().to(memory_format=torch.channels_last)
    names = task.hparams["attribute_names"]
    answered = range(len(names)) if columns is None else columns
    absent = tuple(one for place, one in enumerate(names) if place not in answered)
    net = net if columns is None else Answering(net, columns, pool)
    meaning = task.answers.part(torch.tensor([*answered]))
    known = tuple(names[place] for place in answered)
    facts = Facts(name, known, task.feature_shape, encoder, defense, absent, meaning.kind)
    return net, facts, meaning


@torch.inference_mode()
def classify(net: nn.Module, features: Tensor, most: int, answers: Answers = ATTRIBUTES) -> Tensor:
    """What is answered, float32 ``(N, A)``, to features ``(N, C, h, w)``, at most ``most`` in one pass."""
    return torch.cat([answers.answer(net(part).float()).cpu() for part in features.split(most)])


def spare_one_core() -> None:
    """Lets torch compute in one thread less than there are cores, unless OMP_NUM_THREADS says how many.

    A core that also talks HTTP makes the other ones wait for it in every layer.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))
