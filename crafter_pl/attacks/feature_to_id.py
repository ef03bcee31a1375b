"""Feature to identity: a recogniser that reads features. It holds private labels: a ruler, no attack."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crafter_pl.attacks.base import Target, fits, options_of, place_of
from crafter_pl.attacks.reader import Ruler
from crafter_pl.commands import command, trained
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.features import protected_by
from crafter_pl.data.provenance import present
from crafter_pl.data.split import check_several
from crafter_pl.data.store import read_store
from crafter_pl.errors import UserError
from crafter_pl.nets import FeatureHead
from crafter_pl.stages import PrivateRecogniser, TaskModel, Upstream, flip, load_stage, read_checkpoint, warp


class FeatureToIdentity(PrivateRecogniser):
    """Names private people by their features; learned from features of *other* pictures of them.

    Unprotected features of ``private_train``, and of the public people in the same softmax, are made anew
    from augmented pictures in every epoch. With ``train_store`` it adapts to a defence: it learns from what
    that made of ``private_train``, best from an unprotected one's weights on: private pictures are few.

    Args:
        task_ckpt: the task model (edge encoder); null finds the experiment's own.
        train_store: feature store of ``private_train``; null: unprotected features.
        test_store: feature store of ``private_test`` to be watched on; null: unprotected features.
        init_from: checkpoint of a `FeatureToIdentity` to start from; null: from scratch.
        public_people: without a ``train_store``, learn the public people too. Verdicts are over the private
            people alone.
        width: first width of the net.
        embedding: size of its embedding.
        dropout: before the embedding.
        noise: standard deviation of the noise on features in training, as a share of the batch's own.
        lr: peak learning rate of AdamW with a one-cycle schedule.
        weight_decay: of AdamW.
        scale: inverse temperature of the cosine logits.
        margin: CosFace's margin, subtracted from the right person's cosine in training.
        identities: the raw identity numbers of the private people, in class order; the command line takes
            them from the data.
        public_identities: those of the public people; likewise.
        learned_from: left empty by users; the defence of ``train_store``: its settings and weights' hash.
    """

    task = Upstream(TaskModel)  # the frozen task model
    stage_name = "feature_to_id"

    def __init__(
        self,
        task_ckpt: str | None = None,
        train_store: str | None = None,
        test_store: str | None = None,
        init_from: str | None = None,
        public_people: bool = True,
        width: int = 64,
        embedding: int = 256,
        dropout: float = 0.2,
        noise: float = 0.1,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        scale: float = 20.0,
        margin: float = 0.2,
        identities: list[int] | None = None,
        public_identities: list[int] | None = None,
        learned_from: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.meet(public_people and train_store is None)
        self.stored: dict[str, tuple[Tensor, Tensor]] = {}  # part of the data: index (N,), features
        self.net = FeatureHead(self.task.feature_shape, len(self.people), width, embedding, dropout)
        self.know(self.people)

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """Who the people are; the public ones only where it learns them, or its start has.

        Raises:
            UserError: there are too few people, or ``init_from`` knows others.
        """
        check_several(len(data.private_identities), "--data.private_people")
        people, public = data.private_identities.tolist(), None
        if given["init_from"] is not None:
            start = load_stage(given["init_from"], FeatureToIdentity)
            if start.hparams["identities"] != people or start.trained_on[0] != data.split_hash:
                raise UserError(
                    f"{given['init_from']} was trained on another split: give the same --data settings as in "
                    "its training, or leave --model.init_args.init_from null"
                )
            public = start.hparams["public_identities"]
        elif given["public_people"] and given["train_store"] is None:
            public = data.public_identities.tolist()
        return {"identities": people, "public_identities": public}

    def setup(self, stage: str) -> None:
        """Reads the stores; begins with the weights of ``init_from``.

        Raises:
            UserError: a store is damaged, made of something else, or incomplete; or ``init_from`` has other
                sizes.
        """
        super().setup(stage)
        h = self.hparams
        for part, store in (("private_train", h["train_store"]), ("private_test", h["test_store"])):
            if store is not None and not (part == "private_train" and stage != "fit"):
                self._read(store, part)
        if stage == "fit" and h["init_from"] is not None:  # where it goes on, its checkpoint comes after this
            try:
                self.net.load_state_dict(load_stage(h["init_from"], FeatureToIdentity).net.state_dict())
            except RuntimeError as error:
                raise UserError(
                    f"{h['init_from']} has other sizes than this net: give the same width and embedding "
                    "(--model.init_args.*)"
                ) from error

    def _read(self, store: str, part: str) -> None:
        data = self.data
        features, index, manifest = read_store(
            store,
            shape=self.task.feature_shape,
            encoder_sha256=self.upstream_files["task"][1],
            split_hash=data.split_hash,
            split=part,
        )
        if not torch.equal(index, data.dataset(part).index.sort().values):
            raise UserError(
                f"{store} holds {len(index)} features and not all of {part}: run predict again with the same "
                "--data settings"
            )
        self.stored[part] = index, features
        if part == "private_train":
            self.hparams["learned_from"] = protected_by(manifest)

    @torch.no_grad()
    def _features(self, batch: dict[str, Tensor], part: str, augment: bool) -> Tensor:
        """The features of a batch: those in the store, or the encoder's own of (augmented) pictures."""
        if part in self.stored:
            index, features = self.stored[part]
            return features[torch.searchsorted(index, batch["index"].cpu())].to(self.device)
        return self.task.edge(warp(flip(batch["image"])) if augment else batch["image"])

    def lesson(self, batch: dict[str, Tensor]) -> Tensor:
        """Noisy features."""
        features = self._features(batch, self.train_split, augment=True)
        return features + self.hparams["noise"] * features.std() * torch.randn_like(features)

    def exam(self, batch: dict[str, Tensor]) -> Tensor:
        """Features of ``private_test``: the store's, or unprotected ones."""
        return self._features(batch, "private_test", augment=False)


