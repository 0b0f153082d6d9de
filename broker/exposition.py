"""Metrics as Prometheus text, read from the broker's own counters when somebody asks.

This is the only file that imports prometheus_client (90 ms): HTTP imports it at the first scrape.
Each broker has a registry of its own, so that several can live in one process.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, core, generate_latest

from tailrace.broker.metrics import Family, Histogram, Metrics, PartitionGauges

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "tailrace_"


class Exposition:
    """The Prometheus text of one broker."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._detailed = False
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self, *, detailed: bool) -> bytes:
        """All series; ``detailed`` adds those per partition."""
        self._detailed = detailed
        return generate_latest(self._registry)

    def collect(self) -> Iterator[core.Metric]:
        """Every family, for the registry."""
        for family in self._metrics.families:
            yield _as_metric(family)
        yield from _groups(self._metrics, detailed=self._detailed)
        partitions = list(self._metrics.partitions())
        yield from _totals(self._metrics, partitions)
        if self._detailed:
            own = set(self._metrics.topics)
            yield from _per_partition(
                [one for one in partitions if one.topic in own and one.log_end >= 0]
            )


def _totals(metrics: Metrics, partitions: list[PartitionGauges]) -> Iterator[core.Metric]:
    sizes: dict[tuple[str, ...], float] = {(name,): 0 for name in metrics.topics}
    weak: dict[str, set[str]] = {"replicated": set(), "os": set()}
    for one in partitions:
        key = (metrics.label(one.topic),)
        sizes[key] = sizes.get(key, 0) + one.size_bytes
        if one.durability in weak:
            weak[one.durability].add(one.topic)
    yield _gauge("topic_size_bytes", "Bytes of the logs.", sizes, "topic")
    yield _gauge(
        "topics_weak_durability",
        "Topics whose acks promise less than fsync.",
        {(name,): len(topics) for name, topics in weak.items()},
        "durability",
    )
    having = Counter(one.status for one in partitions)
    for name, doc, number in (
        ("partitions", "Partitions held here.", len(partitions)),
        ("partitions_leader", "Partitions led here.", sum(one.leader for one in partitions)),
        ("partitions_under_replicated", "With a replica behind.", having["under_replicated"]),
        ("partitions_below_min_isr", "That refuse acks=all.", having["below_min_isr"]),
        ("partitions_offline", "Without a leader.", having["offline"]),
        ("segments", "Segment files.", sum(one.segments for one in partitions)),
        ("metrics_truncated", "1: some topics are summed as __other__.", int(metrics.truncated)),
    ):
        yield _gauge(name, doc, {(): number})


def _groups(metrics: Metrics, *, detailed: bool) -> Iterator[core.Metric]:
    """Groups by topic: lag summed, the oldest record, what is lost first."""
    lags: dict[tuple[str, ...], float] = {}
    oldest: dict[tuple[str, ...], float] = {}
    margins: dict[tuple[str, ...], float] = {}
    each: dict[tuple[str, ...], float] = {}
    verdicts: dict[tuple[str, ...], float] = {}
    for group in metrics.groups():
        verdicts[group.group,] = group.verdict
        for one in group.partitions:
            topic = metrics.label(one.topic)
            key = (group.group, topic)
            lags[key] = lags.get(key, 0) + one.lag_records
            margins[key] = min(margins.get(key, math.inf), one.margin_s)
            if one.lag_s is not None:
                oldest[key] = max(oldest.get(key, 0.0), one.lag_s)
            if topic == one.topic:
                each[*key, str(one.partition)] = one.lag_records
    by_topic = ("group", "topic")
    yield _gauge("group_lag_records", "Records not read yet.", lags, *by_topic)
    yield _gauge("group_lag_seconds", "Age of the oldest of them.", oldest, *by_topic)
    yield _gauge("group_margin_seconds", "Until some expire unread.", margins, *by_topic)
    yield _gauge("group_verdict", "0: ok, 1: warn, 2: stalled.", verdicts, "group")
    if detailed:
        labels = (*by_topic, "partition")
        yield _gauge("group_partition_lag_records", "Records not read yet.", each, *labels)


def _as_metric(family: Family) -> core.Metric:
    name, labels = PREFIX + family.name, family.labels
    if family.kind == "histogram":
        histogram = core.HistogramMetricFamily(name, family.doc, labels=labels)
        for values, one in family.histograms.items():
            histogram.add_metric(values, list(_buckets(one)), one.total)
        return histogram
    read = family.read() if family.read else {k: s.value for k, s in family.series.items()}
    if family.kind == "gauge":
        return _gauge(family.name, family.doc, read, *labels)
    counter = core.CounterMetricFamily(name, family.doc, labels=labels)
    for values, number in read.items():
        counter.add_metric(values, number)
    return counter


def _buckets(histogram: Histogram) -> Iterator[tuple[str, float]]:
    below = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        below += count
        yield str(bound), below
    yield "+Inf", histogram.count


def _gauge(
    name: str, doc: str, series: Mapping[tuple[str, ...], float], *labels: str
) -> core.Metric:
    gauge = core.GaugeMetricFamily(PREFIX + name, doc, labels=labels)
    for values, number in series.items():
        gauge.add_metric(values, number)
    return gauge


def _per_partition(partitions: Iterable[PartitionGauges]) -> Iterator[core.Metric]:
    ends: dict[tuple[str, ...], float] = {}
    watermarks: dict[tuple[str, ...], float] = {}
    sizes: dict[tuple[str, ...], float] = {}
    for one in partitions:
        key = (one.topic, str(one.partition))
        ends[key], watermarks[key], sizes[key] = one.log_end, one.high_watermark, one.size_bytes
    for name, doc, series in (
        ("partition_log_end", "Next offset to be written.", ends),
        ("partition_high_watermark", "End of what is committed.", watermarks),
        ("partition_size_bytes", "Bytes of the log.", sizes),
    ):
        yield _gauge(name, doc, series, "topic", "partition")
