"""How features travel: in float32, in float16, or in int8 with a scale and an offset for each picture.

Each picture is coded by itself, so that what is received does not depend on who else was sent.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from crafter_pl.errors import UserError

Transport = Literal["float32", "float16", "int8"]
TRANSPORTS = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


def encode(features: Tensor, transport: str) -> dict[str, Tensor]:
    """What is sent of features ``(N, C, h, w)``.

    Args:
        features: finite.
        transport: one of `TRANSPORTS`.

    Returns:
        ``features`` in that type, and with int8 ``scale`` and ``offset``, float32 ``(N,)``: 255 equal steps
        from a picture's smallest value to its largest. What is received is off by at most half a step; with
        float16 by a share of 2^-11 (or, below 6e-5, by 3e-8).

    Raises:
        UserError: a value is too large for this type.
    """
    features = features.detach().to("cpu", torch.float32).contiguous()
    if transport == "int8":
        low, high = features.flatten(1).aminmax(dim=1)
        scale = (high - low) / 255
        offset = low + 128 * scale
        steps = (features - _wide(offset)) / _wide(torch.where(scale > 0, scale, 1))
        coded = {"features": steps.round().clamp(-128, 127).to(torch.int8), "scale": scale, "offset": offset}
    else:
        coded = {"features": features.to(TRANSPORTS[transport])}
    if not bool(torch.isfinite(decode(coded)).all()):
        raise UserError(
            f"a feature of size {float(features.abs().max()):g} cannot be sent as {transport}: choose float32"
        )
    return coded


def decode(coded: dict[str, Tensor]) -> Tensor:
    """What is received: float32 ``(N, C, h, w)``."""
    features = coded["features"].float()
    return features * _wide(coded["scale"]) + _wide(coded["offset"]) if "scale" in coded else features


def received(features: Tensor, transport: str) -> Tensor:
    """What is received of features ``(N, C, h, w)``: on the CPU, without gradients."""
    return decode(encode(features, transport))


def bytes_each(shape: Sequence[int], transport: str) -> int:
    """Bytes sent of one picture, whose features have the shape ``(C, h, w)``."""
    return math.prod(shape) * TRANSPORTS[transport].itemsize + (8 if transport == "int8" else 0)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
