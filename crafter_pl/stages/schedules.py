"""Learning rates planned over a whole fit. A run that goes on for more epochs gets its plan laid anew."""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


class _LaidAnew(LRScheduler):
    """Takes from a checkpoint how far the run is, and not how long it was to be."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on at the checkpoint's step, at the learning rate that this plan has there."""
        done = int(state_dict["last_epoch"])
        self.last_epoch = min(done, int(getattr(self, "total_steps", done))) - 1
        self._step_count = int(state_dict["_step_count"])
        self.step()
        self._step_count -= 1


class OneCycle(_LaidAnew, OneCycleLR):
    """torch's one-cycle schedule, see `Stage.configure_optimizers`."""


class Cosine(_LaidAnew, LambdaLR):
    """The optimizer's learning rate, falling to nothing over ``epochs`` along half a cosine."""

    def __init__(self, optimizer: Optimizer, epochs: int) -> None:
        super().__init__(optimizer, lambda epoch: (1 + math.cos(math.pi * min(epoch / epochs, 1))) / 2)
