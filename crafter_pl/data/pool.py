"""Features that were made before any picture was there: a few bytes say which, instead of a feature."""

import torch
from torch import Tensor

from crafter_pl.errors import UserError

MEDIA_TYPE = "application/x-crafter-places"


class Pool:
    """A certified defence's features by place, ``message * R + row``.

    Sent compactly, a picture is its place, in as few whole bytes as all places need, the highest first:
    all pictures take the same number. Whoever has the pool looks the feature up.

    Args:
        features: ``(M, R, C, h, w)``.

    Attributes:
        width: bytes a picture.
    """

    def __init__(self, features: Tensor) -> None:
        self.rows = features.shape[1]
        self.features = features.detach().flatten(0, 1).float().cpu().contiguous()
        self.width = max(1, ((len(self.features) - 1).bit_length() + 7) // 8)
        self._places = {_bytes(row): place for place, row in enumerate(self.features)}

    def places(self, features: Tensor) -> Tensor:
        """Of features ``(N, C, h, w)`` the places, int64 ``(N,)``.

        Raises:
            UserError: a feature is not in the pool.
        """
        rows = features.detach().float().cpu().contiguous()
        found = [self._places.get(_bytes(row), -1) for row in rows]
        if strange := found.count(-1):
            raise UserError(
                f"{strange} of {len(found)} features are not in the pool of this certified defence: the "
                "certificate does not hold for them; protect the pictures again, or give the checkpoint that "
                "did (--defenses)"
            )
        return torch.tensor(found, dtype=torch.int64)

    def encode(self, features: Tensor) -> bytes:
        """Features ``(N, C, h, w)`` of the pool as N times `width` bytes."""
        return b"".join(place.to_bytes(self.width, "big") for place in self.places(features).tolist())

    def decode(self, body: bytes) -> Tensor:
        """Features float32 ``(N, C, h, w)``.

        Raises:
            UserError: the body is empty, no whole number of places, or names one that there is not.
        """
        if not body or len(body) % self.width:
            raise UserError(f"{len(body)} bytes are no places of {self.width} bytes each")
        starts = range(0, len(body), self.width)
        places = [int.from_bytes(body[start : start + self.width], "big") for start in starts]
        if max(places) >= len(self.features):
            raise UserError(f"there is no place {max(places)}: the pool has {len(self.features)} features")
        return self.features[places]


def _bytes(row: Tensor) -> bytes:
    return row.numpy().tobytes()
