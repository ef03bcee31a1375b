"""A LightningDataModule over feature stores: protected features with their faces' labels, no pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.provenance import seedless
from crafter_pl.data.store import expect, read_manifest, read_shard
from crafter_pl.data.stream import StoreBatches, store_loader
from crafter_pl.errors import UserError


class StoreDataModule(FacesDataModule):
    """What the cloud has in the training scenario: features that an edge has sent, and their labels.

    A batch has `features` float32 ``(N, C, h, w)``, `attributes` float32 ``(N, A)``, `identity` int64 and
    `index` int64 ``(N,)``. Stores are read shard by shard: the memory needed does not grow with them. Without
    stores it gives the faces. Any LightningModule takes it:
    ``Trainer().fit(module, StoreDataModule(train=..., test=..., source=...))``.

    Args:
        train: store of the part to learn from; null: there is none.
        test: store of the part to be watched and tested on; null: there is none.
        faces: settings of the data that the stores were made of, where the labels are.
    """

    def __init__(self, train: str | None = None, test: str | None = None, **faces: Any) -> None:  # noqa: ANN401 (of many types)
        super().__init__(**faces)
        self.manifests: dict[str, dict[str, Any]] = {}
        self.choose(train, test)

    def choose(self, train: str | None, test: str | None) -> None:
        """Takes these stores; `setup` looks at them."""
        self.stores = {name: Path(path) for name, path in (("train", train), ("test", test)) if path}

    def setup(self, stage: str | None = None) -> None:
        """Loads the labels; checks the stores against them, and against each other.

        Raises:
            UserError: a store is unfinished, was made of other data or of a part of it that it does not hold
                whole, or the two were protected by different defences.
        """
        super().setup(stage)
        self.manifests = {}
        for name, store in self.stores.items():
            manifest = read_manifest(store)
            expect(store, manifest, split_hash=self.split_hash)
            if manifest["count"] != (whole := len(self.dataset(manifest["split"]))):
                raise UserError(
                    f"{store} holds {manifest['count']} features and not the {whole} of {manifest['split']}: "
                    "run predict again with the same --data settings"
                )
            self.manifests[name] = manifest
        if len(self.manifests) == 2:
            mine, other = (protected_by(self.manifests[name]) for name in ("train", "test"))
            if mine != other:
                raise UserError(
                    f"{self.stores['train']} and {self.stores['test']} are of different defences: give "
                    "two stores that one defence has made with the same settings"
                )

    def _labels(self, name: str) -> _Labels:
        return _Labels(self.stores[name], self, self.manifests[name]["split"])

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The store `train`, shuffled across shards; each process its share, see `StoreBatches`."""
        if "train" not in self.stores:
            return super().train_dataloader()
        world, rank = self.world
        batches = StoreBatches(
            self.stores["train"],
            self.batch_size,
            lookup=self._labels("train"),
            seed=self.order_seed,
            rank=rank,
            world=world,
        )
        return store_loader(batches)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The store `test`, shard by shard; every process sees all of it."""
        if "test" not in self.stores:
            return super().val_dataloader()
        return DataLoader(_Shards(self.stores["test"], self._labels("test")), batch_size=None)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """As in validation."""
        return self.val_dataloader() if "test" in self.stores else super().test_dataloader()


def protected_by(manifest: dict[str, Any]) -> dict[str, Any]:
    """What made a store: the defence and its version, settings but for the seed, the hash of its weights."""
    return {
        "defense": manifest["defense"],
        "version": manifest.get("version", 1),  # older than versions: 1
        "settings": seedless(manifest["settings"]),
        "defense_sha256": manifest.get("defense_sha256"),
    }


class _Labels:
    """Looks the labels of a part of the data up by index."""

    def __init__(self, store: Path, data: FacesDataModule, part: str) -> None:
        self.store, self.faces, self.part = store, data.faces, part
        self.known = torch.zeros(len(self.faces), dtype=torch.bool)
        self.known[data.dataset(part).index] = True

    def __call__(self, index: Tensor) -> dict[str, Tensor]:
        """`attributes` float32 ``(N, A)`` and `identity` int64 ``(N,)`` of the rows ``index``.

        Raises:
            UserError: one of them is not of this part.
        """
        there = (index >= 0) & (index < len(self.known))
        if not bool(there.all()) or not bool(self.known[index].all()):
            raise UserError(f"{self.store} holds a feature that is not of {self.part}: craft it again")
        return {"attributes": self.faces.attributes[index].float(), "identity": self.faces.identity[index]}


class _Shards(Dataset[dict[str, Tensor]]):
    """A store as it lies on disk: item ``n`` is shard ``n``, with its labels."""

    def __init__(self, folder: Path, labels: _Labels) -> None:
        self.folder, self.labels = folder, labels
        self.manifest = read_manifest(folder)
        self.names = sorted(self.manifest["shards"])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        features, index = read_shard(self.folder, self.names[number], self.manifest)
        return {"features": features, "index": index, **self.labels(index)}
