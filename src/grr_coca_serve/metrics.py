"""Metrics that `/metrics` exports to Prometheus. `docs/serving.md` lists them."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one server, which its parts update while they work."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter("grr_coca_requests", "Finished requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "grr_coca_request_seconds",
            "Time from the headers of a request to the end of its response",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.model_seconds = Histogram(
            "grr_coca_model_seconds", "Time of one batch", ["work"], buckets=_SECONDS, registry=self.registry
        )
        self.batch_size = Histogram(
            "grr_coca_batch_size", "Images or texts of one batch", ["work"], buckets=_SIZES, registry=self.registry
        )
        self.bytes_held = Gauge("grr_coca_body_bytes", "Bytes of bodies in memory", registry=self.registry)

    def show(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a metric whose value is computed whenever the metrics are exported."""
        Gauge(name, description, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)
