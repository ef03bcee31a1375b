"""The cloud's classifier in the training scenario: it learns from protected features."""

import copy
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from crafter_pl.data.features import StoreDataModule, protected_by
from crafter_pl.data.provenance import present
from crafter_pl.data.store import expect
from crafter_pl.errors import UserError
from crafter_pl.stages.augment import flip
from crafter_pl.stages.scored import Scored
from crafter_pl.stages.task import TaskModel, has_truth
from crafter_pl.stages.upstream import Upstream


class CloudClassifier(Scored):
    """Classifier that learns from features alone ("Who does what": training scenario).

    The edge encoder is trained already, on public faces; the private people upload protected features of
    their ``private_train`` pictures with attributes, and the classifier is used on protected features of
    ``private_test``. Only the utility is another than in the inference scenario: an attacker sees the same
    features.

    Args:
        task_ckpt: the task model: its edge encoder, and the classifier's architecture; null finds the
            experiment's own.
        train_store: feature store of ``private_train``; null: unprotected features, the yardstick.
        test_store: feature store of ``private_test``, of the same defence; null: unprotected features.
        fresh: learn from scratch; false starts from the task model's classifier, which has learned from
            public people's unprotected features.
        lr: peak learning rate of AdamW with a one-cycle schedule.
        weight_decay: of AdamW.
        augment: mirror features (or, unprotected, pictures) at random.
        learned_from: left empty by users; the defence of ``train_store``: its settings and weights' hash.
    """

    task = Upstream(TaskModel)  # the frozen task model
    stage_name = "cloud"
    train_split = "private_train"
    val_split = "private_test"  # as for the oracles, no figure on it picks the checkpoint
    data_class = StoreDataModule

    def __init__(
        self,
        task_ckpt: str | None = None,
        train_store: str | None = None,
        test_store: str | None = None,
        fresh: bool = True,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        augment: bool = True,
        learned_from: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if (train_store is None) != (test_store is None):
            raise UserError(
                "a cloud classifier learns and is used on features of one defence: give both stores, "
                "--model.init_args.train_store and .test_store, or neither for unprotected features"
            )
        self.net = copy.deepcopy(self.task.net.cloud).requires_grad_(True).train()
        if fresh:
            for module in self.net.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
            self.task.answers.begin(self.net)
        self.utility = self.task.answers.metric()

    def setup(self, stage: str) -> None:
        """Lets the data open the stores.

        Raises:
            UserError: a store is damaged, incomplete or made of something else; see `StoreDataModule`.
        """
        super().setup(stage)
        data, h = self.data, self.hparams
        if not has_truth(self.task, data, self.upstream_files["task"][0]):
            raise UserError(
                "a cloud classifier learns from labels, which these faces have not: give some (--data.labels "
                "FILE)"
            )
        if h["train_store"] is None:
            return
        assert isinstance(data, StoreDataModule)
        data.choose(h["train_store"] if stage == "fit" else None, h["test_store"])
        data.setup(stage)
        parts = {"train": self.train_split, "test": self.val_split}
        for name, manifest in data.manifests.items():
            expect(
                data.stores[name],
                manifest,
                shape=self.task.feature_shape,
                encoder_sha256=self.upstream_files["task"][1],
                split=parts[name],
            )
            learned = h["learned_from"] and present({"version": 1, **h["learned_from"]})  # older ones: 1
            if stage != "fit" and protected_by(manifest) != learned:
                raise UserError(
                    f"{data.stores[name]} is not of the defence that this classifier has learned from"
                )
            h["learned_from"] = protected_by(manifest)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(N, C, h, w)`` -> outputs ``(N, A)``."""
        return self.net(features)

    @torch.no_grad()
    def _features(self, batch: dict[str, Tensor], augment: bool = False) -> Tensor:
        """A batch's features; mirrored ones are, but for the edges, those of a mirrored face."""
        if "features" in batch:
            return flip(batch["features"]) if augment else batch["features"]
        return self.task.edge(flip(batch["image"]) if augment else batch["image"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The answers' own loss: of attributes binary cross entropy."""
        outputs, answers = self(self._features(batch, self.hparams["augment"])), self.task.answers
        loss = answers.loss(outputs, answers.aims(batch["attributes"]))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def score(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Metric]:
        """The answers' main figure; no checkpoint is chosen by it."""
        self.utility.update(self(self._features(batch)), batch["attributes"])
        return {self.task.answers.main: self.utility}
