"""
Goal: what was counted is what Prometheus reads.
Method: a few requests are counted, and the text is parsed by Prometheus' own parser.
"""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from configs.settings import GatewaySettings
from gateway.metrics import GatewayCollector, RequestCounts, metrics_text
from gateway.shard_clients import ShardClients
from processor.core.slots import SlotMap

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples_of(counts: RequestCounts, shards: ShardClients) -> Samples:
    text = metrics_text(GatewayCollector([counts], shards)).decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_counts_what_shards_are_asked() -> None:
    """
    Each shard has its own numbers, the transfers that were told as pending among them.
    """
    shards = ShardClients(["postgresql:///"], secret=b"secret", settings=GatewaySettings())
    shards.slots_changed(SlotMap.even(2))

    samples = samples_of(RequestCounts("createTransfer"), shards)
    await shards.stop()

    for shard in ("0", "1"):
        for name in ("frames", "commands", "resent_commands", "pending_answers"):
            assert samples[f"miliano_shard_client_{name}_total", (shard,)] == 0
        assert samples["miliano_shard_client_connected", (shard,)] == 0


async def test_counts_requests() -> None:
    """
    Requests are counted by class of status, and their times in cumulative buckets.
    """
    counts = RequestCounts("createTransfer")
    for status, seconds in ((201, 0.001), (201, 0.0011), (503, 60.0)):
        counts.count(status, seconds)
    shards = ShardClients(["postgresql:///"], secret=b"secret", settings=GatewaySettings())

    samples = samples_of(counts, shards)

    assert samples["miliano_requests_total", ("createTransfer", "2xx")] == 2
    assert samples["miliano_requests_total", ("createTransfer", "5xx")] == 1
    bucket = "miliano_request_seconds_bucket"
    assert samples[bucket, ("createTransfer", "0.001")] == 1
    assert samples[bucket, ("createTransfer", "0.002")] == 2
    assert samples[bucket, ("createTransfer", "5.0")] == 2
    assert samples[bucket, ("createTransfer", "+Inf")] == 3
    assert samples["miliano_request_seconds_count", ("createTransfer",)] == 3
    assert abs(samples["miliano_request_seconds_sum", ("createTransfer",)] - 60.0021) < 1e-9
