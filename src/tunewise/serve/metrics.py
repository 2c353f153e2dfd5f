"""The server's counters, in Prometheus's text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from tunewise.serve.scheduler import Engine

_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics"}


class Metrics:
    """The counters of one server and of its engine."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        self._requests = self._counter("requests", "Requests by path and status.", ["path", "status"])
        self._seconds = Histogram(
            "tunewise_request_seconds",
            "Time from a request to the end of its answer.",
            ["path"],
            registry=self.registry,
            buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts.", ["model"])
        self._completion_tokens = self._counter("completion_tokens", "Tokens of answers.", ["model"])

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        label = path if path in _PATHS else "other"
        self._requests.labels(label, str(status)).inc()
        self._seconds.labels(label).observe(seconds)

    def tokens(self, model: str, prompt: int, completion: int) -> None:
        """Count the tokens of a prompt and of its answer."""
        self._prompt_tokens.labels(model).inc(prompt)
        self._completion_tokens.labels(model).inc(completion)

    def text(self) -> bytes:
        """Write all counters in Prometheus's text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, description: str, labels: list[str]) -> Counter:
        return Counter(f"tunewise_{name}", description, labels, registry=self.registry)


class _EngineCollector(Collector):
    """The engine's own counts, read whenever Prometheus scrapes them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> list[GaugeMetricFamily | CounterMetricFamily]:
        """Return each count as a metric family."""
        counts = self.engine.counts
        return [
            GaugeMetricFamily("tunewise_waiting", "Requests that wait.", counts.waiting),
            GaugeMetricFamily("tunewise_running", "Answers that are being written.", counts.running),
            CounterMetricFamily("tunewise_steps", "Decoding steps.", value=counts.steps),
            CounterMetricFamily("tunewise_step_rows", "Answers in all steps together.", value=counts.rows),
            CounterMetricFamily("tunewise_cancelled", "Answers whose client left.", value=counts.cancelled),
            CounterMetricFamily("tunewise_switches", "Changes of the adaptation.", value=counts.switches),
        ]
