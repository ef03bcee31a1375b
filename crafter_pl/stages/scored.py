"""Stages that are watched and tested by the same figures."""

from torch import Tensor
from torchmetrics import Metric

from crafter_pl.stages.base import Stage


class Scored(Stage):
    """A stage that is watched by figures on held-out pictures, and tested by the same on the audited ones."""

    def score(self, batch: dict[str, Tensor]) -> dict[str, Tensor | Metric]:
        """The figures of a batch by their names: means, or metrics that have been updated."""
        raise TypeError(f"{type(self).__name__} does not implement score")

    def _log_scores(self, part: str, batch: dict[str, Tensor]) -> None:
        for name, figure in self.score(batch).items():  # of losses a progress bar shows that in training
            self.log(f"{part}/{name}", figure, batch_size=len(batch["index"]), prog_bar=name != "loss")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The figures as ``val/...``."""
        self._log_scores("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """The figures as ``test/...``."""
        self._log_scores("test", batch)
