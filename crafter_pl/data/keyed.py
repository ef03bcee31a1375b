"""Random numbers that are a hash of what they are for: the same for any count, order and batch."""

import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def _mix64(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 on uint64, element by element."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keyed_uniform(seed: int, name: str, *keys: Tensor) -> Tensor:
    """Numbers in [0, 1) that depend on `(seed, name, keys)` alone.

    Args:
        seed: any integer.
        name: what the number is for.
        keys: int64 tensors that broadcast together; the result has their shape, float32.
    """
    with np.errstate(over="ignore"):
        state = _mix64(np.array([seed & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        state = _mix64(state ^ np.uint64(zlib.crc32(name.encode())))
        for key in keys:
            state = _mix64(state * np.uint64(0x9E3779B97F4A7C15) + key.numpy().astype(np.uint64))
    shape = torch.broadcast_shapes(*(key.shape for key in keys))
    return torch.from_numpy((state >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).expand(shape)


class Dice:
    """Keyed draws for a batch of people or pictures, each by the name of what it decides."""

    def __init__(self, seed: int, prefix: str, *keys: Tensor) -> None:
        self._source: Callable[[str], Tensor] = lambda name: keyed_uniform(seed, prefix + name, *keys)

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """A number in `[low, high)`."""
        return low + (high - low) * self._source(name)

    def normal(self, name: str, scale: float = 1.0, limit: float = 2.5) -> Tensor:
        """A normal number of standard deviation `scale`, cut at `limit` standard deviations."""
        return (torch.erfinv((self._source(name) * 2 - 1).clamp(-0.9999, 0.9999)) * 2**0.5).clamp(
            -limit, limit
        ) * scale

    def chance(self, name: str, probability: float | Tensor) -> Tensor:
        """True with this probability."""
        return self._source(name) < probability

    def either(self, name: str, yes: Tensor, high: tuple[float, float], low: tuple[float, float]) -> Tensor:
        """A value in the range `high` where `yes`, else in `low`: a gap between makes an attribute clear."""
        return torch.where(yes, self.uniform(name, *high), self.uniform(name, *low))

    def colour(self, name: str, low: float, high: float) -> Tensor:
        """A colour `(N, 3)`, each channel in `[low, high)`."""
        return torch.stack([self.uniform(f"{name}.{c}", low, high) for c in "rgb"], dim=-1)
