"""The LightningDataModule of every stage: a source of faces, split by identity, as whole batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, default_convert

from crafter_pl.data import split
from crafter_pl.data.faces import FaceBatches, FaceSet, LabelsKind
from crafter_pl.data.loading import check_options, load_faces
from crafter_pl.errors import UserError


class FacesDataModule(LightningDataModule):
    """Faces with attributes and identities, split into public and private people.

    Class attributes:
        version: raised by hand whenever equal settings give other pictures than before
            (tests/helpers/versions.py).
    """

    version: ClassVar[int] = 1

    def __init__(
        self,
        source: Literal["synthetic", "celeba", "lfw", "folder"] = "synthetic",
        root: str | None = None,
        image_size: int = 32,
        crop: Literal["auto", "none"] | int = "auto",
        people: int = 460,
        images_per_person: int = 24,
        private_people: int = 60,
        min_private_images: int = 16,
        test_images: int = 4,
        public_val_fraction: float = 0.1,
        batch_size: int = 64,
        predict_batch_size: int = 64,
        predict_split: str = "private_test",
        seed: int = 0,
        order_seed: int | None = None,
        strict: bool = False,
        cache_dir: str | None = None,
        max_memory_mb: int = 2048,
        attribute_columns: list[int] | None = None,
        require_attributes: bool = True,
        keep_unlabelled: bool = False,
        labels: str | None = None,
        labels_kind: LabelsKind = "multilabel",
        classes: list[str] | None = None,
        public_root: str | None = None,
        identities: Literal["folder", "none"] = "folder",
    ) -> None:
        """Describe the data; nothing is loaded before `setup`.

        Args:
            source: where faces come from: drawn by code, CelebA's or LFW's official layout, or a folder for
                each person.
            root: the data's folder for all sources but `synthetic`; `$VARIABLES` and `~` are expanded.
            image_size: side of a picture in pixels.
            crop: `auto` crops pictures of CelebA's 178x218 and LFW's 250x250 to the face and leaves others as
                they are, `none` leaves all as they are (but square), a number cuts the central square of that
                side.
            people: how many people to draw (`synthetic`).
            images_per_person: how many pictures of each to draw (`synthetic`).
            private_people: how many people are private.
            min_private_images: the fewest pictures that a private person may have.
            test_images: pictures of each private person in `private_test`; the others are `private_train`.
            public_val_fraction: share of the public people held out for validation.
            batch_size: pictures a training or validation batch, per process.
            predict_batch_size: pictures a batch of `predict`, and so a shard of a feature store.
            predict_split: the part of the data that `predict` works on.
            seed: of the synthetic people and of the split.
            order_seed: of the training order, and of which public faces an attacker queries (default: seed).
            strict: stop at the first unreadable picture instead of leaving it out.
            cache_dir: keep decoded pictures here, so that the next run starts at once.
            max_memory_mb: above this size the decoded pictures are memory-mapped from disk.
            attribute_columns: which columns of the file of attributes or labels to use, from 0; by default
                all, and the paper's ten of LFW's.
            require_attributes: leave out CelebA's and LFW's pictures that have no row of attributes; if
                false, none are read: a model's utility is then agreement with itself, unprotected.
            keep_unlabelled: keep LFW's pictures without a row as public faces: for priors, decoders and
                students. Private people are those whose pictures all have a row.
            labels: a table of labels of a folder's pictures, CSV or parted by blanks: a head, and a row a
                picture, `<person>/<picture>` or the picture's own name. Without one there are none.
            labels_kind: what is in it: 0 and 1 (or -1 and 1) for each attribute, one column of classes'
                names, or numbers.
            classes: all classes in the order of a net's outputs, where the table lacks some of them or the
                net counts them otherwise (default: those in the table, by number or name).
            public_root: a second folder, of all public faces; all people in `root` with `min_private_images`
                are private then. Nobody can check that the two share no person.
            identities: a folder a person, or none: nothing says whose the pictures are, which lie straight in
                `root` and `public_root`. Each counts as a person then.
        """
        super().__init__()
        self.source = source
        self.root = root
        self.image_size = image_size
        self.crop = crop
        self.people = people
        self.images_per_person = images_per_person
        self.private_people = private_people
        self.min_private_images = min_private_images
        self.test_images = test_images
        self.public_val_fraction = public_val_fraction
        self.batch_size = batch_size
        self.predict_batch_size = predict_batch_size
        self.predict_split = predict_split
        self.seed = seed
        self.order_seed = seed if order_seed is None else order_seed
        self.strict = strict
        self.cache_dir = cache_dir
        self.max_memory_mb = max_memory_mb
        self.attribute_columns = attribute_columns
        self.require_attributes = require_attributes
        self.keep_unlabelled = keep_unlabelled
        self.labels = labels
        self.labels_kind = labels_kind
        self.classes = classes
        self.public_root = public_root
        self.identities = identities
        self.predict_numbers: list[int] | None = None
        self.train_split, self.val_split = "public_train", "public_val"  # a stage says which it works on
        check_options(self)

    @property
    def pictures(self) -> dict[str, Any]:
        """What a picture's pixels hang on besides its place in the split; feature stores name it."""
        return {
            "source": self.source,
            "image_size": self.image_size,
            "crop": self.crop,
            "version": self.version,
        }

    # Loading

    def prepare_data(self) -> None:
        """On one process a machine, before the others: fill the cache of pictures, if there is one."""
        if self.cache_dir is not None and self.source != "synthetic":
            self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Load and split once; later calls do nothing.

        Raises:
            UserError: the data is missing, malformed or too small for the split.
        """
        if hasattr(self, "faces"):
            return
        faces = load_faces(self)
        self.splits = split.make_split(
            faces,
            self.private_people,
            self.min_private_images,
            self.test_images,
            self.public_val_fraction,
            self.seed,
        )
        rows = split.split_rows(faces, self.splits)
        self.split_hash = split.rows_hash(rows)
        self.public_hash = split.rows_hash([row for row in rows if row[2] in split.PUBLIC])
        self.private_identities = torch.unique(faces.identity[self._rows("all_private")])
        self.public_identities = torch.unique(faces.identity[self._rows("public")])
        self.faces = faces

    def share(self, other: FacesDataModule) -> None:
        """Takes the faces that another one of the same settings has loaded, or will load first."""
        if hasattr(other, "faces"):
            hashes = ("split_hash", "public_hash")
            for name in ("faces", "splits", *hashes, "private_identities", "public_identities"):
                setattr(self, name, getattr(other, name))

    def hash_of(self, *parts: str) -> str:
        """What a stage that works on these parts has seen of the split: all of it, or its public pictures."""
        return self.public_hash if split.PUBLIC.issuperset(parts) else self.split_hash

    def same_people(self, digest: str | None) -> bool:
        """Whether a checkpoint's hash, see `hash_of`, says that it has seen nobody who is private here."""
        return digest in (self.split_hash, self.public_hash)

    def _rows(self, part: str) -> Tensor:
        if part in split.LABELLED:
            rows = self._rows(split.LABELLED[part])
            return rows[self.faces.labelled[rows]]
        if part == "gallery" and self.identities == "none":
            part = "private_test"  # the very pictures: nobody knows others of the same person
        parts = split.UNIONS.get(part, (part,))
        if not self.splits.keys() >= {*parts}:
            raise UserError(
                f"no part of the data is called {part!r}; there are "
                f"{', '.join((*split.PARTS, *split.UNIONS, *split.LABELLED))}"
            )
        return torch.cat([self.splits[one] for one in parts]).sort().values

    # What there is

    @property
    def attribute_names(self) -> list[str]:
        """The attributes, in the order of the columns."""
        return self.faces.attribute_names

    def dataset(self, part: str) -> FaceSet:
        """A part of the data: one of `split.PARTS`, or `public`, or `all_private`, which join two."""
        return FaceSet(self.faces, self._rows(part))

    def rows(self, part: str) -> dict[str, Tensor]:
        """A whole part as one batch: `image`, `attributes`, `identity`, `index`."""
        faces = self.dataset(part)
        return faces.take(faces.index)

    def write_split_csv(self, path: str | Path) -> None:
        """Write who and what is in which part: `file,person,part`, sorted."""
        split.write_split_csv(path, self.faces, self.splits)

    # Loaders

    @property
    def world(self) -> tuple[int, int]:
        """How many processes there are, and which is this."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """`train_split`, each process its share, in an order set by order_seed and epoch alone.

        The last, smaller batch is left out, unless it is the only one.
        """
        data = self.dataset(self.train_split)
        world, rank = self.world
        sampler: DistributedSampler[dict[str, Any]] = DistributedSampler(
            data, num_replicas=world, rank=rank, shuffle=True, seed=self.order_seed, drop_last=True
        )
        whole = len(sampler) >= self.batch_size
        return DataLoader(
            data, batch_size=self.batch_size, sampler=sampler, drop_last=whole, collate_fn=default_convert
        )

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """`val_split`, in order; every process sees all of it, so all agree on the figures."""
        return self._in_order(self.val_split)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """`private_test`, in order, all of it on every process."""
        return self._in_order("private_test")

    def _in_order(self, part: str) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.dataset(part), batch_size=self.batch_size, collate_fn=default_convert)

    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        """`predict_split` in fixed batches, dealt whole among the processes.

        A batch carries its number in the entry `batch`; where `predict_numbers` is set there are these alone.
        """
        world, rank = self.world
        batches = self.predict_batches()
        numbers = range(len(batches)) if self.predict_numbers is None else self.predict_numbers
        return DataLoader(batches, batch_size=None, sampler=numbers[rank::world])

    def predict_batches(self) -> FaceBatches:
        """All batches of `predict_split`."""
        return FaceBatches(self.dataset(self.predict_split), self.predict_batch_size)
