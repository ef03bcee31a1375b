"""Public faces that an attacker had crafted by the defence: kept in feature stores, never crafted twice."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from crafter_pl.data.datamodule import FacesDataModule
from crafter_pl.data.features import PublicPictures, StoreBatches, first_shards, store_loader
from crafter_pl.data.store import MANIFEST, read_manifest, read_shard, shard_done, shard_name
from crafter_pl.data.writer import StoreWriter
from crafter_pl.defenses import Defense, ProtectOptions
from crafter_pl.errors import UserError
from crafter_pl.files import lock

SPLITS = ("public_train", "public_val")


@dataclass(frozen=True)
class QueryPlan:
    """How many pairs an attacker asks for, in rounds.

    Attributes:
        pairs_per_round: public faces that are queried in each round.
        epochs_per_round: passes over all pairs so far in each round.
        val_pairs: held-out public faces that are queried once.
        batch_size: pairs a step, over all processes.
    """

    pairs_per_round: int
    epochs_per_round: int
    val_pairs: int
    batch_size: int

    def rounds(self, epochs: int) -> int:
        """The round, from 1, in which ``epochs`` epochs end; 0 before the first."""
        return -(-epochs // self.epochs_per_round)

    def pairs(self, epochs: int) -> int:
        """How many pairs are queried in the course of ``epochs`` epochs."""
        return self.rounds(epochs) * self.pairs_per_round


class Queries:
    """(Crafted feature, picture) pairs of public faces: all that an adaptive attacker learns from.

    The store of a split is ``<folder>/<key>/<split>``, where the key is a hash of all that the features
    depend on, the same as the fingerprint of a store of `predict`: whichever attack or run asks for the same
    pairs finds them. Its pictures are in an order set by the seed alone, so that more pairs extend fewer. It
    is an ordinary feature store, whose manifest is written again as it grows; a shard that is being crafted
    when a run stops is the only thing lost.
    """

    def __init__(
        self,
        folder: str | Path,
        defense: Defense[Any],
        options: ProtectOptions,
        data: FacesDataModule,
        *,
        seed: int = 0,
        shard_size: int = 64,
    ) -> None:
        """Take note; nothing is crafted before `ensure`.

        Args:
            folder: of the stores of all defences, such as ``runs/synthetic/queries``.
            defense: the published defence; it crafts on its own device.
            options: with which options.
            data: the faces, set up, of the size that the defence takes.
            seed: of the order in which pictures are queried.
            shard_size: pictures crafted at a time, which make one shard; at least 1.
        """
        self.defense, self.options, self.data = defense, options, data
        self.seed, self.shard_size = seed, shard_size
        key = json.dumps({**self._about(""), "pictures": data.pictures}, sort_keys=True)
        self.key = hashlib.sha256(key.encode()).hexdigest()[:12]
        self.folder = Path(folder) / self.key
        self.images: Callable[[Tensor], Tensor] = PublicPictures(data)

    def _about(self, split: str) -> dict[str, Any]:
        return {
            **self.defense.manifest(self.data.split_hash, split, self.options),
            "query_seed": self.seed,
            "shard_size": self.shard_size,
        }

    def order(self, split: str = "public_train") -> Tensor:
        """The split's pictures in the order in which they are queried: rows of the data set, int64 ``(M,)``.

        Raises:
            UserError: the split is not public.
        """
        if split not in SPLITS:
            raise UserError(
                f"an attacker queries the defence with public pictures alone: split {split!r} is none of "
                f"{', '.join(SPLITS)}"
            )
        rows = self.data.dataset(split).index
        return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))]

    def ensure(
        self,
        count: int,
        split: str = "public_train",
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], object] | None = None,
    ) -> Path:
        """Crafts what is missing of the first ``count`` pairs of a split, in whole shards.

        Several processes call it together with one ``barrier``; each crafts its share of the missing shards.
        Another run that asks for pairs of the same split waits until this one has its own.

        Returns:
            The store's folder; on every process it is complete.

        Raises:
            UserError: the split is not public, or has fewer pictures.
        """
        if world > 1 and barrier is None:
            raise ValueError("several processes need a barrier")
        order, folder = self.order(split), self.folder / split
        if not 0 < count <= len(order):
            raise UserError(f"{count} queries asked of {split}, which has {len(order)} pictures")
        shards = list(order.split(self.shard_size))
        needed = range(-(-count // self.shard_size))
        meet = barrier or (lambda: None)
        waiting = f"another run is querying {folder}: waiting for it"
        with lock(folder, waiting) if rank == 0 else nullcontext():
            meet()  # nobody looks before this run has the folder to itself
            listed = read_manifest(folder)["shards"] if (folder / MANIFEST).is_file() else {}
            writer = StoreWriter(folder, self._about(split))

            def there(number: int) -> bool:  # one that the manifest lists was read when it was listed
                name = shard_name(number)
                return (name in listed and (folder / name).is_file()) or shard_done(
                    folder, number, shards[number]
                )

            missing = [number for number in needed if not there(number)]
            meet()  # all have looked before anyone writes: the shares are disjoint
            self._craft(writer, {k: shards[k] for k in missing[rank::world]}, rank)
            meet()
            if rank == 0 and (missing or len(listed) < len(needed)):
                files = takewhile(lambda number: (folder / shard_name(number)).is_file(), range(len(shards)))
                writer.finish({number: len(shards[number]) for number in files})
            meet()
        return folder

    def _craft(self, writer: StoreWriter, shards: dict[int, Tensor], rank: int) -> None:
        began = printed = time.perf_counter()
        for done, (number, rows) in enumerate(shards.items(), 1):
            images = self.images(rows).to(self.defense.device)
            with torch.inference_mode(False), torch.enable_grad():
                features = self.defense.protect(images, rows.to(self.defense.device), self.options)
            writer.write(number, features, rows)
            now = time.perf_counter()
            if rank == 0 and (now - printed >= 10 or done == len(shards)):
                printed, left = now, (now - began) / done * (len(shards) - done)
                where = f"queries {writer.folder.name} {now - began:.0f} s"
                print(f"{where}: shard {done}/{len(shards)}, {left:.0f} s left", flush=True)

    def loader(
        self,
        count: int,
        split: str = "public_train",
        *,
        batch_size: int,
        epoch: int = 0,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        buffer: int = 8,
    ) -> DataLoader[dict[str, Tensor]]:
        """Shuffled batches (`features`, `image`, `index`) of the first ``count`` pairs, after `ensure`.

        See `StoreBatches`: ``batch_size`` is per process; the global batches depend on (seed, epoch) alone.
        """
        self.order(split)  # refuses splits that are not public
        return store_loader(
            StoreBatches(
                self.folder / split,
                batch_size,
                lookup=lambda index: {"image": self.images(index)},
                count=count,
                seed=seed,
                rank=rank,
                world=world,
                buffer=buffer,
            ),
            epoch,
        )

    def batch(self, count: int, split: str = "public_val") -> tuple[Tensor, Tensor, Tensor]:
        """The first ``count`` pairs in memory, after `ensure`, in the order of the queries.

        Returns:
            Features ``(N, C, h, w)``, pictures ``(N, 3, S, S)`` in [0, 1], index int64 ``(N,)``.
        """
        rows, folder = self.order(split)[:count], self.folder / split
        manifest = read_manifest(folder)
        parts = [
            read_shard(folder, name, manifest)[0][:size]
            for name, size in first_shards(manifest, count).items()
        ]
        return torch.cat(parts), self.images(rows), rows


class QueriesDataModule(FacesDataModule):
    """(Crafted feature, picture) pairs of public faces; a round's are crafted when its first epoch begins.

    Before `ask` it gives the faces.
    """

    queries: Queries | None = None

    def ask(self, queries: Queries, plan: QueryPlan) -> None:
        """Lets it craft its pairs by these ``queries``, as many as the ``plan`` says."""
        self.queries, self.plan = queries, plan
        self._val: list[dict[str, Tensor]] = []

    def _ensure(self, queries: Queries, count: int, split: str) -> None:
        world, rank = self.world
        assert self.trainer is not None
        queries.ensure(count, split, rank, world, self.trainer.strategy.barrier)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Crafts what the round lacks, the work shared by all processes, and deals the pairs so far."""
        if self.queries is None or self.trainer is None:
            return super().train_dataloader()
        epoch, (world, rank) = self.trainer.current_epoch, self.world
        pairs = self.plan.pairs(epoch + 1)
        self._ensure(self.queries, pairs, "public_train")
        return self.queries.loader(
            pairs,
            batch_size=self.plan.batch_size // world,
            epoch=epoch,
            seed=self.order_seed,
            rank=rank,
            world=world,
        )

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """The held-out pairs, all of them on every process."""
        if self.queries is None:
            return super().val_dataloader()
        if not self._val:
            count, size = self.plan.val_pairs, self.plan.batch_size
            self._ensure(self.queries, count, self.val_split)
            features, images, _ = self.queries.batch(count, self.val_split)
            parts = zip(features.split(size), images.split(size), strict=True)
            self._val = [{"features": part, "image": pictures} for part, pictures in parts]
        return DataLoader(self._val, batch_size=None)  # type: ignore[arg-type]  # a list is a map-style data set
