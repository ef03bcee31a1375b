"""From reconstructions to figures: each stage returns something new and changes nothing that it is handed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crafter_pl.attacks.reader import Gallery, Reader
from crafter_pl.audit.attack import Job
from crafter_pl.audit.certification import Messages
from crafter_pl.audit.columns import COLUMNS, Seen
from crafter_pl.audit.domain import Domain
from crafter_pl.audit.features import Classifier, Loaded
from crafter_pl.audit.panel import Judgement, Panel, any_of, false_security, joined, worst_case
from crafter_pl.audit.schema import (
    AttackResult,
    Data,
    DefenseResult,
    OracleResult,
    ReaderResult,
    Settings,
)
from crafter_pl.audit.yardstick import Measured, Yardstick
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.errors import UserError
from crafter_pl.metrics import Bootstrapped, Estimate, IdentityBootstrap, log_odds, topk_hits

FARS = (0.01, 0.001)


class Reading(NamedTuple):
    """What a reader makes of one set of features."""

    result: ReaderResult
    named: Tensor | None  # (N,) int64: whom it names, as a row of `Panel.people`


class Look(NamedTuple):
    """The panel's look at what one attack, at one moment of it, made of one set of features."""

    job: Job
    judgement: Judgement
    result: AttackResult


@dataclass(frozen=True)
class Judged:
    """One set of features, judged by itself; `compare` holds it against others.

    Attributes:
        result: its figures.
        verdicts: of the panel, by attack.
        inference, training: its utility in either scenario.
        worst: its worst case in every resample.
    """

    result: DefenseResult
    verdicts: dict[str, Judgement]
    inference: Measured
    training: Measured | None
    worst: Bootstrapped


