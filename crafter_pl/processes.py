"""A process that must not outlive the one that started it."""

from __future__ import annotations

import os
import sys
import threading
import time


def end_with(parent: int, message: str = "") -> None:
    """Ends this process, with exit code 1, once the process ``parent`` that started it is gone.

    Args:
        parent: its process number.
        message: for standard error.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        if message:
            print(message, file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
