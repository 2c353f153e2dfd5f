"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tunewise.serve.scheduler import Engine

_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"}


class Metrics:
    """The counters of one server."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Engine(engine))
        self._requests = self._counter("requests", "Requests by path and status.", ["path", "status"])
        self._seconds = Histogram(
            "tunewise_request_seconds",
            "Time from a request to the end of its answer.",
            ["path"],
            registry=self.registry,
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
        )
        self._read = self._counter("prompt_tokens", "Tokens of prompts.", ["model"])
        self._written = self._counter("completion_tokens", "Tokens of answers.", ["model"])

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        known = path if path in _PATHS else "other"
        self._requests.labels(known, str(status)).inc()
        self._seconds.labels(known).observe(seconds)

    def tokens(self, model: str, prompt: int, completion: int) -> None:
        """Count the tokens of an answer."""
        self._read.labels(model).inc(prompt)
        self._written.labels(model).inc(completion)

    def text(self) -> bytes:
        """All of them in Prometheus's form."""
        return generate_latest(self.registry)

    def _counter(self, name: str, what: str, labels: list[str]) -> Counter:
        return Counter(f"tunewise_{name}", what, labels, registry=self.registry)


class _Engine(Collector):
    """The engine's own numbers, read when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        """Each number as a family."""
        counts = self.engine.counts
        return [
            GaugeMetricFamily("tunewise_waiting", "Requests that wait.", counts.waiting),
            GaugeMetricFamily("tunewise_running", "Answers that are being written.", counts.running),
            CounterMetricFamily("tunewise_steps", "Decoding steps.", value=counts.steps),
            CounterMetricFamily("tunewise_step_rows", "Answers in all steps together.", value=counts.rows),
            CounterMetricFamily("tunewise_cancelled", "Answers whose client left.", value=counts.cancelled),
            CounterMetricFamily("tunewise_switches", "Changes of the adaptation.", value=counts.switches),
        ]
