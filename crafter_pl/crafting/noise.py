"""Keyed normal noise: draws that depend on (seed, sample index, stream) alone.

A crafted feature must be the same whatever batch, order or process it was crafted in, so its random start and
prior samples cannot come from a sequential generator. Here every number is a counter-based hash of its key:
SplitMix64's finalizer over int64 words, then Box-Muller. The logarithm, sine and cosine are evaluated with
elementary operations in float64, because library versions treat the ends of a tensor differently from its
middle and would make the last bit depend on the batch size.
"""

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_WORD = 1 << 64


def _signed(word: int) -> int:
    """Return the int64 that has the bits of the unsigned 64-bit ``word``."""
    word %= _WORD
    return word - _WORD if word >= _WORD >> 1 else word


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (zero-filling) right shift of int64 words."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer: a bijection of words in which every input bit reaches every output bit."""
    x = (x ^ _shift_right(x, 30)) * _signed(_MIX_1)
    x = (x ^ _shift_right(x, 27)) * _signed(_MIX_2)
    return x ^ _shift_right(x, 31)


def keyed_bits(seed: int, index: Tensor, count: int, stream: int = 0) -> Tensor:
    """Return ``count`` pseudo-random 64-bit words a sample, a function of (seed, sample index, stream) alone.

    Args:
        seed: any integer; taken modulo 2**64.
        index: int64 ``(N,)``, the samples' stable indices.
        count: words a sample.
        stream: separates the uses of one (seed, index), e.g. inversion starts from prior samples.

    Returns:
        int64 ``(N, count)`` on the device of ``index``; column j does not depend on ``count``.

    Raises:
        ValueError: if ``index`` is not one-dimensional int64.
    """
    if index.ndim != 1 or index.dtype != torch.int64:
        got = f"{index.dtype} {tuple(index.shape)}"
        raise ValueError(f"index must be int64 (N,), got {got}: pass sample['index'].")
    key = torch.tensor(_signed(seed), dtype=torch.int64, device=index.device)
    key = _mix(_mix(key + _signed(_GOLDEN)) + _signed(stream * _GOLDEN + _MIX_1))
    rows = _mix(_mix(index * _signed(_GOLDEN) + key) ^ key)
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=index.device) * _signed(_GOLDEN)
    return _mix(rows[:, None] + counter)


def uniform(words: Tensor) -> Tensor:
    """Random int64 words -> float64 in [0, 1)."""
    return _shift_right(words, 11).to(torch.float64) * 2.0**-53


def natural_log(u: Tensor) -> Tensor:
    """Natural logarithm of positive float64 by elementary operations (within 2 units in the last place)."""
    mantissa, exponent = torch.frexp(u)
    low = mantissa < math.sqrt(0.5)
    mantissa = torch.where(low, mantissa * 2, mantissa)
    exponent = (exponent - low.to(exponent.dtype)).to(u.dtype)
    s = (mantissa - 1) / (mantissa + 1)
    square = s * s
    series = torch.full_like(s, 1 / 23)
    for odd in range(21, 0, -2):
        series = series * square + 1 / odd
    return exponent * math.log(2) + s * series * 2


def sin_cos(angle: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine on [-pi/4, pi/4] by Taylor's series in elementary operations."""
    square = -angle * angle
    sine = torch.full_like(angle, 1 / math.factorial(17))
    cosine = torch.full_like(angle, 1 / math.factorial(18))
    for k in range(7, -1, -1):
        sine = sine * square + 1 / math.factorial(2 * k + 1)
    for k in range(8, -1, -1):
        cosine = cosine * square + 1 / math.factorial(2 * k)
    return angle * sine, cosine


def keyed_normal(
    seed: int,
    index: Tensor,
    dim: int,
    stream: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard normal vectors that are a function of (seed, sample index, stream) alone.

    Args:
        seed: any integer.
        index: int64 ``(N,)``, the samples' stable indices.
        dim: numbers a sample.
        stream: separates the uses of one (seed, index).
        dtype: of the result; the draws are made in float64 and cast.

    Returns:
        ``(N, dim)`` on the device of ``index``; row i is the same bytes whatever the other rows, their order
        or number, and column j whatever ``dim``.

    Raises:
        ValueError: if ``index`` is not one-dimensional int64.
    """
    pairs = (dim + 1) // 2
    words = keyed_bits(seed, index, 2 * pairs, stream).view(len(index), pairs, 2)
    uniform = (_shift_right(words[..., 0], 11).to(torch.float64) + 1) * 2.0**-53
    radius = torch.sqrt(natural_log(uniform) * -2)
    quadrant = _shift_right(words[..., 1], 62)
    turn = (_shift_right(words[..., 1], 9) & ((1 << 53) - 1)).to(torch.float64) * 2.0**-53
    sine, cosine = sin_cos((turn - 0.5) * (math.pi / 2))
    sign = 1.0 - 2.0 * (quadrant >> 1).to(torch.float64)
    swap = (quadrant & 1).bool()
    first = sign * torch.where(swap, -sine, cosine)
    second = sign * torch.where(swap, cosine, sine)
    normal = torch.stack((radius * first, radius * second), dim=2).reshape(len(index), 2 * pairs)
    return normal[:, :dim].to(dtype)
