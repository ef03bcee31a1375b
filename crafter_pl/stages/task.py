"""The edge/cloud task model: attributes, classes, values or embeddings of faces, from features."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from crafter_pl.answers import Kind, make
from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.framing import Frame, measure_frame
from crafter_pl.errors import UserError
from crafter_pl.limits import PositiveInt
from crafter_pl.nets import SplitClassifier
from crafter_pl.stages.augment import flip
from crafter_pl.stages.scored import Scored


class TaskModel(Scored):
    """A face model, cut into an edge encoder and a cloud classifier ("Who does what").

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
        answers: what its outputs mean: ``multilabel`` attributes, ``multiclass``, values of a ``regression``,
            or an ``embedding``; see `crafter_pl.answers`.
        attribute_names: the attributes, classes or values, in order; the command line takes them from
            the data.
        answer_mean: of a regression's values over the public faces; likewise.
        answer_std: their standard deviations there; likewise.
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
        answers: Kind = "multilabel",
        attribute_names: list[str] | None = None,
        answer_mean: list[float] | None = None,
        answer_std: list[float] | None = None,
        image_size: int | None = None,
        input_size: PositiveInt | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        count = len(self.needs("attribute_names"))
        self.answers = make(answers, answer_mean, answer_std)
        self.net = SplitClassifier(
            arch, cut, count, weights, self.needs("image_size"), input_size, mean, std, keep=freeze
        )
        if not freeze:
            self.answers.begin(self.net.cloud)
        self.utility, self.monitor = self.answers.metric(), f"val/{self.answers.main}"
        self.feature_shape = self.net.feature_shape
        self.automatic_optimization = not freeze
        if freeze:
            self.requires_grad_(False).eval()

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes, classes or values, and the size of the pictures.

        Raises:
            UserError: the labels are of another kind, or too few; nobody can label an embedding; or there are
                no weights to be kept as they are.
        """
        library = str(given.get("arch")).partition(":")[0] in ("timm", "torchvision", given.get("arch"))
        if given.get("freeze") and given.get("weights") is None and library:
            raise UserError(
                "freeze keeps weights as they are, and none are given: give --model.init_args.weights FILE, "
                "or freeze false"
            )
        kind, names = given.get("answers", "multilabel"), list(data.attribute_names)
        if kind == "embedding":
            raise UserError(
                "an embedding has no labels to be learnt from: adopt a trained net (python -m crafter_pl "
                "adopt)"
            )
        if names and data.labels_kind != kind:
            raise UserError(
                f"these faces' labels are {data.labels_kind}, the model's answers {kind}: give "
                f"--model.init_args.answers {data.labels_kind}"
            )
        if len(names) < (least := 1 if kind == "regression" else 2):
            raise UserError(
                f"the task model needs labels, {least} or more of them, and these faces have "
                f"{len(names) or 'none'}: choose a labelled source, more columns (--data.attribute_columns), "
                "or a labels file (--data.labels)"
            )
        found: dict[str, Any] = {"attribute_names": names, "image_size": data.image_size}
        if kind == "regression":
            values = data.faces.attributes[data.dataset("labelled_train").index]
            std, mean = torch.std_mean(values, 0, correction=0)
            found |= {"answer_mean": mean.tolist(), "answer_std": std.tolist()}
        return found

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
        """The data must have its labels.

        Raises:
            UserError: they have others, or none.
        """
        super().setup(stage)
        if not has_truth(self, self.data):
            raise UserError(
                "these faces have no labels that this task model could be held against: give some "
                "(--data.labels FILE); an audit measures its agreement with itself"
            )

    @torch.no_grad()
    def truth(self, batch: dict[str, Tensor]) -> Tensor:
        """What should be answered ``(N, A)``: the labels; without any what it says of the pictures itself.

        Raises:
            UserError: there are labels of something else.
        """
        labels, count = batch["attributes"], len(self.hparams["attribute_names"])
        if not labels.shape[1] or not self.answers.labelled:
            return self.answers.own(self.net(batch["image"]))
        if labels.shape[1] != count:
            raise UserError(
                f"the task model gives {count} {self.answers.served}, the faces have "
                f"{labels.shape[1]} labels: give the data that it was trained on"
            )
        return labels

    def edge(self, images: Tensor) -> Tensor:
        """Edge encoder: ``(N, 3, H, W)`` in [0, 1] -> features ``(N, C, h, w)``."""
        return self.net.encode(images)

    def cloud(self, features: Tensor) -> Tensor:
        """Cloud classifier: features ``(N, C, h, w)`` -> outputs ``(N, A)``, such as logits."""
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
        """The answers' own loss: of attributes binary cross entropy; nothing where the weights are kept."""
        if self.hparams["freeze"]:
            return None
        images = flip(batch["image"]) if self.hparams["augment"] else batch["image"]
        loss = self.answers.loss(self.net(images), self.answers.aims(batch["attributes"]))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def score(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Metric]:
        """The loss, and the answers' main figure: of attributes the mean AUC over those of both classes.

        Of the audited pictures, unprotected, it is the utility that a defence starts from.
        """
        outputs = self.net(batch["image"])
        self.utility.update(outputs, batch["attributes"])
        loss = self.answers.loss(outputs, self.answers.aims(batch["attributes"]))
        return {"loss": loss, self.answers.main: self.utility}

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


def has_truth(task: TaskModel, data: FacesDataModule, path: str = "", partly: bool = False) -> bool:
    """Whether the data's labels are what a task model answers; False: they have none, or nobody labels that.

    Args:
        task: the model, from ``path`` if that is given.
        data: set up.
        path: for messages.
        partly: labels of some of its attributes, by their names, will do.

    Raises:
        UserError: they are labels of something else.
    """
    mine, theirs = list(task.hparams["attribute_names"]), list(data.attribute_names)
    if not theirs or not task.answers.labelled:
        return False
    if partly and data.labels_kind == task.answers.kind == "multilabel" and {*mine} & {*theirs}:
        return True
    if (data.labels_kind, theirs) != (task.answers.kind, mine):
        raise UserError(
            f"the task model {path} knows the {task.answers.served} {_few(mine)}, but the data have "
            f"{data.labels_kind} labels {_few(theirs)}: train it on these data, choose the same "
            "--data.attribute_columns or --data.labels, or name all classes in the model's order "
            "(--data.classes)"
        )
    return True


def agree(made: Tensor, known: Tensor) -> bool:
    """Whether answers are the same, up to a thousandth of the largest: other processors round otherwise."""
    return made.shape == known.shape and bool((made - known).abs().max() <= 1e-3 * known.abs().max())


def _few(names: list[str]) -> str:
    """Names, of many the first."""
    return ", ".join(names if len(names) <= 8 else [*names[:5], f"{len(names) - 5} more"])
