"""What defences share that train no net: `fit` writes the checkpoint that all the others load."""

from torch import Tensor

from crafter_pl.defenses.base import Defense
from crafter_pl.defenses.options import OptionsT
from crafter_pl.errors import UserError


class Untrained(Defense[OptionsT]):
    """A defence without anything to train: `fit` passes over the data once, for what a subclass measures."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def on_train_start(self) -> None:
        """One process is enough for what there is to do."""
        if self.trainer.world_size > 1:
            raise UserError(
                f"fit {type(self).__name__} with one process (--trainer.devices 1); predict runs on several"
            )

    def configure_optimizers(self) -> None:
        """None: no net is trained."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """By default nothing to measure."""

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """By default nothing to watch: what the defence leaves is for the audit to say."""
