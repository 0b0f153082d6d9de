"""Metrics: what a scrape shows, and what it no longer shows."""

import math
from dataclasses import replace

import pytest

from tailrace.broker.exposition import Exposition
from tailrace.broker.metric_table import SECONDS
from tailrace.broker.metrics import (
    GroupGauges,
    Histogram,
    LagGauges,
    Metrics,
    PartitionGauges,
)


def make(topics_max: int = 100) -> Metrics:
    return Metrics(version="0.1.0", topics_max=topics_max, clock=lambda: 5.0)


def scrape(metrics: Metrics, *, detailed: bool = False) -> dict[str, float]:
    lines = Exposition(metrics).text(detailed=detailed).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("tailrace_"): float(value) for name, value in pairs}


def partition(topic: str, number: int = 0, **more: object) -> PartitionGauges:
    values: dict[str, object] = {
        **{"log_end": 7, "high_watermark": 6, "size_bytes": 100, "segments": 2},
        **{"leader": True, "status": "ok", "durability": "fsync"},
        **more,
    }
    return PartitionGauges(topic=topic, partition=number, **values)  # type: ignore[arg-type]


def test_counters_of_a_topic_are_shown_under_its_name() -> None:
    metrics = make()
    orders = metrics.topic("orders")
    orders.records_in.inc(3)
    orders.bytes_in.inc(500)
    orders.weak_acks(1).inc()
    found = scrape(metrics)
    assert found['topic_records_in_total{topic="orders"}'] == 3
    assert found['topic_bytes_in_total{topic="orders"}'] == 500
    assert found['weak_acks_total{acks="1",topic="orders"}'] == 1
    assert metrics.topic("orders") is orders


def test_series_of_a_deleted_topic_disappear() -> None:
    metrics = make()
    for name in ("orders", "kept"):
        metrics.topic(name).records_in.inc()
        metrics.topic(name).weak_acks(0).inc()
    metrics.forget_topic("orders")
    metrics.forget_topic("never there")
    found = scrape(metrics, detailed=True)
    assert not [name for name in found if "orders" in name]
    assert found['topic_records_in_total{topic="kept"}'] == 1


def test_topics_above_the_limit_are_summed_and_the_metric_says_so() -> None:
    metrics = make(topics_max=2)
    for name in ("a", "b", "c", "d"):
        metrics.topic(name).records_in.inc()
    metrics.watch_partitions(lambda: [partition("a"), partition("c"), partition("d")])
    found = scrape(metrics, detailed=True)
    assert found['topic_records_in_total{topic="__other__"}'] == 2
    assert found['topic_size_bytes{topic="__other__"}'] == 200
    assert found["metrics_truncated"] == 1
    assert 'partition_log_end{partition="0",topic="a"}' in found
    assert 'partition_log_end{partition="0",topic="c"}' not in found


def test_below_the_limit_nothing_is_summed() -> None:
    metrics = make(topics_max=2)
    metrics.topic("a")
    metrics.forget_topic("a")
    metrics.topic("b")
    metrics.topic("c")
    found = scrape(metrics)
    assert found["metrics_truncated"] == 0
    assert not [name for name in found if "__other__" in name]


def test_histogram_counts_at_and_below_each_bound() -> None:
    metrics = make()
    for value in (0.0005, 0.0006, 0.3, 99.0):
        metrics.fsync_duration.observe(value)
    found = scrape(metrics)
    assert found['fsync_duration_seconds_bucket{le="0.0005"}'] == 1
    assert found['fsync_duration_seconds_bucket{le="0.001"}'] == 2
    assert found['fsync_duration_seconds_bucket{le="10.0"}'] == 3
    assert found['fsync_duration_seconds_bucket{le="+Inf"}'] == 4
    assert found["fsync_duration_seconds_count"] == 4
    assert found["fsync_duration_seconds_sum"] == pytest.approx(99.3011)


def test_bounds_are_those_of_the_contract() -> None:
    bounds = "0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10"
    assert list(SECONDS) == [float(bound) for bound in bounds.split()]
    assert make().fsync_batches.bounds == tuple(2**n for n in range(11))
    assert Histogram((1.0,)).count == 0


