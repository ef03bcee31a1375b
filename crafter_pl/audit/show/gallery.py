"""The pictures of a report: a few people and what attacks made of them, kept and drawn as a grid."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

GAP = 4  # pixels between the faces of a grid
FILE = "gallery.safetensors"  # kept beside a report, so that its page can be written again


@dataclass(frozen=True)
class Column:
    """One column of the grid: what an attack made of the features of one defence.

    Attributes:
        attack, features: their names.
        images: ``(R, 3, S, S)`` in [0, 1].
        named: whether any oracle of the panel names the person in it.
        moment: the round of an attack that adapts, see `Attack.history`.
    """

    attack: str
    features: str
    images: Tensor
    named: list[bool]
    moment: dict[str, int] | None = None

    @property
    def caption(self) -> str:
        """What stands below the attack's name."""
        moment = self.moment
        return self.features if moment is None else f"round {moment['round']}, {moment['pairs']} pairs"


@dataclass(frozen=True)
class Gallery:
    """Originals ``(R, 3, S, S)`` in [0, 1], and the columns of reconstructions beside them.

    `rounds` are what attacks made while they adapted, in order.
    """

    originals: Tensor
    columns: list[Column]
    rounds: list[Column] = field(default_factory=list)

    def adapting(self, people: int) -> dict[tuple[str, str], Gallery]:
        """The rounds of each attack on each set of features as a gallery of its own, of the first people."""
        found: dict[tuple[str, str], Gallery] = {}
        for column in self.rounds:
            own = found.setdefault((column.attack, column.features), Gallery(self.originals[:people], []))
            own.columns.append(replace(column, images=column.images[:people], named=column.named[:people]))
        return found

    def to_bytes(self) -> bytes:
        """The content of `FILE`, eight bits a colour."""
        columns = [*self.columns, *self.rounds]
        tensors = {f"column-{i}": column.images for i, column in enumerate(columns)}
        pixels = {
            name: (value.clamp(0, 1) * 255).round().byte().cpu().contiguous()
            for name, value in {"originals": self.originals, **tensors}.items()
        }
        about = [{key: own for key, own in vars(column).items() if key != "images"} for column in columns]
        return save(pixels, metadata={"columns": json.dumps(about)})


def read_gallery(file: Path) -> Gallery:
    """What `Gallery.to_bytes` has written.

    Raises:
        SafetensorError, LookupError, TypeError, ValueError: it is damaged.
    """
    with safe_open(file, framework="pt") as handle:
        about = json.loads(handle.metadata()["columns"])
    tensors = {name: value.float() / 255 for name, value in load_file(file).items()}
    columns = [Column(images=tensors[f"column-{i}"], **own) for i, own in enumerate(about)]
    ended, rounds = (
        [column for column in columns if (column.moment is None) is end] for end in (True, False)
    )
    return Gallery(tensors["originals"], ended, rounds)


def people_shown(identity: Tensor, index: Tensor) -> list[int]:
    """Rows of the first picture of a few people, taken at even steps: not chosen by result."""
    people = identity.unique()
    steps = torch.linspace(0, len(people) - 1, min(8, len(people))).round().long()
    rows = [(identity == person).nonzero()[:, 0] for person in people[steps]]
    return [int(own[index[own].argmin()]) for own in rows]


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """One picture `(3, H, W)` in [0, 1] as `(H, W, 3)` uint8."""
    return (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def png(image: Tensor) -> bytes:
    """One picture `(3, H, W)` in [0, 1] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(buffer, format="PNG")
    return buffer.getvalue()


def face_size(gallery: Gallery) -> tuple[int, int]:
    """The side of a face in a grid in pixels, and how often each of its own is repeated for that."""
    size = gallery.originals.shape[-1]
    scale = max(1, 72 // size)
    return size * scale, scale


def lefts(gallery: Gallery) -> list[int]:
    """Where the columns begin, in pixels, the last being the width: attacks stand a little apart."""
    step, attack = face_size(gallery)[0] + GAP, gallery.columns[0].attack
    found = [GAP, GAP + step + 2 * GAP]
    for column in gallery.columns[1:]:
        found.append(found[-1] + step + (2 * GAP if column.attack != attack else 0))
        attack = column.attack
    return [*found, found[-1] + step]


def mosaic(gallery: Gallery) -> NDArray[np.uint8]:
    """The grid as one picture `(H, W, 3)` uint8: a row a person; small faces are enlarged by whole pixels."""
    (side, scale), starts = face_size(gallery), lefts(gallery)
    canvas = np.full((len(gallery.originals) * (side + GAP) + GAP, starts[-1], 3), 255, np.uint8)
    for x, block in enumerate([gallery.originals, *(column.images for column in gallery.columns)]):
        for y, image in enumerate(block):
            top, left = y * (side + GAP) + GAP, starts[x]
            if x and gallery.columns[x - 1].named[y]:  # a red frame: some oracle names the person
                canvas[top - 3 : top + side + 3, left - 3 : left + side + 3] = (178, 34, 34)
            canvas[top : top + side, left : left + side] = to_uint8(image).repeat(scale, 0).repeat(scale, 1)
    return canvas
