"""Faces in memory: pictures, attributes and identities of a whole data set, and views on parts of it."""

from dataclasses import dataclass, field
from typing import Any, Literal
from unicodedata import normalize

import torch
from torch import Tensor
from torch.utils.data import Dataset

from crafter_pl.errors import UserError

UNKNOWN = float("nan")  # a label that nobody has given

LabelsKind = Literal["multilabel", "multiclass", "regression"]


@dataclass
class Faces:
    """A data set of faces, decoded; the pictures may be memory-mapped.

    Attributes:
        images: uint8 `(N, 3, S, S)`, RGB.
        attributes: float32 `(N, A)`: attributes 0 or 1, classes one-hot, or values; `UNKNOWN` where nobody
            knows. `A` is 0 where the source has none.
        identity: int64 `(N,)`, the source's own number of the person.
        attribute_names: `A` names in the order of the columns: of attributes, classes or values.
        identity_names: the people's names, in ascending order of their numbers.
        file_names: `N` names, stable from one machine to the next. Names are in Unicode's normal form C;
            bytes in them that are no UTF-8 are surrogates, as `surrogateescape` makes them.
        notes: how many pictures or rows were dropped, by reason.
        labels_kind: which of these the columns are.
        private: bool `(N,)`, whose pictures are of private people where the source says so; None: the split
            chooses.
        named: whether anything says which pictures are one person's; if not, each is a person by itself.
    """

    images: Tensor
    attributes: Tensor
    identity: Tensor
    attribute_names: list[str]
    identity_names: list[str]
    file_names: list[str]
    notes: dict[str, int] = field(default_factory=dict)
    labels_kind: LabelsKind = "multilabel"
    private: Tensor | None = None
    named: bool = True

    def __post_init__(self) -> None:
        """Bring names into one form; refuse parts that do not fit together."""
        self.attributes = self.attributes.float()
        self.identity_names = [normalize("NFC", name) for name in self.identity_names]
        self.file_names = [normalize("NFC", name) for name in self.file_names]
        lengths = {len(self.images), len(self.attributes), len(self.identity), len(self.file_names)}
        if len(lengths) != 1 or self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"faces do not fit together: images {tuple(self.images.shape)} {self.images.dtype}, "
                f"attributes {tuple(self.attributes.shape)}, identity {tuple(self.identity.shape)}, "
                f"{len(self.file_names)} file names"
            )
        if self.attributes.shape[1] != len(self.attribute_names):
            raise ValueError(
                f"{self.attributes.shape[1]} attribute columns, {len(self.attribute_names)} names"
            )
        if len(self.people) != len(self.identity_names):
            raise ValueError(f"{len(self.people)} people, {len(self.identity_names)} names")

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.images)

    @property
    def people(self) -> Tensor:
        """The identity numbers, ascending, int64 `(P,)`."""
        return torch.unique(self.identity)

    @property
    def labelled(self) -> Tensor:
        """Bool `(N,)`: whether all attributes of a picture are known; true where the source has none."""
        return ~self.attributes.isnan().any(dim=1)

    def names(self) -> dict[int, str]:
        """The people's names by their numbers."""
        return dict(zip(self.people.tolist(), self.identity_names, strict=True))


class FaceSet(Dataset[dict[str, Any]]):
    """Some rows of a `Faces`, as samples: one dict each, or a whole batch at once.

    A sample has `image` float32 `(3, S, S)` in [0, 1], `attributes` float32 `(A,)`, NaN where unknown,
    `identity` int64 and `index` int64, the row in `faces`, which stays the same from run to run.
    """

    def __init__(self, faces: Faces, index: Tensor) -> None:
        """Take the rows `index` (int64 `(M,)`) of `faces`."""
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(faces):
            raise UserError(
                f"rows {int(index.min())} to {int(index.max())} asked of a data set of {len(faces)} pictures"
            )
        self.faces = faces
        self.index = index

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.index)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """One sample."""
        return {name: value[0] for name, value in self.__getitems__([item]).items()}

    def __getitems__(self, items: list[int]) -> dict[str, Tensor]:
        """A whole batch: the sample's entries with a leading dimension `N`."""
        return self.take(self.index[torch.as_tensor(items, dtype=torch.long)])

    def spread(self, count: int) -> dict[str, Tensor]:
        """Up to `count` samples spread evenly, as a batch: where the first ones would be one person's."""
        count = min(count, len(self))
        return self.__getitems__([place * len(self) // count for place in range(count)])

    def take(self, rows: Tensor) -> dict[str, Tensor]:
        """The batch of these rows of `faces`, int64 `(N,)`."""
        return {
            "image": self.faces.images[rows].float().div_(255.0),
            "attributes": self.faces.attributes[rows],
            "identity": self.faces.identity[rows],
            "index": rows.clone(),
        }


class FaceBatches(Dataset[dict[str, Any]]):
    """A `FaceSet` in fixed batches: item `b` is batch `b`, and the batch says so itself.

    Which pictures share a batch depends on the batch size alone, not on how many processes share the work.
    """

    def __init__(self, faces: FaceSet, batch_size: int) -> None:
        """Cut `faces` into batches of `batch_size`; the last may be smaller."""
        self.faces = faces
        self.rows = faces.index.split(batch_size)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.rows)

    def __getitem__(self, item: int) -> dict[str, Any]:
        """Batch number `item`: a sample's entries with a leading `N`, and `batch`, its number, an int."""
        return {**self.faces.take(self.rows[item]), "batch": item}
