"""The feature store: crafted features on disk, all that leaves the edge.

A folder of `shard-NNNNN.safetensors` (`features` `(n, C, h, w)` as they travel, see `transport`; `index`
int64 `(n,)`) and a `manifest.json`, which is written last: a store without one is not finished. Its readers
get what the cloud receives, in float32. No picture, unprotected feature, identity or file name is in it.
Shards are written atomically: an interrupted writer goes on where it stopped, if the hash of its settings is
the one in the file `fingerprint`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from crafter_pl.cloud.wire import Features, Refused, read_features
from crafter_pl.data.provenance import present
from crafter_pl.data.transport import TRANSPORTS, encode
from crafter_pl.errors import UserError
from crafter_pl.files import read_json, tidy, to_json, write_file

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PHOTOGRAPHS = "photographs"  # the split of stores that `protect` makes: nobody has labelled these faces
_REQUIRED = {
    "format_version": int,
    "defense": str,
    "settings": dict,
    "encoder_sha256": str,
    "split_hash": str,
    "split": str,
    "shape": list,
    "dtype": str,
    "count": int,
    "shards": dict,
}
_AGAIN = "delete it and run predict again; finished shards are kept"


def shard_name(number: int) -> str:
    """The file name of the shard of batch `number`."""
    return f"shard-{number:05d}.safetensors"


# Writing


def write_shard(
    folder: str | Path, number: int, features: Tensor, index: Tensor, transport: str = "float32"
) -> Path:
    """Write a batch of crafted features, atomically.

    Args:
        folder: the store; made if it is not there.
        number: of the batch, which names the shard.
        features: `(n, C, h, w)`, finite.
        index: int64 `(n,)`, the pictures' rows in the data set, all different.
        transport: how the features are stored, one of `TRANSPORTS`; the manifest's `dtype`.

    Raises:
        ValueError: the shapes do not fit together, a feature is not finite or an index comes twice.
        UserError: a feature is too large for `transport`.
    """
    name = shard_name(number)
    if (
        features.ndim != 4
        or index.shape != features.shape[:1]
        or len(index) == 0
        or index.dtype != torch.int64
    ):
        raise ValueError(
            f"{name}: features {tuple(features.shape)} do not fit index {tuple(index.shape)} {index.dtype}"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError(f"{name}: a crafted feature is not finite; nothing was written")
    if len(torch.unique(index)) != len(index):
        raise ValueError(f"{name}: a picture comes twice in one batch; nothing was written")
    tensors = {**encode(features, transport), "index": index.detach().cpu().contiguous()}
    return write_file(Path(folder) / name, save(tensors))


def write_manifest(folder: str | Path, manifest: dict[str, Any]) -> Path:
    """Write the manifest, atomically, once every shard that it lists is there; tidy what killed writers left.

    Raises:
        ValueError: an entry is missing or of the wrong type, or the counts do not add up.
        UserError: a listed shard is missing.
    """
    folder = Path(folder)
    _check_manifest(manifest, ValueError, MANIFEST)
    for name in manifest["shards"]:
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} is missing, so the store is not finished; run predict again with the same "
                "settings"
            )
    tidy(folder)
    return write_file(folder / MANIFEST, to_json(manifest, indent=2))


def shard_done(folder: str | Path, number: int, index: Tensor) -> bool:
    """Whether the shard of batch `number` is there, sound, and of exactly these pictures in this order."""
    try:
        return _read_shard(Path(folder) / shard_name(number)).index == index.tolist()
    except UserError:
        return False


# Reading


def read_store(
    folder: str | Path,
    *,
    shape: Sequence[int] | None = None,
    encoder_sha256: str | None = None,
    split_hash: str | None = None,
    split: str | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Read a finished store and check all of it.

    Args:
        folder: the store.
        shape: `(C, h, w)` that the encoder gives; None accepts the manifest's.
        encoder_sha256: of the encoder's checkpoint that the reader has; None accepts any.
        split_hash: of the reader's split; None accepts any.
        split: the part of the data that the reader expects, such as `private_test`; None accepts any.

    Returns:
        Features float32 `(N, C, h, w)` and index int64 `(N,)`, both in ascending order of the index, and the
        manifest.

    Raises:
        UserError: the store is unfinished, damaged or made for something else; the shard and the way out are
            named.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    expect(folder, manifest, shape=shape, encoder_sha256=encoder_sha256, split_hash=split_hash, split=split)
    if strangers := {file.name for file in folder.glob("shard-*.safetensors")} - manifest["shards"].keys():
        raise UserError(
            f"{folder / min(strangers)} is not in the manifest; delete it, or run predict again to a new "
            "folder"
        )
    shards = [(name, *read_shard(folder, name, manifest)) for name in sorted(manifest["shards"])]
    features = torch.cat([features for _, features, _ in shards])
    index = torch.cat([index for _, _, index in shards])
    order = torch.argsort(index, stable=True)
    index = index[order]
    if len(twice := index[1:][index[1:] == index[:-1]]):
        holders = [name for name, _, own in shards if bool((own == twice[0]).any())]
        raise UserError(
            f"{folder}: picture {int(twice[0])} is in the store twice, in {' and '.join(holders)}; "
            f"delete {holders[-1]} and {MANIFEST} and run predict again"
        )
    return features[order], index, manifest


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Read and check the manifest alone.

    Raises:
        UserError: there is none, it is no manifest, or its format version is another.
    """
    file = Path(folder) / MANIFEST
    if not file.parent.is_dir():
        raise UserError(f"{file.parent} is missing: no feature store there; make one with predict")
    if not file.is_file():
        raise UserError(
            f"{file} is missing: the store is not finished; run predict again with the same settings to go on"
        )
    manifest = read_json(file, _AGAIN)
    if not isinstance(manifest, dict):
        raise UserError(f"{file} is not a manifest, but a {type(manifest).__name__}; {_AGAIN}")
    if (version := manifest.get("format_version")) != FORMAT_VERSION:
        raise UserError(
            f"{file}: format version {version!r}, this crafter_pl reads {FORMAT_VERSION}; craft the store "
            "again, or use the version of crafter_pl that wrote it"
        )
    _check_manifest(manifest, UserError, str(file))
    return present(manifest)


