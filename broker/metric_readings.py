"""What a scrape works out of partitions and groups: sums by topic, by state, by group. Pure.

All is done in steps: each ``yield`` is a place where others may have their turn, as 1,000 topics
take some ten milliseconds. Meanwhile topics come and go: one that is gone when its turn comes is
left out.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tailrace.broker.metric_places import OTHER
from tailrace.broker.metrics import LagGauges, Metrics

STEP = 50  # partitions: about 0.1 ms
WEAK = ("replicated", "os")

Labelled = dict[tuple[str, ...], float]


def _labelled() -> Labelled:
    return {}


@dataclass(slots=True)
class Readings:
    """By the name of the metric, by the values of its labels."""

    of: dict[str, Labelled] = field(default_factory=dict[str, Labelled])


def read(metrics: Metrics, readings: Readings, *, detailed: bool) -> Iterator[None]:
    """Fill ``readings``, in steps."""
    yield from _partitions(metrics, readings.of, detailed=detailed)
    yield from _groups(metrics, readings.of, detailed=detailed)


def _partitions(metrics: Metrics, of: dict[str, Labelled], *, detailed: bool) -> Iterator[None]:
    sizes: Labelled = {(name,): 0 for name in metrics.topics.own}
    ends, watermarks, bytes_, lags = _labelled(), _labelled(), _labelled(), _labelled()
    weak: dict[str, set[str]] = {name: set() for name in WEAK}
    having: Counter[str] = Counter()
    count = leading = segments = 0
    for one in metrics.partitions():
        count += 1
        if count % STEP == 0:
            yield
        label = metrics.label(one.topic)
        if label is None:
            count -= 1
            continue
        sizes[label,] = sizes.get((label,), 0) + one.size_bytes
        leading += one.leader
        segments += one.segments
        having[one.status] += 1
        if one.durability in weak:
            weak[one.durability].add(one.topic)
        if detailed and label == one.topic and one.log_end >= 0:
            key = (one.topic, str(one.partition))
            ends[key], watermarks[key] = one.log_end, one.high_watermark
            bytes_[key] = one.size_bytes
            for replica, records in one.lags:
                lags[*key, replica] = records
    there = metrics.topics.own
    of["topic_size_bytes"] = {
        key: size for key, size in sizes.items() if key[0] in there or key[0] == OTHER
    }
    of["topics_weak_durability"] = {(name,): len(topics) for name, topics in weak.items()}
    of["partitions"] = {(): count}
    of["partitions_leader"] = {(): leading}
    having["under_replicated"] += having["below_min_isr"]
    for status in ("under_replicated", "below_min_isr", "offline"):
        of[f"partitions_{status}"] = {(): having[status]}
    of["segments"] = {(): segments}
    of["partition_log_end"] = ends
    of["partition_high_watermark"] = watermarks
    of["partition_size_bytes"] = bytes_
    of["replica_lag_records"] = lags


def _groups(metrics: Metrics, of: dict[str, Labelled], *, detailed: bool) -> Iterator[None]:
    """Groups by topic: lag summed, the oldest record, what is lost first."""
    lags, oldest, margins, each = _labelled(), _labelled(), _labelled(), _labelled()
    verdicts, members = _labelled(), _labelled()
    seen: set[tuple[str, str]] = set()
    count = 0
    yield from _forget_groups(metrics)
    for group in metrics.groups():
        if not metrics.group_exists(group.group):
            continue
        own = metrics.groups_named.take(group.group)
        name = group.group if own else OTHER
        verdicts[name,] = max(group.verdict, verdicts.get((name,), 0))
        members[name,] = members.get((name,), 0) + group.members
        for one in group.partitions:
            count += 1
            if count % STEP == 0:
                yield
            topic = metrics.label(one.topic)
            if topic is None:
                continue
            if own and topic != OTHER:
                seen.add((name, topic))
                if not metrics.pairs.take((name, topic)):
                    topic = OTHER
            _add(lags, oldest, margins, (name, topic), one)
            if detailed and own and topic == one.topic:
                each[name, topic, str(one.partition)] = one.lag_records
        yield
    metrics.pairs.keep(seen)
    of["group_lag_records"], of["group_lag_seconds"] = lags, oldest
    of["group_margin_seconds"], of["group_partition_lag_records"] = margins, each
    of["group_verdict"], of["group_members"] = verdicts, members


def _forget_groups(metrics: Metrics) -> Iterator[None]:
    """Most are told of by whoever deletes them; one whose first commit failed never was."""
    named = metrics.groups_named
    for count, name in enumerate((*named.own, *named.others), 1):
        if not metrics.group_exists(name):
            metrics.forget_group(name)
        if count % STEP == 0:
            yield


def _add(
    lags: Labelled, oldest: Labelled, margins: Labelled, key: tuple[str, str], one: LagGauges
) -> None:
    lags[key] = lags.get(key, 0) + one.lag_records
    margins[key] = min(margins.get(key, math.inf), one.margin_s)
    if one.lag_s is not None:
        oldest[key] = max(oldest.get(key, 0.0), one.lag_s)
