"""What Prometheus reads at /metrics: requests, tokens, times, queue, slots, caches.

In: what happens to requests; the models' loops, looked at when somebody reads. Out: the text that Prometheus takes.

    metrics = Metrics(models)
    metrics.requests.labels(endpoint="chat", model="my-run", status="200").inc()
    metrics.text()
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from visgraft.serving.served import ServedModel

_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server.

    Attributes:
        requests: by endpoint, model and status; the model is empty where none was named that exists.
        prompt_tokens: by model and kind: text, image, and `cached`, those of both that were not read again.
        answer_tokens: by model.
        seconds: from a request's arrival to its end, by endpoint and model.
        first_token_seconds: from a request's arrival to its first token, by model.
        refused: by reason.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        """Begin at zero."""
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("visgraft_requests", "Requests", ("endpoint", "model", "status"), registry=registry)
        self.prompt_tokens = Counter(
            "visgraft_prompt_tokens", "Tokens of prompts", ("model", "kind"), registry=registry
        )
        self.answer_tokens = Counter("visgraft_answer_tokens", "Tokens of answers", ("model",), registry=registry)
        self.seconds = Histogram(
            "visgraft_request_seconds", "Time of a request", ("endpoint", "model"), registry=registry, buckets=_SECONDS
        )
        self.first_token_seconds = Histogram(
            "visgraft_first_token_seconds", "Time to the first token", ("model",), registry=registry, buckets=_SECONDS
        )
        self.refused = Counter("visgraft_refused", "Requests sent away", ("reason",), registry=registry)
        registry.register(_Loops(models))

    def text(self) -> bytes:
        """Write everything down."""
        return generate_latest(self._registry)


class _Loops(Collector):
    """What the models' loops and caches say at this moment."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        gauges = {
            "slots": ("Requests that may decode at once", lambda each: each.engine.num_slots),
            "slots_used": ("Requests that decode", lambda each: each.engine.num_active),
            "queue": ("Requests that wait for a slot", lambda each: each.engine.num_waiting),
            "slots_bytes": ("Memory of the slots", lambda each: each.engine.size_bytes),
            "prefix_cache_bytes": ("Kept of images", lambda each: each.engine.prefix_cache.size_bytes),
            "prefix_cache_images": ("Groups of images that are kept", lambda each: len(each.engine.prefix_cache)),
            "conversation_cache_bytes": ("Kept of conversations", lambda each: each.conversations.size_bytes),
        }
        for name, (text, read) in gauges.items():
            gauge = GaugeMetricFamily(f"visgraft_{name}", text, labels=["model"])
            for model, served in self._models.items():
                gauge.add_metric([model], read(served))
            yield gauge
        counters = {
            "prefix_cache_hits": ("Groups of images that were known", lambda each: each.engine.prefix_cache.num_hits),
            "prefix_cache_misses": ("... that were read", lambda each: each.engine.prefix_cache.num_misses),
            "conversation_cache_hits": ("Chats of which turns were known", lambda each: each.conversations.num_hits),
        }
        for name, (text, read) in counters.items():
            counter = CounterMetricFamily(f"visgraft_{name}", text, labels=["model"])
            for model, served in self._models.items():
                counter.add_metric([model], read(served))
            yield counter
