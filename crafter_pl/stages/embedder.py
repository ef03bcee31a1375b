"""A recogniser of public people alone, which a defence may hold: the rulers of privacy it may not."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.metrics import FAR, attribute_auc, tar_at_far
from crafter_pl.nets import OracleNet
from crafter_pl.stages.recogniser import Recogniser


class Embedder(Recogniser):
    """Embeds faces for the defences that cloak pictures.

    It never sees a private person: its classes are the people of ``public_train``, and a picture of anybody
    else is refused in training. It is watched on ``public_val``, who are others again: would it take two
    pictures for the same person's?

    Args:
        backbone: ``resnet`` (in-house) or ``plain`` (VGG-like).
        grey: sees the luma alone.
        width: first width.
        embedding: size of the embedding.
        dropout: before the embedding.
        lr: peak learning rate of AdamW with a one-cycle schedule.
        weight_decay: of AdamW.
        scale: inverse temperature of the cosine logits.
        margin: CosFace's margin, subtracted from the right person's cosine in training.
        identities: the raw identity numbers of its people, in class order; the command line takes them from
            the data.
        image_size: side of the pictures in pixels; likewise.
    """

    net: OracleNet
    stage_name = "embedder"
    monitor = "val/tar"

    def __init__(
        self,
        backbone: Literal["resnet", "plain"] = "resnet",
        grey: bool = False,
        width: int = 32,
        embedding: int = 256,
        dropout: float = 0.2,
        lr: float = 2e-3,
        weight_decay: float = 0.05,
        scale: float = 20.0,
        margin: float = 0.2,
        identities: list[int] | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, Tensor]] = []
        self.build(self.needs("identities"))

    @classmethod
    def from_data(cls, data: FacesDataModule, given: Mapping[str, Any]) -> dict[str, Any]:
        """Who is public, and the size of the pictures.

        Raises:
            UserError: there are too few people.
        """
        return {"identities": cls.people_of(data), "image_size": data.image_size}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collects the embeddings of people it has not learned."""
        self._seen.append((self.embed(batch["image"]).float(), batch["identity"]))

    def on_validation_epoch_end(self) -> None:
        """Logs how well it verifies them: true accept rate at 1 % false accepts, and AUC."""
        embeddings, identity = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        tar, auc = verification(embeddings, identity)
        self.log_dict({"val/tar": tar, "val/auc": auc}, prog_bar=True)


def verification(embeddings: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
    """True accept rate at 1 % false accepts, and area under the ROC curve, of pairs told by their cosine.

    Args:
        embeddings: unit embeddings ``(N, E)``; beyond 1000 pictures those of the lowest identity numbers.
        identity: raw identity numbers ``(N,)``.

    Returns:
        Two scalars in [0, 1]; those of chance if no pair is of one person, or none of two.
    """
    chosen = identity.argsort(stable=True)[:1000]  # half a million pairs
    embeddings, identity = embeddings[chosen], identity[chosen]
    different = ~torch.eye(len(chosen), dtype=torch.bool)
    same = (identity[:, None] == identity[None]).cpu()[different]
    if (tar := tar_at_far((embeddings @ embeddings.T).double().cpu(), identity.cpu(), FAR)) is None:
        return embeddings.new_tensor(FAR), embeddings.new_tensor(0.5)
    auc = attribute_auc((embeddings @ embeddings.T).cpu()[different][:, None], same[:, None])
    return embeddings.new_tensor(float(tar[0])), embeddings.new_tensor(float(auc[0]))
