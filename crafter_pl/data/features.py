"""Feature stores as training data: read shard by shard, shuffled, shared by processes; no pictures."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.faces import FaceSet
from crafter_pl.data.provenance import seedless
from crafter_pl.data.store import expect, read_manifest, read_shard
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
        self.manifests = {name: read_manifest(store) for name, store in self.stores.items()}
        for name, manifest in self.manifests.items():
            expect(self.stores[name], manifest, split_hash=self.split_hash)
            if manifest["count"] != (whole := len(self.dataset(manifest["split"]))):
                raise UserError(
                    f"{self.stores[name]} holds {manifest['count']} features and not the {whole} of "
                    f"{manifest['split']}: run predict again with the same --data settings"
                )
        made = [protected_by(manifest) for manifest in self.manifests.values()]
        if len(made) == 2 and made[0] != made[1]:
            raise UserError(
                f"{self.stores['train']} and {self.stores['test']} are of different defences: give "
                "two stores that one defence has made with the same settings"
            )

    def _labels(self, name: str) -> Callable[[Tensor], dict[str, Tensor]]:
        """What looks `attributes` and `identity` of the faces of a store up by their index."""
        part = self.manifests[name]["split"]
        faces = self.dataset(part)

        def lookup(index: Tensor) -> dict[str, Tensor]:
            _check(faces, index, f"{self.stores[name]} holds a feature that is not of {part}: craft it again")
            return {
                "attributes": self.faces.attributes[index],
                "identity": self.faces.identity[index],
            }

        return lookup

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The store `train`, shuffled across shards; each process its share, see `StoreBatches`."""
        if "train" not in self.stores:
            return super().train_dataloader()
        world, rank = self.world
        return store_loader(
            StoreBatches(
                self.stores["train"],
                self.batch_size,
                lookup=self._labels("train"),
                seed=self.order_seed,
                rank=rank,
                world=world,
            )
        )

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The store `test`, shard by shard; every process sees all of it."""
        if "test" not in self.stores:
            return super().val_dataloader()
        folder, manifest, labels = self.stores["test"], self.manifests["test"], self._labels("test")

        def read(name: str) -> dict[str, Tensor]:
            features, index = read_shard(folder, name, manifest)
            return {"features": features, "index": index, **labels(index)}

        # A list is a map-style data set.
        return DataLoader(sorted(manifest["shards"]), batch_size=None, collate_fn=read)  # type: ignore[arg-type]

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


def first_shards(manifest: dict[str, Any], count: int | None) -> dict[str, int]:
    """How many features to take of each shard, in order of their names, for the first ``count`` in all.

    Raises:
        UserError: the store holds fewer.
    """
    left = manifest["count"] if count is None else count
    if not 0 < left <= manifest["count"]:
        raise UserError(f"{left} features asked of a store that holds {manifest['count']}")
    taken: dict[str, int] = {}
    for name, size in sorted(manifest["shards"].items()):
        taken[name] = min(size, left)
        left -= taken[name]
    return {name: size for name, size in taken.items() if size}


class StoreBatches(Dataset[dict[str, Tensor]]):
    """A feature store as shuffled batches; the memory needed does not grow with the store.

    In every epoch the shards come in another order, and `buffer` of them at a time are in memory, their
    features mixed. Order and mixture are a function of (seed, epoch). Item ``(epoch, number)`` is this rank's
    slice of the *global* batch `number`: what all ranks see together does not depend on how many they are,
    and nothing is seen twice in an epoch. Features that do not fill a global batch at the end are left out,
    unless they are the only batch.

    A batch has `features` float32 ``(N, C, h, w)``, `index` int64 ``(N,)`` and what ``lookup`` adds. Items
    are meant to be read in order: going back reads shards again.
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int,
        *,
        lookup: Callable[[Tensor], dict[str, Tensor]] | None = None,
        count: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        buffer: int = 8,
    ) -> None:
        """Read the manifest; shards are read when they are needed.

        Args:
            folder: a finished store.
            batch_size: features a batch, per process; a global batch is `world` times as many.
            lookup: looks up by their index what else a batch has of its faces: pictures, labels.
            count: use the first so many features in order of the shards; None uses all.
            seed: of the order.
            rank: which process this is.
            world: how many processes there are.
            buffer: shards in memory at a time, over which features are mixed.

        Raises:
            UserError: the store is not finished, or holds fewer than `count` or than `world`.
        """
        self.folder = Path(folder)
        self.manifest = read_manifest(folder)
        self.shards = first_shards(self.manifest, count)
        self.count = sum(self.shards.values())
        self.lookup, self.seed, self.rank, self.world, self.buffer = lookup, seed, rank, world, buffer
        if batch_size < 1 or buffer < 1 or not 0 <= rank < world:
            raise ValueError(f"batch_size {batch_size}, buffer {buffer}, rank {rank} of {world}")
        self.slice = min(batch_size, self.count // world)
        if not self.slice:
            raise UserError(f"{self.folder}: {self.count} features cannot be shared by {world} processes")
        self._group: tuple[tuple[int, int], Tensor, Tensor] | None = None  # (epoch, group), features, index

    def __len__(self) -> int:
        """The number of global batches in an epoch."""
        return self.count // (self.slice * self.world)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor]:
        """This rank's slice of global batch ``(epoch, number)``."""
        epoch, number = item
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        start = (number * self.world + self.rank) * self.slice
        features, index = map(torch.cat, zip(*self._places(epoch, start, start + self.slice), strict=True))
        batch = {"features": features, "index": index}
        return batch if self.lookup is None else batch | self.lookup(index)

    def _places(self, epoch: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The features at places ``start`` to ``stop`` of an epoch's order, in as many parts as groups."""
        names, first = list(self.shards), 0
        order = torch.randperm(len(names), generator=_generator(self.seed, epoch, 0))
        for number, places in enumerate(order.split(self.buffer)):
            group = [names[place] for place in places.tolist()]
            size = sum(self.shards[name] for name in group)
            if first < stop and start < first + size:
                features, index = self._read(epoch, number, group)
                own = slice(max(start - first, 0), stop - first)
                yield features[own], index[own]
            first += size

    def _read(self, epoch: int, number: int, names: list[str]) -> tuple[Tensor, Tensor]:
        """A group's features, mixed; the group before is forgotten."""
        if self._group is None or self._group[0] != (epoch, number):
            self._group = None
            shards = [read_shard(self.folder, name, self.manifest) for name in names]
            sizes = [self.shards[name] for name in names]
            features = torch.empty(sum(sizes), *self.manifest["shape"])  # as large as what was read
            index = torch.empty(sum(sizes), dtype=torch.int64)
            order = torch.randperm(sum(sizes), generator=_generator(self.seed, epoch, number + 1))
            for (own_features, own_index), places in zip(shards, order.split(sizes), strict=True):
                features[places] = own_features[: len(places)]
                index[places] = own_index[: len(places)]
            self._group = ((epoch, number), features, index)
        return self._group[1], self._group[2]


class _Numbers(Sampler[tuple[int, int]]):
    """The items of a `StoreBatches` in an epoch; Lightning tells it the epoch."""

    def __init__(self, batches: StoreBatches, epoch: int) -> None:
        self.batches, self.epoch = batches, epoch

    def set_epoch(self, epoch: int) -> None:
        """The epoch to come."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, number) for number in range(len(self.batches)))


def store_loader(batches: StoreBatches, epoch: int = 0) -> DataLoader[dict[str, Tensor]]:
    """A loader of the whole batches of ``epoch``; ``sampler.set_epoch`` (Lightning calls it) moves on."""
    return DataLoader(batches, batch_size=None, sampler=_Numbers(batches, epoch))


def _generator(seed: int, epoch: int, group: int) -> torch.Generator:
    key = (seed * 1_000_003 + epoch) * 1_000_003 + group
    return torch.Generator().manual_seed(key & 0x7FFF_FFFF_FFFF_FFFF)


class PublicPictures:
    """Looks pictures of public people up by their index: float32 ``(N, 3, S, S)`` in [0, 1]."""

    def __init__(self, data: FacesDataModule) -> None:
        self._faces = data.dataset("public")

    def __call__(self, index: Tensor) -> Tensor:
        """The pictures at the rows ``index`` of the data set.

        Raises:
            UserError: one of them is of a private person, or there is no such row.
        """
        _check(
            self._faces, index, "a feature store for training names a picture that is not of a public person"
        )
        return self._faces.take(index)["image"]


def _check(faces: FaceSet, index: Tensor, refusal: str) -> None:
    """Raises UserError where one of the rows ``index`` is not of these faces, whose rows ascend."""
    place = torch.searchsorted(faces.index, index).clamp(max=len(faces) - 1)
    if not torch.equal(faces.index[place], index):
        raise UserError(refusal)