def expect(
    folder: str | Path,
    manifest: dict[str, Any],
    *,
    shape: Sequence[int] | None = None,
    encoder_sha256: str | None = None,
    split_hash: str | None = None,
    split: str | None = None,
) -> None:
    """Compare a manifest with what its reader works on; None accepts any, see `read_store`.

    Raises:
        UserError: the store was made for something else.
    """
    if manifest["split"] == PHOTOGRAPHS and (split_hash is not None or split is not None):
        raise UserError(
            f"{folder} holds features of photographs (made with protect): nobody has labelled these faces, "
            "so they can be neither audited nor learned from; give a store that predict made of labelled ones"
        )
    for entry, (want, meaning) in {
        "shape": (
            None if shape is None else list(shape),
            "of an encoder cut elsewhere or another picture size",
        ),
        "encoder_sha256": (encoder_sha256, "made with another encoder"),
        "split_hash": (split_hash, "made of another split of the data"),
        "split": (split, "made of another part of the data"),
    }.items():
        if want is not None and manifest[entry] != want:
            raise UserError(
                f"{folder}: the store's {entry} is {manifest[entry]}, expected {want}: it was {meaning}; "
                "craft it again with this one, or give the files that it was made with"
            )


def read_shard(folder: str | Path, name: str, manifest: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """One shard of a store whose manifest is read: features float32 `(n, C, h, w)`, index `(n,)`.

    Raises:
        UserError: it is missing, damaged, or not as the manifest says; it names the shard.
    """
    file = Path(folder) / name
    shard = _read_shard(file)
    sent = {"F32": "float32", "F16": "float16", "I8": "int8"}[shard.sent]  # of `TRANSPORTS`
    for what, got, said in (
        (f": features in {sent}", sent, manifest["dtype"]),
        (f" holds {len(shard.array)} features", len(shard.array), manifest["shards"][name]),
        (f": features of shape {shard.array.shape[1:]}", shard.array.shape[1:], tuple(manifest["shape"])),
    ):
        if got != said:
            raise UserError(f"{file}{what}, the manifest says {said}; {_AGAIN}")
    return torch.from_numpy(shard.array), torch.tensor(shard.index)


def _read_shard(file: Path) -> Features:
    """One shard, checked by itself."""
    if not file.is_file():
        raise UserError(
            f"{file} is missing; run predict again with the same settings: it writes the missing shards alone"
        )
    try:
        shard = read_features(file.read_bytes())
    except Refused as error:
        raise UserError(f"{file} is truncated or damaged ({error}); {_AGAIN}") from error
    if shard.index is None:
        raise UserError(f"{file} is truncated or damaged (there is no tensor index in it); {_AGAIN}")
    return shard


def _check_manifest(manifest: dict[str, Any], error: type[Exception], where: str) -> None:
    def check(good: bool, what: str, got: object) -> None:
        if not good:
            raise error(f"{where}: {what}, got {repr(got)[:80]}; {_AGAIN}")

    for entry, kind in _REQUIRED.items():
        value = manifest.get(entry)
        check(type(value) is kind, f"entry {entry!r} must be {kind.__name__}", value)
    seed = manifest.get("seed", 0)  # `protect` tells it to nobody
    check(type(seed) is int, "entry 'seed' must be int", seed)
    shape, shards, count = manifest["shape"], manifest["shards"], manifest["count"]
    check(manifest["dtype"] in TRANSPORTS, f"dtype must be one of {', '.join(TRANSPORTS)}", manifest["dtype"])
    check(len(shape) == 3 and all(map(_is_size, shape)), "shape must be three sizes", shape)
    check(
        bool(shards) and all(re.fullmatch(r"shard-[0-9]{5,12}\.safetensors", name) for name in shards),
        "shards must map file names, such as shard-00000.safetensors, to counts",
        shards,
    )
    check(all(map(_is_size, shards.values())), "shards must map file names to counts from 1", shards)
    total = sum(shards.values())
    check(total == count, f"the shards hold {total} features together, count says {count}", shards)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 < value < 2**31  # more is no store
