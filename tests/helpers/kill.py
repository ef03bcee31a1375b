"""A callback for subprocesses that dies as `kill -9` makes it: no handler runs, nothing is flushed."""

import os
import signal

from lightning.pytorch import Callback


class Kill(Callback):
    """Ends the process in the second epoch of a fit, or before the third batch of a predict."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 2:
            os.kill(os.getpid(), signal.SIGKILL)