class FeatureToID(Ruler):
    """The trained `FeatureToIdentity` as a ruler of what identity is left in features.

    It measures the features of a defence by the one that has learned from exactly these, unprotected features
    by ``ckpt``. Where there is none for a defence it takes ``ckpt``, too: what that one misses shows no
    protection, and reports say so (`learnt`).

    Args:
        ckpt: checkpoint of a `FeatureToIdentity` that learned from unprotected features; null finds the
            experiment's own.
        adapted: checkpoints of those that learned from protected features, each from its defence's; null
            finds the experiment's own, whatever the runs are called. Of several the longest trained counts.
        name: how the report calls it; also the stage folder looked in.
        batch_size: features judged at a time.
    """

    def __init__(
        self,
        ckpt: str | None = None,
        adapted: list[str] | None = None,
        name: str = "feature_to_id",
        batch_size: int = 256,
    ) -> None:
        self.name, self.batch_size = name, batch_size
        self.adapted = adapted
        self.checkpoints = {name: ckpt}

    def aim(self, target: Target | None) -> None:
        """Chooses the net that has learned from this defence's features, if there is one."""
        super().aim(target)
        if target is None:
            return
        assert self.commands is not None
        runs = map(str, trained(self.commands.home, FeatureToIdentity.stage_name))
        mine = self.checkpoints[self.name]
        others = [path for path in runs if path != mine] if self.adapted is None else self.adapted
        fitting = (path for path in others if fits(_learned_from(path)[0], target))
        self.checkpoints[self.name] = max(fitting, key=lambda path: _learned_from(path)[1], default=mine)

    @property
    def learnt(self) -> bool:
        """Whether the net that it took has learned from the features that it is bound to."""
        return self.target is None or fits(_learned_from(self.checkpoint(self.name))[0], self.target)

    def train(self, target: Target) -> list[str]:
        """Protect ``private_train``, then learn from it, from the unprotected one's weights on."""
        assert self.commands is not None
        home = self.commands.home
        checkpoint, name = place_of(target, home)
        defense, run = target.manifest["defense"], checkpoint.parent.parent
        store = home / run.name / "features" / f"private_train-{name}"
        more = [
            *([] if run.name == defense else ["--name", run.name]),
            *([] if run.resolve() == (home / run.name).resolve() else ["--ckpt_path", str(checkpoint)]),
            *("--data.predict_split", "private_train", "--protect.out", str(store)),
        ]
        learn = [
            *("--name", f"{self.name}-{name}", "--model.init_args.train_store", str(store)),
            *("--model.init_args.init_from", self.checkpoint(self.name)),
        ]
        return [
            command(self.commands.args("predict", defense, *more, *options_of(target, "protect"))),
            self.commands.fit(FeatureToIdentity.stage_name, *learn),
        ]

    def prepare(self, device: str) -> None:
        """Loads the net."""
        self.device = device
        self.net = load_stage(self.checkpoint(self.name), FeatureToIdentity).to(device)

    @property
    def identities(self) -> Tensor:
        """Int64 ``(P,)``: the data set's identity of each column of `identify`; after `prepare`."""
        return torch.tensor(self.net.hparams["identities"])

    @torch.no_grad()
    def identify(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> logits ``(N, P)``, on the CPU."""
        return torch.cat(
            [self.net.logits(part.to(self.device)).cpu() for part in features.split(self.batch_size)]
        )

    def settings(self) -> dict[str, Any]:
        """Whether it learned from the features of the defence that it is aimed at."""
        return {"adapted": self.target is not None and self.learnt}


def _learned_from(path: str) -> tuple[dict[str, Any] | None, int]:
    """The defence whose features a `FeatureToIdentity` learned from (None: unprotected ones); its epochs."""
    content = read_checkpoint(path, FeatureToIdentity.stage_name)
    learned = content.get("hyper_parameters", {}).get("learned_from")
    return learned and present(learned), int(content.get("epoch", 0))
