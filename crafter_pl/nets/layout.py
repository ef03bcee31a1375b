"""Features that are no square maps as such: tokens, vectors, channels at the end. And back again, exactly."""

import math

import torch
from torch import Tensor, nn

from crafter_pl.errors import UserError


class Layout(nn.Module):
    """Features as a net has them -> ``(N, C, side, side)``, by moving numbers alone; `Undo` moves them back.

    - Maps ``(N, C, s, s)`` stay as they are.
    - Maps with the channels at the end, ``(N, s, s, C)``, are turned.
    - Vectors ``(N, D)`` become ``(N, D, 1, 1)``.
    - Tokens ``(N, T, D)`` of a transformer become a square of k x k patches, k the largest with k² <= T.
      Where tokens are left, the first ones, for class and registers, the map is ``(N, D, k + 1, k + 1)``:
      they stand in its last row, then in its last column, and what is free there is 0.

    Args:
        shape: of a feature, without the batch.

    Raises:
        UserError: it is none of these.

    Attributes:
        kind: ``map``, ``last``, ``vector`` or ``tokens``.
        shape: as it is given out, ``(C, side, side)``.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.given = shape
        if len(shape) == 3 and shape[1] == shape[2]:
            self.kind, self.shape = "map", (shape[0], shape[1], shape[2])
        elif len(shape) == 3 and shape[0] == shape[1]:
            self.kind, self.shape = "last", (shape[2], shape[0], shape[1])
        elif len(shape) == 1:
            self.kind, self.shape = "vector", (shape[0], 1, 1)
        elif len(shape) == 2:
            k = math.isqrt(shape[0])
            first = shape[0] - k * k
            side = k + (first > 0)
            self.kind, self.shape = "tokens", (shape[1], side, side)
            square = [side * row + column for row in range(k) for column in range(k)]
            beside = [*range(side * k, side * side), *(side * row + k for row in reversed(range(k)))]
            cells = torch.tensor(beside[:first] + square)
            tokens = torch.full((side * side,), shape[0])  # where there is none: the zeros after the last
            tokens[cells] = torch.arange(shape[0])
            self.cells, self.tokens = nn.Buffer(cells, persistent=False), nn.Buffer(tokens, persistent=False)
        else:
            raise UserError(
                f"features of shape {list(shape)}: defences and attacks need square maps (channels, side, "
                "side) or (side, side, channels), tokens (count, size) or vectors"
            )

    def forward(self, features: Tensor) -> Tensor:
        """``(N, *given)`` -> ``(N, C, side, side)``."""
        if self.kind == "last":
            return features.permute(0, 3, 1, 2)
        if self.kind == "vector":
            return features[:, :, None, None]
        if self.kind == "tokens":
            padded = nn.functional.pad(features, (0, 0, 0, 1))
            return padded[:, self.tokens].transpose(1, 2).unflatten(2, self.shape[1:])
        return features


class Undo(nn.Module):
    """``(N, C, side, side)`` -> features as the net has them: the inverse of a `Layout`."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.kind = layout.kind
        if self.kind == "tokens":
            self.cells = nn.Buffer(layout.cells.clone(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Moves the numbers back."""
        if self.kind == "last":
            return features.permute(0, 2, 3, 1)
        if self.kind == "vector":
            return features.flatten(1)
        if self.kind == "tokens":
            return features.flatten(2).transpose(1, 2)[:, self.cells]
        return features


class Resize(nn.Module):
    """Pictures ``(N, 3, S, S)`` of any size -> ``(N, 3, side, side)``, bilinear, differentiable."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.size = (side, side)

    def forward(self, images: Tensor) -> Tensor:
        """Resizes, without smoothing what is made smaller."""
        return nn.functional.interpolate(images, self.size, mode="bilinear", align_corners=False)
