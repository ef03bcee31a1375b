"""Progress of a loop."""

import sys
import time

from tqdm import tqdm


class Steps:
    """Progress of a loop and the time left: a bar on a terminal, else a line at most every so often.

    Args:
        name: what is being done.
        total: how many steps there are.
        unit: what one step is.
        interval: in seconds.
        quiet: another process shows it.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str = "",
        interval: float = 10.0,
        quiet: bool = False,
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.interval, self.quiet = interval, quiet
        self.done = 0
        self.before = 0
        self.started = self.printed = time.perf_counter()
        self.bar = (
            tqdm(total=total, desc=name, unit=f" {unit}") if sys.stderr.isatty() and not quiet else None
        )

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        if self.bar is None:
            print(text, flush=True)
        else:
            tqdm.write(text)

    def step(self, count: int = 1, done_before: bool = False) -> None:
        """Goes on by `count`; work that was done before says nothing about the time left."""
        self.done += count
        self.before += count if done_before else 0
        if self.bar is not None:
            self.bar.update(count)
            return
        now, measured = time.perf_counter(), self.done - self.before
        if measured <= 0 or self.quiet:
            return
        left = (now - self.started) / measured * (self.total - self.done)
        if now - self.printed >= self.interval or (measured == count and left >= self.interval):
            self.printed = now
            print(f"{self.name} {self.done}/{self.total} {self.unit}, {left:.0f} s left", flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self.bar is not None:
            self.bar.close()
