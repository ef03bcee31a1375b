"""A torchmetrics `Metric` around a function of everything that was seen."""

from typing import Any, ClassVar

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class Collected(Metric):
    """Keeps what it is handed, on every process, for a figure that is no mean over batches.

    A subclass names what it is handed in `parts`, and computes from `seen`.
    """

    parts: ClassVar[tuple[str, ...]]
    full_state_update = False

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 (torchmetrics')
        super().__init__(**options)
        for part in self.parts:
            self.add_state(part, default=[], dist_reduce_fx="cat")

    def update(self, *values: Tensor) -> None:
        """Takes a batch, one tensor ``(N, ...)`` for each of `parts`."""
        for part, value in zip(self.parts, values, strict=True):
            getattr(self, part).append(value.detach())

    @property
    def seen(self) -> list[Tensor]:
        """Everything so far, on the CPU, one tensor for each of `parts`."""
        return [dim_zero_cat(getattr(self, part)).cpu() for part in self.parts]
