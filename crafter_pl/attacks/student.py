"""A student that reads identity from features: it learns on public faces what a recogniser sees in them."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.attacks.adaptive import AdaptiveStage
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.split import rank_in_person
from crafter_pl.errors import UserError
from crafter_pl.judges import embedded
from crafter_pl.judges.recognisers import Recogniser as Teacher
from crafter_pl.judges.recognisers import named
from crafter_pl.limits import AboveZero, FromZero, PositiveInt
from crafter_pl.metrics import person_means
from crafter_pl.nets import synchronised
from crafter_pl.nets.cut import replace_head
from crafter_pl.nets.oracle import CosineHead
from crafter_pl.stages.augment import warp
from crafter_pl.stages.base import Stage
from crafter_pl.stages.recogniser import Recogniser
from crafter_pl.stages.task import TaskModel
from crafter_pl.stages.upstream import Upstream

_CHUNK = 1024  # pictures whose embeddings are kept in one file


class Lessons:
    """What a teacher sees in public faces, as they are and mirrored: computed once, kept in files.

    Args:
        teacher: prepared here.
        stage: in training; the processes of its trainer share the work, its experiment's folder keeps it.
    """

    def __init__(self, teacher: Teacher, stage: Stage) -> None:
        faces, device, trainer = stage.data.dataset("public"), str(stage.device), stage.trainer
        folder = None if stage.experiment_dir is None else Path(stage.experiment_dir) / "embeddings"
        self.index, chunks = faces.index, faces.index.split(_CHUNK)
        notes = teacher.prepare(device, faces.take(faces.index[:200])["image"])

        def seen(chunk: Tensor, mirrored: bool) -> Tensor:
            images = faces.take(chunk)["image"]
            return embedded(teacher, images.flip(3) if mirrored else images, device, 64, folder)[0]

        for note in notes if trainer.is_global_zero else ():
            print(f"note: {note}", flush=True)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for chunk in chunks[trainer.global_rank :: trainer.world_size]:
                seen(chunk, False)
                seen(chunk, True)
            trainer.strategy.barrier()
        made = [torch.cat([seen(chunk, mirrored) for chunk in chunks]) for mirrored in (False, True)]
        seen_by_it = torch.stack(made)
        # All faces are alike to a recogniser: what tells people apart is where they differ from the mean.
        self.embeddings = F.normalize(seen_by_it - seen_by_it.mean((0, 1)), dim=2)

    def __call__(self, index: Tensor, mirrored: Tensor) -> Tensor:
        """Centred unit embeddings ``(N, E)`` of the pictures of these rows.

        Args:
            index: rows of the data set ``(N,)``.
            mirrored: of which the mirrored picture is meant, bool ``(N,)``.
        """
        place = torch.searchsorted(self.index, index.cpu())
        return self.embeddings[mirrored.long().cpu(), place].to(index.device)


class Student(Recogniser):
    """Learns unit embeddings of features of public faces: a face recogniser's, and whose they are.

    The net is the cloud's own classifier with another head, so that it starts from what that has learnt. Two
    losses: one less the cosine to the teacher's embedding, the mean of all public faces taken off, and
    CosFace over the people of ``public_train``. It is watched on ``public_val``: half of each person's
    pictures are looked for among the means of the other half.

    Args:
        task_ckpt: the task model; null finds the experiment's own.
        teacher: class of the recogniser, see `crafter_pl.judges`; null: none, for drawn faces, which no
            recogniser knows.
        teacher_args: its init arguments.
        embedding: size of the embedding; with a teacher it must be the teacher's.
        people_weight: weight of CosFace beside the teacher's loss.
        noise: standard deviation of the noise on features in training, as a share of the batch's own.
        lr: peak learning rate of AdamW with a one-cycle schedule.
        weight_decay: of AdamW.
        scale: inverse temperature of the cosine logits.
        margin: CosFace's margin, subtracted from the right person's cosine in training.
        identities: the raw identity numbers of its people, in class order; the command line takes them from
            the data.
    """

    task = Upstream(TaskModel)  # the frozen task model
    stage_name = "student"
    monitor = "val/rank1"
    lessons: Lessons | None = None

    def __init__(
        self,
        task_ckpt: str | None = None,
        teacher: str | None = "Dlib",
        teacher_args: dict[str, Any] | None = None,
        embedding: PositiveInt = 128,
        people_weight: FromZero = 0.1,
        noise: FromZero = 0.05,
        lr: AboveZero = 1e-3,
        weight_decay: FromZero = 0.05,
        scale: AboveZero = 20.0,
        margin: FromZero = 0.2,
        identities: list[int] | None = None,
    ) -> None:
        super().__init__()
        people, answers = self.needs("identities"), len(self.task.hparams["attribute_names"])
        trunk = nn.Sequential(copy.deepcopy(self.task.net.cloud), nn.BatchNorm1d(embedding))
        replace_head(trunk, "the cloud's classifier", embedding, answers)
        self.net = CosineHead(trunk, len(people), embedding).requires_grad_(True).train()
        self.know(people)
        self._seen: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """Who is public.

        Raises:
            UserError: there are too few people.
        """
        return {"identities": cls.people_of(data)}

    def teacher(self) -> Teacher | None:
        """The recogniser, not prepared."""
        name = self.hparams["teacher"]
        return None if name is None else named(name, self.hparams["teacher_args"] or {})

    def taught(self, stage: Stage) -> Lessons | None:
        """The teacher's look at all public faces, for a stage in training.

        Raises:
            UserError: its embedding has another size than the student's.
        """
        if (teacher := self.teacher()) is None:
            return None
        lessons, size = Lessons(teacher, stage), self.hparams["embedding"]
        if (its := lessons.embeddings.shape[2]) != size:
            raise UserError(
                f"the teacher's embedding has {its} numbers, the student's {size}: give "
                f"--model.init_args.embedding {its}"
            )
        return lessons

    def loss(
        self,
        net: CosineHead,
        lessons: Lessons | None,
        features: Tensor,
        batch: dict[str, Tensor],
        mirrored: Tensor,
    ) -> Tensor:
        """Mean over a batch of features ``(N, C, h, w)``.

        Args:
            net: the student's, or one that began as it.
            lessons: of `taught`.
            features: what the net sees.
            batch: `identity` and `index`.
            mirrored: bool ``(N,)``, of which pictures the features are of the mirrored ones.
        """
        made = net.embed(features)
        loss = self.cosface(net.cosines(made), batch["identity"])
        if lessons is None:
            return loss
        theirs = lessons(batch["index"], mirrored)
        return self.hparams["people_weight"] * loss + (1 - (made * theirs).sum(1)).mean()

    def on_fit_start(self) -> None:
        """Lets the teacher look at all public faces."""
        self.lessons = self.taught(self)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss on noisy features of moved and mirrored pictures."""
        images = batch["image"]
        mirrored = torch.rand(len(images), device=images.device) < 0.5
        images = warp(torch.where(mirrored[:, None, None, None], images.flip(3), images), 0.04, 0.05, 0.08)
        with torch.no_grad():
            features = self.task.edge(images)
            features = features + self.hparams["noise"] * features.std() * torch.randn_like(features)
        loss = self.loss(self.net, self.lessons, features, batch, mirrored)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collects embeddings of people it has not learnt from."""
        self._seen.append((self.net.embed(self.task.edge(batch["image"])).float(), batch["identity"]))

    def on_validation_epoch_end(self) -> None:
        """Logs how often a face's person has the nearest mean embedding of other pictures."""
        embeddings, identity = (torch.cat(parts).cpu() for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        self.log("val/rank1", rank1(embeddings, identity), prog_bar=True)


def rank1(embeddings: Tensor, identity: Tensor) -> float:
    """Share of every person's second, fourth, ... picture that is nearest to the mean of the others.

    Args:
        embeddings: ``(N, E)``.
        identity: ``(N,)``.

    Returns:
        In [0, 1]; 0 if nobody has two pictures.
    """
    probe = rank_in_person(identity) % 2 == 1
    people, _, means = person_means(embeddings[~probe], identity[~probe])
    if not probe.any():
        return 0.0
    found = people[(embeddings[probe] @ F.normalize(means).T).argmax(1)]
    return float((found == identity[probe]).float().mean())


class AdaptiveStudent(AdaptiveStage):
    """Goes on training the student on features of public faces that the defence has crafted (A1).

    In rounds of queries and training; see `AdaptiveStage`.

    Args:
        defense_ckpt: the defence under attack, of any class, or the name of its run in the experiment.
        student_ckpt: the student to start from; null finds the experiment's own.
        protect: the options of the defence that is attacked, as ``predict --protect.*`` (null: as it was
            trained).
        pairs_per_round: public faces that are queried in each round.
        epochs_per_round: passes over all pairs so far in each round.
        val_pairs: held-out public faces that are queried once, to watch the loss.
        batch_size: pairs a step, over all processes.
        shard_size: faces crafted at a time.
        lr: the highest learning rate of each round (AdamW).
        weight_decay: of AdamW.
        queries_dir: folder of crafted pairs; null is ``queries`` beside the run.
    """

    student = Upstream(Student)
    stage_name = "adaptive_student"
    lessons: Lessons | None = None

    def __init__(
        self,
        defense_ckpt: str | None = "crafter",
        student_ckpt: str | None = None,
        protect: dict[str, Any] | None = None,
        pairs_per_round: PositiveInt = 256,
        epochs_per_round: PositiveInt = 20,
        val_pairs: PositiveInt = 64,
        batch_size: PositiveInt = 32,
        shard_size: PositiveInt = 64,
        lr: AboveZero = 5e-4,
        weight_decay: FromZero = 0.05,
        queries_dir: str | None = None,
    ) -> None:
        super().__init__()
        read, protected = self.student.upstream_files["task"], self.defense.upstream_files["task"]
        if read[1] != protected[1]:
            raise UserError(
                f"the student {student_ckpt} reads features of {read[0]}, the defence {defense_ckpt} "
                f"protects those of {protected[0]}: give two checkpoints of one task model"
            )
        self.net: Any = synchronised(copy.deepcopy(self.student.net)).requires_grad_(True).train()

    def on_fit_start(self) -> None:
        """Lets the teacher look at all public faces."""
        self.lessons = self.student.taught(self)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        identity = self.data.faces.identity[batch["index"].cpu()].to(self.device)
        plain = torch.zeros(len(identity), dtype=torch.bool)
        return self.student.loss(
            self.net, self.lessons, batch["features"], {**batch, "identity": identity}, plain
        )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The student's loss on crafted features."""
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["index"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """How near it comes to the embeddings of held-out public people's unprotected features."""
        with torch.no_grad():
            clean = self.student.net.embed(self.student.task.edge(batch["image"]))
            made = self.net.embed(batch["features"].to(clean))
        self.log("val/cosine", (clean * made).sum(1).mean(), prog_bar=True, batch_size=len(made))

    def draw_round(self) -> None:
        """It draws nothing."""
