"""Reconstructions, made once: an audit that was interrupted goes on where it stopped.

An attack may take hours. What it has made is kept in `out/cache`, in a file named by a hash of everything
that it depends on: the bytes of the features, the attack's settings and the SHA-256 of its checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from crafter_pl.attacks.base import Attack
from crafter_pl.audit.report import write_bytes

SAVE_EVERY = 30.0  # seconds of work that a crash may cost


def cache_key(features: Tensor, description: dict[str, object], batch_size: int, seed: int) -> str:
    """32 hexadecimal digits that change with anything that a reconstruction depends on.

    Args:
        features: `(N, C, h, w)`.
        description: `Attack.describe()`: name, settings, hashes of the checkpoints.
        batch_size: how many features the attack is handed at a time.
        seed: what the global random numbers are seeded with before each batch.
    """
    digest = hashlib.sha256(features.contiguous().numpy().tobytes())
    rest = [list(features.shape), str(features.dtype), description, batch_size, seed]
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def load_done(path: Path, total: int) -> Tensor | None:
    """Read the reconstructions made so far; None if there are none that can be used."""
    try:
        images = load_file(path)["images"]
    except (OSError, SafetensorError, KeyError):
        return None
    return images if len(images) <= total else None


def reconstruct(
    attack: Attack,
    features: Tensor,
    path: Path,
    image_shape: tuple[int, ...],
    batch_size: int,
    seed: int,
    title: str,
    stop: int | None = None,
) -> Tensor:
    """Run an attack batch by batch, keeping what is done; all reconstructions `(N, 3, H, W)` in [0, 1].

    Random numbers are seeded anew for each batch, so that a run that was interrupted ends as one that was
    not.

    Args:
        attack: prepared unless everything is done already.
        features: `(N, C, h, w)`: all that the attack is given.
        path: the cache file.
        image_shape: `(3, H, W)` of a reconstruction.
        batch_size: features handed over at a time.
        seed: see `cache_key`.
        title: for the progress line.
        stop: return when so many are there (by default all of them).

    Raises:
        ValueError: if the attack breaks its contract (shape, finite, range).
    """
    done = load_done(path, len(features))
    parts = [] if done is None else [done]
    count = 0 if done is None else len(done)
    stop = len(features) if stop is None else stop
    saved = time.monotonic()
    with tqdm(total=stop, initial=count, desc=title, unit="face") as bar:
        while count < stop:
            batch = features[count : count + batch_size]
            with torch.random.fork_rng():
                torch.manual_seed(seed + count)
                images = attack.reconstruct(batch).detach().float().cpu()
            if images.shape != (len(batch), *image_shape):
                shapes = f"{tuple(images.shape)}, expected {(len(batch), *image_shape)}"
                raise ValueError(f"attack {attack.name} returned {shapes}")
            if not bool(torch.isfinite(images).all()) or images.min() < -1e-3 or images.max() > 1 + 1e-3:
                raise ValueError(f"attack {attack.name} returned pictures outside [0, 1]")
            parts.append(images.clamp(0, 1))
            count += len(batch)
            bar.update(len(batch))
            if count >= stop or time.monotonic() - saved > SAVE_EVERY:
                write_bytes(path, save({"images": torch.cat(parts).contiguous()}))
                saved = time.monotonic()
    return torch.cat(parts)


def remove_unused(folder: Path, used: set[Path]) -> None:
    """Delete reconstructions that the finished report is not made of: they are private pictures, too."""
    for path in [
        *folder.glob("*.safetensors"),
        *folder.glob(".*.tmp"),
    ]:  # .tmp: left by a run that was killed
        if path not in used:
            path.unlink()