def test_partitions_are_counted_by_state() -> None:
    metrics = make()
    gauges = [
        partition("a"),
        partition("a", 1, status="offline", leader=False),
        partition("b", durability="os"),
    ]
    metrics.watch_partitions(lambda: gauges)
    for name in ("a", "b"):
        metrics.topic(name)
    found = scrape(metrics)
    assert (found["partitions"], found["partitions_leader"]) == (3, 2)
    assert (found["partitions_offline"], found["partitions_below_min_isr"]) == (1, 0)
    assert found['topics_weak_durability{durability="os"}'] == 1
    assert found["segments"] == 6


def test_series_per_partition_are_detailed_only() -> None:
    metrics = make()
    metrics.topic("a")
    metrics.watch_partitions(lambda: [partition("a")])
    assert not [name for name in scrape(metrics) if name.startswith("partition_")]
    found = scrape(metrics, detailed=True)
    assert found['partition_log_end{partition="0",topic="a"}'] == 7
    assert found['partition_high_watermark{partition="0",topic="a"}'] == 6
    assert found['partition_size_bytes{partition="0",topic="a"}'] == 100


def test_groups_are_summed_by_topic_and_shown_by_partition_in_detail() -> None:
    metrics = make()
    metrics.topic("a")
    one = LagGauges("a", 0, 10, 1.5, math.inf)
    metrics.groups = lambda: [
        GroupGauges("billing", 2, 3, (one, replace(one, partition=1, lag_s=None, margin_s=60.0))),
        GroupGauges("idle", 0, 0, ()),
    ]
    found = {k: v for k, v in scrape(metrics).items() if "{group=" in k}
    assert found == {
        'group_lag_records{group="billing",topic="a"}': 20,
        'group_lag_seconds{group="billing",topic="a"}': 1.5,
        'group_margin_seconds{group="billing",topic="a"}': 60,
        'group_members{group="billing"}': 3,
        'group_members{group="idle"}': 0,
        'group_verdict{group="billing"}': 2,
        'group_verdict{group="idle"}': 0,
    }
    found = scrape(metrics, detailed=True)
    assert found['group_partition_lag_records{group="billing",partition="1",topic="a"}'] == 10
    metrics.groups = lambda: []
    assert not [name for name in scrape(metrics, detailed=True) if "billing" in name]


def test_lag_of_topics_beyond_the_limit_is_summed() -> None:
    metrics = make(topics_max=1)
    for topic in ("a", "b", "c"):
        metrics.topic(topic)
    lags = tuple(LagGauges(topic, 0, 7, 1.0, math.inf) for topic in ("a", "b", "c"))
    metrics.groups = lambda: [GroupGauges("billing", 0, 1, lags)]
    found = scrape(metrics, detailed=True)
    assert found['group_lag_records{group="billing",topic="__other__"}'] == 14
    assert found['group_lag_records{group="billing",topic="a"}'] == 7
    assert found['group_margin_seconds{group="billing",topic="a"}'] == math.inf
    assert len([name for name in found if "group_partition_lag_records{" in name]) == 1


def test_state_is_one_of_four() -> None:
    metrics = make()
    metrics.read_state(lambda: "read_only")
    states = {name: value for name, value in scrape(metrics).items() if "broker_state" in name}
    assert states == {
        'broker_state{state="starting"}': 0,
        'broker_state{state="running"}': 0,
        'broker_state{state="read_only"}': 1,
        'broker_state{state="draining"}': 0,
    }


def test_two_brokers_of_one_process_have_separate_metrics() -> None:
    first, second = make(), make()
    first.topic("a").records_in.inc()
    assert 'topic_records_in_total{topic="a"}' not in scrape(second)
    assert scrape(first) != scrape(second)


def test_label_values_are_escaped() -> None:
    metrics = make()
    metrics.connections_refused.of('a"b\nc\\').inc()
    assert rb'reason="a\"b\nc\\"' in Exposition(metrics).text(detailed=False)
