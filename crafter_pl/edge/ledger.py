"""What must stay on the device beside a store of photographs: the seed, and which feature is which face."""

import json
import secrets
from collections import Counter
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any

import torch

from crafter_pl.crafting.noise import keyed_bits
from crafter_pl.edge.faces import Place
from crafter_pl.errors import UserError
from crafter_pl.files import LOCK, read_json, tidy, to_json, write_file

_VERSION = 1


@dataclass
class Face:
    """A face found: where, under which index its feature is stored, and why it is left out after all."""

    place: Place
    index: int = -1
    lost: str | None = None


@dataclass
class Photo:
    """A photograph looked at: its size in bytes and time of change, and its faces or why there is none."""

    stamp: list[int]
    faces: list[Face] = field(default_factory=list)
    skipped: str | None = None


class Ledger:
    """The file `OUT.private.json`, mode 0600, beside the store OUT: what an interrupted `protect` goes on by.

    Attributes:
        file: where it is.
        settings: what the features depend on besides the photographs and the seed.
        seed: of the crafting noise and of the order.
        photos: by absolute path.
        planned: all photographs have been looked at, and the indices given out.
    """

    def __init__(self, store: Path, settings: dict[str, Any], seed: int | None) -> None:
        """Read the ledger of a store that was begun, or begin one; tidy what a killed process left of both.

        Raises:
            UserError: it was begun with other settings, or there are features without a ledger.
        """
        self.store, self.file = store, private_file(store)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.photos: dict[str, Photo] = {}
        self.planned = False
        tidy(store)
        tidy(self.file.parent, self.file.name)
        if self.file.is_file():
            self._read(seed)
            return
        if any(file.name != LOCK for file in store.iterdir()):
            raise UserError(
                f"{store} is not empty, and {self.file}, which would say of which photographs it is, is "
                "missing: choose another --out"
            )
        self.seed = secrets.randbits(63) if seed is None else seed

    def _read(self, seed: int | None) -> None:
        way_out = f"delete it and {self.store}, or choose another --out"
        content = read_json(self.file, way_out)
        try:
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']}")
            self.seed, self.planned = content["seed"], content["planned"]
            for path, photo in content["photos"].items():
                faces = [Face(Place(**face.pop("place")), **face) for face in photo.pop("faces")]
                self.photos[path] = Photo(faces=faces, **photo)
            there = dict(content["settings"])
            self._check()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.file} cannot be read ({error}): {way_out}") from error
        other = [
            f"{key}: {there.get(key)!r} there, {self.settings.get(key)!r} here"
            for key in sorted(there.keys() | self.settings.keys())
            if there.get(key) != self.settings.get(key)
        ]
        if seed not in (None, self.seed):
            other.append("protect.seed: another")
        if other:
            head = (
                f"{self.store} was begun with other settings or another checkpoint; give the same, choose "
                f"another --out, or delete it and {self.file}:"
            )
            raise UserError("\n  ".join([head, *other]))

    def _check(self) -> None:
        """Raises ValueError where a value is none that `save` writes."""
        faces = self.faces()
        index = [face.index for face in faces]
        known = range(len(index)) if self.planned else [-1] * len(index)
        reasons = [photo.skipped for photo in self.photos.values()] + [face.lost for face in faces]
        sound = {
            "seed": type(self.seed) is int and -(2**63) <= self.seed < 2**64,
            "planned": type(self.planned) is bool,
            "index": all(type(number) is int for number in index) and sorted(index) == list(known),
            "place": all(type(value) in (int, float) for face in faces for value in astuple(face.place)),
            "lost": all(isinstance(reason, str | None) for reason in reasons),
        }
        if wrong := [name for name, good in sound.items() if not good]:
            raise ValueError(f"{wrong[0]} is nothing that protect writes")

    def save(self) -> None:
        """Write it, atomically, for its owner's eyes alone."""
        content = {
            "version": _VERSION,
            "note": "private: keep it on the device, it undoes part of the protection",
            "seed": self.seed,
            "planned": self.planned,
            "settings": self.settings,
            "photos": {path: asdict(photo) for path, photo in self.photos.items()},
        }
        write_file(self.file, to_json(content), mode=0o600)

    def plan(self, listed: list[str]) -> None:
        """Give the faces of the photographs `listed` their indices, in an order drawn from the seed.

        Neighbours in a folder are often pictures of one person, or faces of one picture. The index is in the
        store, and whoever has it must not see who was beside whom.
        """
        self.photos = {path: self.photos[path] for path in listed}
        faces = self.faces()
        # A stream of keyed numbers that no defence uses.
        order = keyed_bits(self.seed, torch.arange(len(faces)), 1, stream=2**40)[:, 0].argsort(stable=True)
        for index, row in enumerate(order.tolist()):
            faces[row].index = index
        self.planned = True
        self.save()

    def faces(self) -> list[Face]:
        """All faces, photograph by photograph."""
        return [face for photo in self.photos.values() for face in photo.faces]

    def batches(self, size: int) -> list[list[tuple[str, Face]]]:
        """The faces with their photographs in the order of the index, `size` at a time."""
        pairs = sorted(
            ((path, face) for path, photo in self.photos.items() for face in photo.faces),
            key=lambda pair: pair[1].index,
        )
        return [pairs[start : start + size] for start in range(0, len(pairs), size)]

    def counts(self) -> Counter[str]:
        """How many photographs, or faces of one, were left out, by reason, in their order."""
        reasons = [photo.skipped for photo in self.photos.values() if photo.skipped]
        return Counter(sorted(reasons + [face.lost for face in self.faces() if face.lost]))


def private_file(store: Path) -> Path:
    """Where the ledger of a store is."""
    return store.with_name(f"{store.name}.private.json")
