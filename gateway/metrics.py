"""
What the gateway counts, as Prometheus reads it.

Counting is a few additions a request; the text is made when it is asked for.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gateway.shard_clients import ShardClients

LATENCY_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class RequestCounts:
    """
    The requests of one endpoint: by class of status, and by the time they took.
    """

    __slots__ = ("buckets", "by_status_class", "endpoint", "seconds_sum")

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.by_status_class = [0] * 6
        self.buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.seconds_sum = 0.0

    def count(self, status: int, seconds: float) -> None:
        self.by_status_class[status // 100] += 1
        self.buckets[bisect_left(LATENCY_BOUNDS_S, seconds)] += 1
        self.seconds_sum += seconds


class GatewayCollector(Collector):
    """
    Tells Prometheus the counts of all endpoints and the statistics of the shard clients.
    """

    def __init__(self, counts: Iterable[RequestCounts], shards: ShardClients) -> None:
        self._counts = list(counts)
        self._shards = shards

    def collect(self) -> Iterator[Metric]:
        yield self._requests()
        yield self._latencies()
        yield from self._shard_metrics()

    def _requests(self) -> Metric:
        requests = CounterMetricFamily(
            "miliano_requests",
            "Requests by endpoint and class of status.",
            labels=("endpoint", "status"),
        )
        for counts in self._counts:
            for status_class, count in enumerate(counts.by_status_class):
                if count:
                    requests.add_metric((counts.endpoint, f"{status_class}xx"), count)
        return requests

    def _latencies(self) -> Metric:
        latencies = HistogramMetricFamily(
            "miliano_request_seconds",
            "Time from the request's head to its reply, by endpoint.",
            labels=("endpoint",),
        )
        for counts in self._counts:
            reached = 0
            buckets = []
            bounds = [*(str(bound) for bound in LATENCY_BOUNDS_S), "+Inf"]
            for bound, count in zip(bounds, counts.buckets, strict=True):
                reached += count
                buckets.append((bound, reached))
            if reached:
                latencies.add_metric((counts.endpoint,), buckets, counts.seconds_sum)
        return latencies

    def _shard_metrics(self) -> Iterator[Metric]:
        statistics = self._shards.statistics()
        gauges = ("connected", "epoch", "queued_commands", "frames_in_flight")
        counters = {
            "frame": "Frames sent to a shard.",
            "command": "Commands sent to a shard.",
            "resent_command": "Commands sent to a shard again, because an answer was lost.",
            "pending_answer": "Transfers told as pending: they were not settled in time.",
        }
        for name in gauges:
            gauge = GaugeMetricFamily(
                f"miliano_shard_client_{name}", f"{name} of a shard client.", labels=("shard",)
            )
            for shard in statistics:
                gauge.add_metric((str(shard.shard_id),), getattr(shard, name))
            yield gauge
        for name, meaning in counters.items():
            counter = CounterMetricFamily(
                f"miliano_shard_client_{name}s", meaning, labels=("shard",)
            )
            for shard in statistics:
                counter.add_metric((str(shard.shard_id),), getattr(shard, f"{name}_count"))
            yield counter


def metrics_text(collector: Collector) -> bytes:
    """
    Write the metrics in the text format of Prometheus.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)
