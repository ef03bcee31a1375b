"""From a data module's options to its faces."""

import os
from pathlib import Path
from typing import Literal, Protocol

from crafter_pl.data import sources
from crafter_pl.data.decoding import Decoding
from crafter_pl.data.faces import Faces, LabelsKind
from crafter_pl.data.synthetic import synthetic_faces
from crafter_pl.errors import UserError
from crafter_pl.files import expand


class Source(Protocol):
    """What `FacesDataModule` says of its faces; see there."""

    source: Literal["synthetic", "celeba", "lfw", "folder"]
    root: str | None
    image_size: int
    crop: Literal["auto", "none"] | int
    people: int
    images_per_person: int
    seed: int
    strict: bool
    cache_dir: str | None
    max_memory_mb: int
    attribute_columns: list[int] | None
    require_attributes: bool
    keep_unlabelled: bool
    labels: str | None
    labels_kind: LabelsKind
    classes: list[str] | None
    public_root: str | None
    identities: Literal["folder", "none"]


def check_options(data: Source) -> None:
    """Refuses options that contradict each other, before anything is loaded.

    Raises:
        UserError: names the option.
    """
    source = data.source
    if source not in ("synthetic", "celeba", "lfw", "folder"):
        raise UserError(f"source {source!r} must be synthetic, celeba, lfw or folder (--data.source)")
    if (data.labels is None and data.labels_kind != "multilabel") or (
        data.labels is not None and source != "folder"
    ):
        raise UserError(
            f"labels_kind {data.labels_kind} is of a file of labels, and that of the source folder, not "
            f"{source}: give --data.source folder --data.labels FILE, or neither"
        )
    if data.classes is not None and (
        data.labels_kind != "multiclass" or len(set(data.classes)) < max(2, len(data.classes))
    ):
        raise UserError(
            f"classes {data.classes}: give two different names or more (--data.classes), and "
            "--data.labels_kind multiclass"
        )
    if source != "folder" and (data.public_root is not None or data.identities == "none"):
        raise UserError(f"public_root and identities none are for --data.source folder, not {source}")
    if data.identities == "none" and data.public_root is None:
        raise UserError(
            "without identities nobody can keep private people out of the public faces: give a folder of "
            "public faces that shows none of them (--data.public_root PATH)"
        )
    for name in ("batch_size", "predict_batch_size", "image_size"):
        if (value := getattr(data, name)) < 1:
            raise UserError(f"{name} is {value}; give at least 1 (--data.{name})")


def load_faces(data: Source) -> Faces:
    """The faces of its source, decoded.

    Raises:
        UserError: they are missing or malformed.
    """
    if data.source == "synthetic":
        return synthetic_faces(data.people, data.images_per_person, data.image_size, data.seed)
    if data.root is None:
        raise UserError(f"source {data.source} needs the folder of the pictures: give --data.root PATH")
    root, cache = _path("root", data.root), data.cache_dir
    cache_dir = None if cache is None else _path("cache_dir", cache)
    decoding = Decoding(data.image_size, data.crop, data.strict, cache_dir, data.max_memory_mb)
    if data.source == "celeba":
        return sources.load_celeba(root, decoding, data.attribute_columns, data.require_attributes)
    if data.source == "lfw":
        return sources.load_lfw(
            root, decoding, data.attribute_columns, data.require_attributes, data.keep_unlabelled
        )
    if data.labels is None and data.attribute_columns is not None:
        raise UserError(
            "attribute_columns are given, but this folder has no labels: drop them, or give "
            "--data.labels FILE"
        )
    return sources.load_folder(
        root,
        decoding,
        None if data.labels is None else _path("labels", data.labels),
        data.labels_kind,
        data.attribute_columns,
        data.classes,
        None if data.public_root is None else _path("public_root", data.public_root),
        data.identities == "folder",
    )


def _path(option: str, given: str) -> Path:
    """A folder or file as it was meant."""
    path = expand(given)
    if "$" in path and not os.path.lexists(path):
        raise UserError(
            f"--data.{option} {given}: the variable in it is not set; export it, or give a folder that exists"
        )
    return Path(path)