@dataclass(frozen=True)
class Judge:
    """The truth about the audited pictures, and all that judges by it.

    Attributes:
        panel: the judges.
        boot: resamples of people.
        rows: the pictures: `image` `(N, 3, H, W)` in [0, 1], `identity` `(N,)`, `attributes` `(N, L)`, which
            are the labels.
        attributes: names of the `L` columns.
        yardstick: what the cloud should answer.
        lpips: whether it is measured, too.
    """

    panel: Panel
    boot: IdentityBootstrap
    rows: Mapping[str, Tensor]
    attributes: Sequence[str]
    yardstick: Yardstick
    lpips: bool = False

    def look(self, job: Job, pictures: Tensor, domain: Domain | None = None) -> Look:
        """Every column of a job's reconstructions `(N, 3, H, W)`, in the order of the originals.

        Args:
            job: whose they are.
            pictures: in [0, 1].
            domain: galleries in the attack's own domain; None: of originals alone.
        """
        judges, galleries = domain.judges(self.panel) if domain is not None else (None, None)
        judgement = self.panel.judge(pictures, judges)
        ended, told = job.moment is None, job.moment or {}
        figures: dict[str, Estimate] = {}
        by_oracle: dict[str, dict[str, Estimate]] = {}
        seen = Seen(pictures, self.rows["image"], judgement, self.panel, self.boot, self.lpips and ended)
        for column in COLUMNS:
            found = column.of(seen)
            if isinstance(found, list):
                named = zip(self.panel.judges, found, strict=True)
                by_oracle[column.key] = {name: one.estimate() for name, one in named if one is not None}
                found = next(filter(None, found), None)
            if found is not None:
                figures[column.key] = found.estimate()
        result = AttackResult(
            figures=figures,
            by_oracle={key: own for key, own in by_oracle.items() if own},
            learnt=job.attack.learnt and (ended or told["round"] > 0),
            round=told.get("round"),
            pairs=told.get("pairs"),
            epochs=told.get("epochs"),
            galleries=galleries,
        )
        return Look(job, judgement, result)

    def utility(self, features: Tensor, cloud: Classifier) -> Measured:
        """What features ``(N, C, h, w)`` keep for a classifier.

        Raises:
            UserError: the pictures are such that it is not defined.
        """
        return self.yardstick.measure(self.boot, self.panel.batched(cloud, features))

    @torch.no_grad()
    def reader(self, reader: Reader, loaded: Loaded, gallery: Gallery | None) -> Reading:
        """How often a reader names the right person, and how well it tells people apart.

        Args:
            reader: bound to these features.
            loaded: the features.
            gallery: of the suspects, for one that gets it.

        Raises:
            UserError: it does not know one of the people.
        """
        reader.prepare(self.panel.device)
        if gallery is not None:
            reader.enrol(gallery)
        features, boot, panel = reader.observe(loaded.queries), self.boot, self.panel
        parts = [reader.identify(part) for part in features.split(panel.batch_size)]
        found: dict[str, Bootstrapped | None] = {}
        named = None
        if scores := [part for part in parts if part is not None]:
            logits, known = torch.cat(scores).float(), reader.identities
            column = known[None, :] == self.rows["identity"][:, None]
            if strangers := self.rows["identity"][~column.any(dim=1)].unique().tolist():
                raise UserError(
                    f"{reader.name} was trained on other people: it does not know {len(strangers)} of the "
                    f"audited ones (first {strangers[0]}). Train it on this split."
                )
            label = column.long().argmax(dim=1)
            found = {f"top{k}": boot.mean(topk_hits(logits, label, k)) for k in (1, 5)}
            audited = {one: place for place, one in enumerate(self.rows["identity"].unique().tolist())}
            enrolled = [audited.get(one, -1) for one in known.tolist()]
            odds = log_odds(logits)  # one threshold for all: what a picture adds to all people says nothing
            found["tar"], found["tar_strict"] = (boot.tar(odds, far, enrolled) for far in FARS)
            named = torch.searchsorted(panel.people, known[logits.argmax(dim=1)])
        if (alike := reader.similarity(features)) is not None:
            found["tar"], found["tar_strict"] = (boot.tar(alike, far) for far in FARS)
            found["eer"] = boot.eer(alike)
        result = ReaderResult(
            **{key: one.estimate() for key, one in found.items() if one is not None},
            learnt=reader.learnt,
            suspects=reader.suspects,
            checkpoints=reader.describe()["checkpoints"],
            train=None if reader.learnt or loaded.target is None else reader.train(loaded.target),
        )
        return Reading(result, named)

    def join(
        self,
        loaded: Loaded,
        looks: Sequence[Look],
        readings: Mapping[str, Reading],
        messages: Messages | None,
        described: Mapping[str, Settings],
    ) -> Judged:
        """All that is found of one set of features by itself: attacks, utility and worst cases.

        Args:
            loaded: the features.
            looks: at every attack on them, at every moment.
            readings: of the readers.
            messages: of a certified defence: who reads them has a gallery, too.
            described: the attacks, of which some know the defence.
        """
        panel, boot = self.panel, self.boot
        inference = self.utility(loaded.queries[0], loaded.cloud)
        trained = loaded.trained_cloud
        training = None if trained is None else self.utility(loaded.queries[0], trained)
        ended = [one for one in looks if one.job.moment is None]
        verdicts = {one.job.name: one.judgement for one in ended}
        history: dict[str, list[AttackResult]] = {}
        for one in looks:
            if one.job.moment is not None:
                history.setdefault(one.job.name, []).append(one.result)
        worst = any_of(list(verdicts.values()), panel)
        listed = [one.named for one in readings.values() if one.result.suspects and one.named is not None]
        if messages is not None:
            listed += [torch.searchsorted(panel.people, messages.named(name)) for name in messages.scores]
        basic = [one for name, one in verdicts.items() if not described[name]["adaptive"]]
        knowing = {name: one for name, one in verdicts.items() if described[name]["adaptive"]}
        result = DefenseResult(
            **vars(loaded.about),
            utility=inference.utility,
            utility_training=None if training is None else training.utility,
            attacks={one.job.name: one.result for one in ended},
            history=history,
            rulers={name: one.result for name, one in readings.items()},
            worst_case=worst_case(worst, boot),
            worst_case_basic=worst_case(any_of(basic, panel), boot) if basic else None,
            worst_case_gallery=worst_case(joined(torch.stack(listed), panel), boot) if listed else None,
            false_security=None if loaded.about.plain else false_security(basic, knowing, panel, boot),
        )
        return Judged(result, verdicts, inference, training, boot.mean(worst.hits))

    def data(self, data: FacesDataModule) -> Data:
        """The audited faces."""
        images = self.rows["image"]
        return Data(
            source=data.source,
            split_hash=data.split_hash,
            image_size=int(images.shape[-1]),
            identities=self.boot.people,
            images=len(images),
            chance=1 / len(self.panel.people),
            attributes_left_out=self.yardstick.left_out,
        )

    def oracles(self) -> list[OracleResult]:
        """Each judge with its settings, and how well it names and matches the originals."""
        found, panel = [], self.panel
        every = zip(panel.judges.values(), panel.originals.hits, panel.embeddings, strict=True)
        for judge, hits, own in every:
            accuracy, tar = self.boot.mean(hits).estimate(), self.boot.tar(judge.similarity(own, own))
            found.append(
                OracleResult(
                    name=judge.name,
                    accuracy_on_originals=accuracy.value,
                    ci95=[accuracy.low, accuracy.high],
                    people=len(judge.identities),
                    settings=judge.settings(),
                    checkpoint=judge.checkpoint,
                    sha256=judge.sha256,
                    tar_on_originals=None if tar is None else tar.estimate(),
                    seen=judge.seen,
                )
            )
        return found
