"""How much memory this process has held."""

import resource
import sys


def peak_memory_mb() -> float:
    """The most memory held so far, resident, in MB (on Linux the callback `Summary` starts it anew)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, kilobytes elsewhere
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
