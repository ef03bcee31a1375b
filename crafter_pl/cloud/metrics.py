"""What the server counts, and its page for Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


@dataclass
class Metrics:
    """Counts of one server process.

    Attributes:
        requests: finished ones by (path, status).
        seconds: how many answered ones took up to each of `BOUNDS`, and longer.
        total_seconds: what they took together.
        in_flight: requests that are being read, wait or are answered.
        held: bytes of their bodies.
        restarts: of the process that classifies.
        ready: whether it takes requests.
    """

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total_seconds: float = 0.0
    in_flight: int = 0
    held: int = 0
    restarts: int = 0
    ready: bool = False

    def took(self, seconds: float) -> None:
        """Notes how long an answer has taken."""
        self.seconds[bisect_left(BOUNDS, seconds)] += 1
        self.total_seconds += seconds

    def page(self, batches: int, features: int) -> str:
        """All of it in Prometheus' text format; what the classifying process counts is handed in."""
        lines = ["# TYPE crafter_pl_requests_total counter"]
        for (path, status), count in sorted(self.requests.items()):
            lines.append(f'crafter_pl_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE crafter_pl_answer_seconds histogram")
        up_to = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.seconds, strict=True):
            up_to += count
            lines.append(f'crafter_pl_answer_seconds_bucket{{le="{bound}"}} {up_to}')
        lines += [
            f"crafter_pl_answer_seconds_sum {self.total_seconds:.6f}",
            f"crafter_pl_answer_seconds_count {up_to}",
        ]
        for name, kind, value in (
            ("features_total", "counter", features),
            ("batches_total", "counter", batches),
            ("classifier_restarts_total", "counter", self.restarts),
            ("requests_in_flight", "gauge", self.in_flight),
            ("body_bytes_held", "gauge", self.held),
            ("ready", "gauge", int(self.ready)),
        ):
            lines += [f"# TYPE crafter_pl_{name} {kind}", f"crafter_pl_{name} {value}"]
        return "\n".join(lines) + "\n"
