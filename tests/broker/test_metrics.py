"""Metrics: what a scrape shows, and what it no longer shows."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import trio
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tailrace.broker.exposition import LINES, Exposition, pieces
from tailrace.broker.metric_table import SECONDS
from tailrace.broker.metrics import (
    GroupGauges,
    Histogram,
    LagGauges,
    Metrics,
    PartitionGauges,
)
from tests.broker.scraping import text_of


def make(topics_max: int = 100) -> Metrics:
    return Metrics(version="0.1.0", topics_max=topics_max, clock=lambda: 5.0)


def scrape(metrics: Metrics, *, detailed: bool = False) -> dict[str, float]:
    lines = text_of(metrics, detailed=detailed).decode().splitlines()
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
    metrics.partitions = lambda: [partition("a"), partition("c"), partition("d")]
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
    metrics.partitions = lambda: gauges
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
    metrics.partitions = lambda: [partition("a")]
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
    assert rb'reason="a\"b\nc\\"' in text_of(metrics, detailed=False)


def test_groups_above_the_limit_are_summed_too() -> None:
    metrics = make(topics_max=2)
    metrics.topic("a")
    for name in ("g1", "g2", "g3", "g4"):
        metrics.group(name).commits.inc(5)
        metrics.group(name).rebalances("joined").inc()
    lag = LagGauges("a", 0, 7, 1.0, 90.0)
    metrics.groups = lambda: [
        GroupGauges("g1", 0, 1, (lag,)),
        GroupGauges("g3", 2, 2, (lag,)),
        GroupGauges("g4", 1, 3, (replace(lag, lag_s=8.0, margin_s=60.0),)),
    ]
    found = scrape(metrics, detailed=True)
    assert found["metrics_truncated"] == 1
    other = 'group="__other__"'
    assert found[f"group_commits_total{{{other}}}"] == 10
    assert found[f'group_rebalances_total{{{other},reason="joined"}}'] == 2
    assert found[f"group_members{{{other}}}"] == 5
    assert found[f"group_verdict{{{other}}}"] == 2
    assert found[f'group_lag_records{{{other},topic="a"}}'] == 14
    assert found[f'group_lag_seconds{{{other},topic="a"}}'] == 8.0
    assert found[f'group_margin_seconds{{{other},topic="a"}}'] == 60.0
    assert found['group_lag_records{group="g1",topic="a"}'] == 7
    assert len([name for name in found if "group_partition_lag_records{" in name]) == 1


def test_others_disappear_with_the_last_of_them() -> None:
    metrics = make(topics_max=1)
    for name in ("a", "b", "c"):
        metrics.topic(name).records_in.inc()
        metrics.group(name).commits.inc()
    for forget in (metrics.forget_topic, metrics.forget_group):
        forget("b")
    assert "__other__" in str(scrape(metrics))
    for forget in (metrics.forget_topic, metrics.forget_group):
        forget("c")
    found = scrape(metrics)
    assert "__other__" not in str(found)
    assert found["metrics_truncated"] == 0


def test_pairs_of_group_and_topic_are_bounded() -> None:
    metrics = make(topics_max=20)
    topics = [f"t{number}" for number in range(20)]
    for topic in topics:
        metrics.topic(topic)
    lags = tuple(LagGauges(topic, 0, 1, 1.0, math.inf) for topic in topics)
    groups = [GroupGauges(f"g{number}", 0, 1, lags) for number in range(20)]
    metrics.groups = lambda: groups
    found = scrape(metrics)
    pairs = [name for name in found if name.startswith("group_lag_records{")]
    assert len(pairs) == 200 + 10  # of ten groups, and one sum for each of the others
    assert found['group_lag_records{group="g19",topic="__other__"}'] == 20
    assert scrape(metrics) == found, "who has a series keeps it"
    del groups[0]
    found = scrape(metrics)
    assert not [name for name in found if '"g0"' in name]
    assert scrape(metrics)['group_lag_records{group="g10",topic="t0"}'] == 1, "it moves up"


def test_what_is_counted_after_the_end_is_seen_by_nobody() -> None:
    metrics = make()
    topic, group = metrics.topic("orders"), metrics.group("g")
    metrics.forget_topic("orders")
    metrics.forget_group("g")
    topic.weak_acks(1).inc()
    topic.compaction_runs("ok").inc()
    topic.records_in.inc()
    group.rebalances("joined").inc()
    assert not [
        name for name in scrape(metrics, detailed=True) if "orders" in name or '"g"' in name
    ]


def test_group_that_never_came_to_be_keeps_no_place() -> None:
    metrics = make()
    there = ["g", "void"]
    metrics.group_exists = lambda name: name in there
    metrics.groups = lambda: [GroupGauges(name, 0, 0, ()) for name in ("g", "void")]
    assert 'group_verdict{group="void"}' in scrape(metrics)
    there.remove("void")
    assert not [name for name in scrape(metrics) if "void" in name]
    assert list(metrics.groups_named.own) == ["g"]


def test_topic_that_goes_during_a_scrape_is_left_out_of_what_follows() -> None:
    metrics = make()
    for name in ("orders", "kept"):
        metrics.topic(name)

    def partitions() -> Iterator[PartitionGauges]:
        yield partition("orders")
        metrics.forget_topic("orders")
        yield partition("orders", 1)
        yield partition("kept")

    metrics.partitions = partitions
    found = scrape(metrics)
    assert not [name for name in found if "orders" in name or "__other__" in name]
    assert found['topic_size_bytes{topic="kept"}'] == 100


def test_text_is_what_the_library_would_write() -> None:
    metrics = make()
    metrics.topic("a").bytes_in.inc(2.5)
    metrics.requests.of("fetch", 'o"k\\\n').inc(1 << 60)
    metrics.request_duration.histogram("fetch").observe(0.3)
    lag = LagGauges("a", 0, 7, None, math.inf)
    metrics.groups = lambda: [GroupGauges("g", 0, 0, (lag,))]
    text = text_of(metrics, detailed=True).decode()

    class Parsed:
        def collect(self) -> Iterable[Metric]:
            return text_string_to_metric_families(text)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Parsed())
    theirs = generate_latest(registry).decode().splitlines()
    ours = text.splitlines()
    assert [line for line in ours if line.startswith("#")] == [
        line for line in theirs if line.startswith("#")
    ]
    assert sorted(map(without_exponent, ours)) == sorted(map(without_exponent, theirs))


def without_exponent(line: str) -> str:
    """A large number may be written in two ways."""
    head, _, number = line.rpartition(" ")
    return line if line.startswith("#") else f"{head} {float(number)}"


# ── a scrape by HTTP ─────────────────────────────────────────────────────────────────────────


class Counted:
    """Metrics that note how often they are read, and a clock by hand."""

    def __init__(self) -> None:
        self.metrics = make()
        self.reads = 0
        self.now = 100.0
        self.takes_s = 0.0
        self.cancelled: trio.CancelScope | None = None  # by what is done first
        self.exposition = Exposition(self.metrics, lambda: self.now)
        self.metrics.prepare = self.prepare

    async def prepare(self) -> None:
        self.reads += 1
        self.now += self.takes_s
        if self.cancelled is not None:
            self.cancelled.cancel()
        await trio.lowlevel.checkpoint()

    async def scrape(self, *, detailed: bool = False) -> bytes:
        return await self.exposition.scrape(detailed=detailed)


def test_a_text_is_used_again_for_a_moment() -> None:
    async def main() -> None:
        counted = Counted()
        first = await counted.scrape()
        counted.metrics.topic("new")
        counted.now += 0.09
        assert await counted.scrape() == first
        assert await counted.scrape(detailed=True) != first
        counted.now += 0.02
        assert b"new" in await counted.scrape()
        assert counted.reads == 3

    trio.run(main)


@pytest.mark.parametrize(("takes_s", "keeps_s"), [(0.05, 1.0), (3.0, 5.0)])
def test_a_text_that_took_long_is_used_for_longer(takes_s: float, keeps_s: float) -> None:
    async def main() -> None:
        counted = Counted()
        counted.takes_s = takes_s
        await counted.scrape()
        counted.now += keeps_s - 0.01
        await counted.scrape()
        assert counted.reads == 1
        counted.now += 0.02
        await counted.scrape()
        assert counted.reads == 2

    trio.run(main)


def test_many_who_ask_at_once_get_one_text_also_if_the_first_goes_away() -> None:
    async def main() -> None:
        counted = Counted()
        texts: list[bytes] = []

        async def ask() -> None:
            texts.append(await counted.scrape())

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as counted.cancelled:
                await ask()
            counted.cancelled = None
            for _ in range(20):
                nursery.start_soon(ask)
        assert len(set(texts)) == 1
        assert (len(texts), counted.reads) == (20, 2)

    trio.run(main)


def test_others_have_their_turn_while_a_large_text_is_made() -> None:
    metrics = make(topics_max=300)
    for number in range(300):
        metrics.topic(f"t{number}").weak_acks(1).inc()
    metrics.partitions = lambda: (
        partition(f"t{number}", of) for number in range(300) for of in range(4)
    )
    slices = list(pieces(metrics, detailed=True))
    assert len(slices) > 40
    assert max(one.count("\n") for one in slices) <= 3 * LINES  # a help and a type go with rows
