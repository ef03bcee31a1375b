"""The edge/cloud task model: face attributes from features."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.framing import Frame, measure_frame
from crafter_pl.errors import UserError
from crafter_pl.limits import PositiveInt
from crafter_pl.metrics import AttributeAUC, attribute_loss
from crafter_pl.nets import SplitClassifier
from crafter_pl.stages.augment import flip
from crafter_pl.stages.scored import Scored


class TaskModel(Scored):
    """Multi-label attribute classifier, cut into an edge encoder and a cloud classifier ("Who does what").

    Args:
        arch: ``resnet18`` and ``vgg16`` (the paper's), or any other classification model of torchvision; of
            timm, ``timm:NAME``; or of your own code, ``package.module:callable``, see `build_net`.
        cut: the last node on the edge: ``layer1`` (ResNet18) and ``pool2`` (VGG16) are the paper's; others as
            torchvision's feature extraction names them. See `SplitClassifier`.
        weights: None (from scratch), a state-dict file of the whole net, or ``download`` (ImageNet). A head
            with as many answers as there are attributes is kept, another one is replaced.
        lr: peak learning rate of AdamW with a one-cycle schedule over the epochs.
        weight_decay: of AdamW.
        augment: mirror the training pictures.
        attribute_names: the attributes, in order; the command line takes them from the data.
        image_size: side of the pictures in pixels; likewise.
        input_size: side of the pictures that the net itself takes, to which the edge resizes; null: as they
            come.
        mean: of the three channels in [0, 1], which the edge takes off; null: ImageNet's.
        std: by which it then divides; null: ImageNet's.
        freeze: keep the weights as they are, statistics of batch norms included: `fit` only measures.

    Attributes:
        frame: how its training pictures frame a face, so that photographs can be cut alike; None where no
            faces were found in them. Kept in its checkpoint.
        known: what the whole net, of an adopted one, answered to `examples`; None of others. Likewise.
    """

    stage_name = "task"
    train_split, val_split = "labelled_train", "labelled_val"
    monitor = "val/mean_auc"
    frame: Frame | None = None
    known: Tensor | None = None

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
        input_size: PositiveInt | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        count = len(self.needs("attribute_names"))
        self.net = SplitClassifier(
            arch, cut, count, weights, self.needs("image_size"), input_size, mean, std, keep=freeze
        )
        self.auc = AttributeAUC()
        self.feature_shape = self.net.feature_shape
        self.automatic_optimization = not freeze
        if freeze:
            self.requires_grad_(False).eval()

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes and the size of the pictures.

        Raises:
            UserError: there are fewer than two attributes, or no weights to be kept as they are.
        """
        library = str(given.get("arch")).partition(":")[0] in ("timm", "torchvision", given.get("arch"))
        if given.get("freeze") and given.get("weights") is None and library:
            raise UserError(
                "freeze keeps weights as they are, and none are given: give --model.init_args.weights FILE, "
                "or freeze false"
            )
        if (there := len(data.attribute_names)) < 2:
            raise UserError(
                f"the task model needs two attributes or more, and these faces have {there or 'none'}: "
                "choose a labelled source, or more columns (--data.attribute_columns)"
            )
        return {"attribute_names": list(data.attribute_names), "image_size": data.image_size}

    def train(self, mode: bool = True) -> "TaskModel":
        """Leaves one whose weights are kept in eval mode."""
        super().train(mode and not self.hparams["freeze"])
        return self

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's union)
        """As all stages; none where the weights are kept."""
        return None if self.hparams["freeze"] else super().configure_optimizers()

    @property
    def examples(self) -> Tensor:
        """Two pictures of random pixels, always the same: what an adopted net is known by."""
        rng = torch.Generator().manual_seed(0)
        return torch.rand(2, 3, *[self.hparams["image_size"]] * 2, generator=rng)

    @torch.no_grad()
    def load_state_dict(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 (as inherited)
        """As inherited; an adopted net must answer what it did, which its code alone could have changed.

        Raises:
            UserError: it gives other answers.
        """
        found = super().load_state_dict(*args, **options)
        if self.known is not None and not agree(self.net.eval()(self.examples), self.known):
            raise UserError(
                f"{self.hparams['arch']} with these weights gives other answers than when it was adopted: "
                "its code has changed; bring that version of it back, or adopt it again"
            )
        return found

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
        """Writes the frame and what is known, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["frame"] = None if self.frame is None else list(self.frame)
        if self.known is not None:
            checkpoint["known"] = self.known

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the frame from where it was measured, and what is known from where it was adopted."""
        super().on_load_checkpoint(checkpoint)
        self.known = checkpoint.get("known")
        if frame := checkpoint.get("frame"):
            self.frame = Frame(*frame)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor | None:
        """Binary cross entropy over the attributes; nothing where the weights are kept."""
        if self.hparams["freeze"]:
            return None
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


def agree(made: Tensor, known: Tensor) -> bool:
    """Whether answers are the same, up to a thousandth of the largest: other processors round otherwise."""
    return made.shape == known.shape and bool((made - known).abs().max() <= 1e-3 * known.abs().max())
