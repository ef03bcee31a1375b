"""Feature stores as training data: read shard by shard, shuffled, shared by processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.store import read_manifest, read_shard
from crafter_pl.errors import UserError


def first_shards(manifest: dict[str, Any], count: int | None) -> dict[str, int]:
    """How many features to take of each shard, in order of their names, for the first ``count`` in all.

    Raises:
        UserError: the store holds fewer.
    """
    left = manifest["count"] if count is None else count
    if not 0 < left <= manifest["count"]:
        raise UserError(f"{left} features asked of a store that holds {manifest['count']}")
    taken = {}
    for name, size in sorted(manifest["shards"].items()):
        if left > 0:
            taken[name] = min(size, left)
            left -= taken[name]
    return taken


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
        self._plan: tuple[int, list[tuple[int, list[str]]]] | None = None  # epoch, (first place, shards)
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
        parts = list(self._places(epoch, start, start + self.slice))
        batch = {
            "features": torch.cat([features for features, _ in parts]),
            "index": torch.cat([index for _, index in parts]),
        }
        return batch if self.lookup is None else batch | self.lookup(batch["index"])

    def _places(self, epoch: int, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The features at places ``start`` to ``stop`` of an epoch's order, in as many parts as groups."""
        groups = self._groups(epoch)
        for number, (first, names) in enumerate(groups):
            size = sum(self.shards[name] for name in names)
            if first < stop and start < first + size:
                features, index = self._read(epoch, number, names)
                own = slice(max(start - first, 0), stop - first)
                yield features[own], index[own]

    def _groups(self, epoch: int) -> list[tuple[int, list[str]]]:
        """The shards of an epoch in their order, ``buffer`` at a time, each group with its first place."""
        if self._plan is None or self._plan[0] != epoch:
            names = list(self.shards)
            order = torch.randperm(len(names), generator=_generator(self.seed, epoch, 0)).tolist()
            groups, first = [], 0
            for at in range(0, len(order), self.buffer):
                group = [names[place] for place in order[at : at + self.buffer]]
                groups.append((first, group))
                first += sum(self.shards[name] for name in group)
            self._plan = (epoch, groups)
        return self._plan[1]

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


def _same(batch: Any) -> Any:  # noqa: ANN401 (the type that DataLoader asks for)
    return batch


def store_loader(batches: StoreBatches, epoch: int = 0) -> DataLoader[dict[str, Tensor]]:
    """A loader of the whole batches of ``epoch``; ``sampler.set_epoch`` (Lightning calls it) moves on."""
    return DataLoader(batches, batch_size=None, sampler=_Numbers(batches, epoch), collate_fn=_same)


def _generator(seed: int, epoch: int, group: int) -> torch.Generator:
    key = (seed * 1_000_003 + epoch) * 1_000_003 + group
    return torch.Generator().manual_seed(key & 0x7FFF_FFFF_FFFF_FFFF)


class PublicPictures:
    """Looks pictures of public people up by their index: float32 ``(N, 3, S, S)`` in [0, 1]."""

    def __init__(self, data: FacesDataModule) -> None:
        self._faces = data.dataset("public")
        self._public = torch.zeros(len(self._faces.faces), dtype=torch.bool)
        self._public[self._faces.index] = True

    def __call__(self, index: Tensor) -> Tensor:
        """The pictures at the rows ``index`` of the data set.

        Raises:
            UserError: one of them is of a private person, or there is no such row.
        """
        known = (index >= 0) & (index < len(self._public))
        if not bool(known.all()) or not bool(self._public[index].all()):
            raise UserError("a feature store for training names a picture that is not of a public person")
        pictures: Tensor = self._faces.take(index)["image"]
        return pictures
