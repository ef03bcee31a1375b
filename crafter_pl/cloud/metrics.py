"""What the server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """Counts of one server.

    Attributes:
        in_flight: requests that are being read, wait or are answered.
        held: bytes of their bodies.
        requests: finished ones by path and status.
        seconds: histogram of what it took to answer requests for /classify.
        features, batches: classified features, and passes of the net.
        ready: whether the classifier works.
    """

    def __init__(self) -> None:
        self.in_flight, self.held = 0, 0
        self._registry = registry = CollectorRegistry()
        name = "crafter_pl"
        self.requests = Counter("requests", "finished requests", ["path", "status"], name, registry=registry)
        self.seconds = Histogram(
            "answer_seconds",
            "from request to answer",
            (),
            name,
            registry=registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
        )
        self.features = Counter("features", "classified features", (), name, registry=registry)
        self.batches = Counter("batches", "passes of the net", (), name, registry=registry)
        self.ready = Gauge("ready", "whether the classifier works", (), name, registry=registry)
        for gauge, text, value in (
            ("requests_in_flight", "read, waiting or answered", lambda: self.in_flight),
            ("body_bytes_held", "bytes of their bodies", lambda: self.held),
        ):
            Gauge(gauge, text, (), name, registry=registry).set_function(value)

    def page(self) -> str:
        """All of it in Prometheus' text format, version 0.0.4."""
        return generate_latest(self._registry).decode()
