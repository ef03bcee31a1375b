"""What a defence shares that answers on the edge: a head for some attributes, distilled from the cloud."""

from collections.abc import Mapping
from typing import Any, Generic, Literal

import torch
from torch import Tensor, nn

from crafter_pl.answers import Answers
from crafter_pl.defenses.base import Defense
from crafter_pl.defenses.crafting import FrozenNets
from crafter_pl.defenses.options import OptionsT
from crafter_pl.errors import UserError
from crafter_pl.nets import freeze
from crafter_pl.nets.answer_head import fitting_head
from crafter_pl.nets.certified import Columns
from crafter_pl.progress import Steps
from crafter_pl.stages import GanPrior, TaskModel, Upstream, load_stage
from crafter_pl.stages.augment import flip, warp


class Distilled(Defense[OptionsT], Generic[OptionsT]):
    """A defence whose edge answers for some attributes by a small head, or by the cloud's whole classifier.

    A subclass has the init arguments ``needs``, ``work`` and ``head_of``, and calls `begin`.

    Attributes:
        columns: where the needed attributes stand among the cloud's answers.
        head: feature -> the cloud's outputs for these; None: the cloud's classifier.
    """

    prior = Upstream(GanPrior)  # the frozen prior
    columns: list[int]
    head: nn.Module | None

    def begin(self, needs: list[str] | Literal["all"] | None, work: float | None) -> None:
        """Builds the head.

        Raises:
            UserError: the needs are no attributes, or there is no room for a head.
        """
        self.columns, self.head = needed(self.task, needs), None
        self.automatic_optimization = work is not None
        if work is not None:
            task, size = self.task, self.task.hparams["image_size"]
            encoder, answers = task.net.encoder_module(), len(self.columns)
            self.head = fitting_head(encoder, size, task.feature_shape, answers, work)
            self.meaning.begin(self.head)
        self.frozen = FrozenNets(self.task, self.prior)
        self.utility, self.cloud_utility = self.meaning.metric(), self.meaning.metric()

    @classmethod
    def check_task(cls, given: Mapping[str, Any], task: TaskModel) -> None:
        """Refuses needs that the task model does not answer."""
        needed(task, given.get("needs"))

    @property
    def meaning(self) -> Answers:
        """What the needed outputs mean, on this device."""
        return self.task.answers.part(torch.tensor(self.columns, device=self.device))

    @property
    def answered(self) -> list[str]:
        """The needed attributes by name, in the order of the codewords."""
        return [self.task.hparams["attribute_names"][column] for column in self.columns]

    @property
    def about(self) -> str:
        """What the message is about: the needed answers, or of many how many they are."""
        names, served = self.answered, self.task.answers.served
        return f"{len(names)} {served}" if served != "attributes" and len(names) > 6 else ", ".join(names)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """AdamW over the head; nothing without one."""
        return None if self.head is None else super().configure_optimizers()

    def on_fit_start(self) -> None:
        """Takes the head of another one.

        Raises:
            UserError: that is for other needs, another encoder, or other work.
        """
        if (path := self.hparams["head_of"]) is None:
            return
        other = load_stage(path, type(self))
        mine, its = (
            (one.answered, one.hparams["work"], one.upstream_files["task"][1]) for one in (self, other)
        )
        if mine != its or self.head is None or other.head is None:
            raise UserError(
                f"the head of {path} is for {', '.join(its[0])} at work {its[1]} of its own encoder: give "
                "the same needs, work and task model, or learn a head (--model.init_args.head_of null)"
            )
        self.head.load_state_dict(other.head.state_dict())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        """Cross divergence of the head's answers from the cloud's, for moved and mirrored public faces."""
        if self.head is None or self.hparams["head_of"] is not None:
            return None
        with torch.no_grad():
            features = self.task.edge(warp(flip(batch["image"]), 0.03, 0.05, 0.08))
            theirs = self.meaning.statistic(self.task.cloud(features)[:, self.columns])
        loss = self.meaning.loss(self.head(features), theirs)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The needed answers' figure on held-out public people: the head's and the cloud's."""
        features, true = self.task.edge(batch["image"]), self.task.truth(batch)[:, self.columns]
        theirs, main = self.task.cloud(features)[:, self.columns], self.meaning.main
        self.utility.update(theirs if self.head is None else self.head(features), true)
        self.cloud_utility.update(theirs, true)
        figures = {f"val/{main}": self.utility, f"val/cloud_{main.removeprefix('mean_')}": self.cloud_utility}
        self.log_dict(figures, prog_bar=True)

    def answering(self) -> nn.Module:
        """Encoder and head, frozen: pictures ``(N, 3, S, S)`` in [0, 1] -> outputs, ``(N, S)``."""
        nets = self.frozen(self.device)
        if self.head is None:
            return nn.Sequential(nets.encoder, Columns(nets.classifier, self.columns))
        return nn.Sequential(nets.encoder, freeze(self.head).to(self.device))

    @torch.no_grad()
    def public_answers(self) -> Tensor:
        """Outputs for the faces that it is trained on, ``(N, S)`` on the CPU."""
        faces, answer, seen = self.data.dataset(self.train_split), self.answering(), []
        shown = Steps("answers for public faces", len(faces), unit="faces")
        for part in faces.index.split(64):
            seen.append(answer(faces.take(part)["image"].to(self.device)).cpu())
            shown.step(len(part))
        shown.close()
        return torch.cat(seen)


def needed(task: TaskModel, needs: list[str] | str | None) -> list[int]:
    """Where the needed attributes stand among a task model's answers.

    Raises:
        UserError: there are none, or they are no answers of its own.
    """
    names = list(task.hparams["attribute_names"])
    needs = [needs] if isinstance(needs, str) and needs != "all" else needs
    way = 'give --model.init_args.needs "[Smiling, Eyeglasses]" or the like, or all; there are ' + ", ".join(
        names
    )
    if not needs:
        raise UserError(f"which attributes does the service need? The fewer, the less leaves: {way}")
    if needs == "all":
        return list(range(len(names)))
    if not task.answers.separate:
        raise UserError(
            f"{', '.join(needs)} alone cannot be needed of {task.answers.served}, which are one "
            "answer: give --model.init_args.needs all"
        )
    if strange := [name for name in needs if name not in names]:
        raise UserError(f"the cloud does not answer for {', '.join(map(str, strange))}: {way}")
    if len(set(needs)) < len(needs):
        raise UserError(f"an attribute comes twice in needs {needs}")
    return [names.index(name) for name in needs]
