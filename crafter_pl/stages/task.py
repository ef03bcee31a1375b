"""The edge/cloud task model: face attributes from features."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.framing import Frame, measure_frame
from crafter_pl.errors import UserError
from crafter_pl.metrics import AttributeAUC, attribute_loss
from crafter_pl.nets import SplitClassifier
from crafter_pl.stages.augment import flip
from crafter_pl.stages.scored import Scored


class TaskModel(Scored):
    """Multi-label attribute classifier, cut into an edge encoder and a cloud classifier ("Who does what").

    Args:
        arch: ``resnet18`` and ``vgg16`` (the paper's), or any other classification model of torchvision.
        cut: the last node on the edge: ``layer1`` (ResNet18) and ``pool2`` (VGG16) are the paper's; others as
            torchvision's feature extraction names them. See `SplitClassifier`.
        weights: None (from scratch), a torchvision state-dict file, or ``download`` (ImageNet).
        lr: peak learning rate of AdamW with a one-cycle schedule over the epochs.
        weight_decay: of AdamW.
        augment: mirror the training pictures.
        attribute_names: the attributes, in order; the command line takes them from the data.
        image_size: side of the pictures in pixels; likewise.

    Attributes:
        frame: how its training pictures frame a face, so that photographs can be cut alike; None where no
            faces were found in them. Kept in its checkpoint.
    """

    stage_name = "task"
    train_split, val_split = "labelled_train", "labelled_val"
    monitor = "val/mean_auc"
    frame: Frame | None = None

    def __init__(
        self,
        arch: str = "resnet18",
        cut: str = "layer1",
        weights: str | None = None,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        augment: bool = True,
        attribute_names: list[str] | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        count = len(self.needs("attribute_names"))
        self.net = SplitClassifier(arch, cut, count, weights)
        self.auc = AttributeAUC()
        self.feature_shape = self._measure(count)

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes and the size of the pictures.

        Raises:
            UserError: there are fewer than two attributes.
        """
        if (there := len(data.attribute_names)) < 2:
            raise UserError(
                f"the task model needs two attributes or more, and these faces have {there or 'none'}: "
                "choose a labelled source, or more columns (--data.attribute_columns)"
            )
        return {"attribute_names": list(data.attribute_names), "image_size": data.image_size}

    @torch.no_grad()
    def _measure(self, answers: int) -> tuple[int, int, int]:
        """Shape of the features; tries the net on an empty picture first."""
        size, arch = self.needs("image_size"), f"{self.hparams['arch']} cut at {self.hparams['cut']}"
        self.net.eval()
        try:
            features = self.net.encode(torch.zeros(1, 3, size, size))
            logits = self.net.cloud(features)
        except RuntimeError as error:
            raise UserError(
                f"{arch} cannot take pictures of {size} pixels ({str(error).splitlines()[0][:120]}): give "
                "larger ones (--data.image_size), or another --model.init_args.arch"
            ) from error
        self.net.train()
        shape = list(getattr(features, "shape", ()))
        if len(shape) != 4 or shape[2] != shape[3] or getattr(logits, "shape", None) != (1, answers):
            raise UserError(
                f"{arch} gives features of shape {shape[1:]}; defences and attacks need square maps, "
                "(channels, side, side), and answers in one tensor: choose another cut or arch "
                "(--model.init_args.*)"
            )
        return (shape[1], shape[2], shape[3])

    def setup(self, stage: str) -> None:
        """The data must have its attributes.

        Raises:
            UserError: they have others.
        """
        super().setup(stage)
        if list(self.data.attribute_names) != list(self.hparams["attribute_names"]):
            raise UserError(
                f"this task model knows the attributes {self.hparams['attribute_names']}, the data have "
                f"{list(self.data.attribute_names)}; train a task model on these data"
            )

    def edge(self, images: Tensor) -> Tensor:
        """Edge encoder: ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)``."""
        return self.net.encode(images)

    def cloud(self, features: Tensor) -> Tensor:
        """Cloud classifier: features ``(N, C, h, w)`` -> attribute logits ``(N, A)``."""
        return self.net.cloud(features)

    def on_fit_start(self) -> None:
        """Measures how the training pictures frame a face."""
        if self.frame is None:
            self.frame = measure_frame(self.spread_images(self.train_split, 64))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the frame, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["frame"] = None if self.frame is None else list(self.frame)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the frame from where it was measured."""
        super().on_load_checkpoint(checkpoint)
        if frame := checkpoint.get("frame"):
            self.frame = Frame(*frame)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Binary cross entropy over the attributes."""
        images = flip(batch["image"]) if self.hparams["augment"] else batch["image"]
        loss = attribute_loss(self.net(images), batch["attributes"])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def score(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Metric]:
        """The loss, and the mean AUC over the attributes that have both classes in that part.

        Of the audited pictures, unprotected, the AUC is the utility that a defence starts from.
        """
        logits = self.net(batch["image"])
        self.auc.update(logits, batch["attributes"])
        loss = attribute_loss(logits, batch["attributes"])
        return {"loss": loss, "mean_auc": self.auc}

    def on_validation_epoch_end(self) -> None:
        """Draws faces.

        For each of the first three attributes: the held-out public faces of the lowest and, below them, of
        the highest score.
        """
        images = self.spread_images(self.val_split, 64)
        columns = min(8, len(images))
        for name, score in zip(self.hparams["attribute_names"][:3], self.net(images).T, strict=False):
            order = score.argsort()
            chosen = torch.cat([order[:columns], order[-columns:].flip(0)])
            self.log_grid(f"lowest_highest/{name}", images[chosen], columns)
