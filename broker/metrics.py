"""What a broker counts, cheap where it is counted.

A series is a plain object with a number in it: the data path adds to an integer it holds, with no
lock and no look-up, as only the event loop writes. What there is to be counted is listed in
``metric_table.py``; what a scrape makes of it is in ``exposition.py``.

Invariants:
- series of a deleted topic or group disappear;
- at most ``topics_max`` topics, and as many groups, have series of their own, and at most
  ``PAIRS_PER_TOPIC`` times as many pairs of both; the others share ``__other__`` and
  ``metrics_truncated`` says so.
"""

import math
import threading
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from tailrace.broker.metric_places import OTHER, Places
from tailrace.broker.metric_table import TABLE, Spec

States = ("starting", "running", "read_only", "draining")
METADATA_OPS = ("get", "list", "txn")
PAIRS_PER_TOPIC = 10


class Series:
    """One number, counted up or set."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        self.value += amount

    def dec(self, amount: float = 1) -> None:
        self.value -= amount

    def set(self, value: float) -> None:
        self.value = value


class Histogram:
    """Observations by upper bound. ``heads`` and ``lines`` are exposition.py's."""

    __slots__ = ("bounds", "counts", "heads", "lines", "lines_of", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last: above every bound
        self.total = 0.0
        self.heads: tuple[str, ...] = ()  # of its lines
        self.lines: list[str] = []  # as they were when so much was observed:
        self.lines_of: tuple[int, float] | None = None  # count and total

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


class Family:
    """The series of one metric, by the values of its labels."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.series: dict[tuple[str, ...], Series] = {}
        self.histograms: dict[tuple[str, ...], Histogram] = {}
        self.read: Callable[[], Mapping[tuple[str, ...], float]] | None = None
        self.heads: dict[tuple[str, ...], str] = {}  # of the lines in the text, for exposition.py

    def of(self, *values: str) -> Series:
        """The series of these label values, made at its first use."""
        series = self.series.get(values)
        if series is None:
            assert len(values) == len(self.spec.labels), f"{self.spec.name}: {self.spec.labels}"
            series = self.series[values] = Series()
        return series

    def histogram(self, *values: str) -> Histogram:
        """The histogram of these label values, made at its first use."""
        histogram = self.histograms.get(values)
        if histogram is None:
            histogram = self.histograms[values] = Histogram(self.spec.bounds)
        return histogram

    def values(self) -> list[tuple[tuple[str, ...], float]]:
        """What all series are now."""
        if self.read is not None:
            return list(self.read().items())
        return [(key, series.value) for key, series in self.series.items()]

    def forget(self, label: str, value: str) -> None:
        """Drop every series whose label has that value."""
        at = self.spec.labels.index(label)
        for key in [key for key in self.series if key[at] == value]:
            del self.series[key]


@dataclass(frozen=True, slots=True)
class PartitionGauges:
    """One partition at the time of a scrape."""

    topic: str
    partition: int
    log_end: int
    high_watermark: int
    size_bytes: int
    segments: int
    leader: bool
    status: str  # ok, under_replicated, below_min_isr or offline
    durability: str
    lags: tuple[tuple[str, int], ...] = ()  # of followers, where it is led: records they lack


@dataclass(frozen=True, slots=True)
class LagGauges:
    """How far a group is with one partition, at the time of a scrape."""

    topic: str
    partition: int
    lag_records: int
    lag_s: float | None  # None: not known
    margin_s: float  # inf: nothing is about to be lost


@dataclass(frozen=True, slots=True)
class GroupGauges:
    """One group at the time of a scrape."""

    group: str
    verdict: int  # 0 ok, 1 warn, 2 stalled
    members: int
    partitions: tuple[LagGauges, ...]


class TopicMetrics:
    """The counters of one topic, held by whoever counts."""

    __slots__ = (
        *("_compaction_runs", "_weak_acks", "bytes_in", "bytes_out", "corrupt_batches", "gone"),
        *("name", "old_timestamps", "records_in", "retention_deleted_bytes"),
    )

    def __init__(self, name: str, metrics: "Metrics") -> None:
        self.name = name  # as labelled: perhaps __other__
        self.gone = False  # what is counted late is seen by nobody
        self.records_in = metrics.topic_records_in.of(name)
        self.bytes_in = metrics.topic_bytes_in.of(name)
        self.bytes_out = metrics.topic_bytes_out.of(name)
        self.old_timestamps = metrics.old_timestamps.of(name)
        self.retention_deleted_bytes = metrics.retention_deleted_bytes.of(name)
        self.corrupt_batches = metrics.corrupt_batches.of(name)
        self._weak_acks = metrics.weak_acks
        self._compaction_runs = metrics.compaction_runs

    def weak_acks(self, acks: int) -> Series:
        """Batches acknowledged (or not) on a weaker promise than acks=all."""
        return Series() if self.gone else self._weak_acks.of(self.name, str(acks))

    def compaction_runs(self, result: str) -> Series:
        """Partitions cleaned (``ok``) or not (``failed``)."""
        return Series() if self.gone else self._compaction_runs.of(self.name, result)


class GroupMetrics:
    """The counters of one group."""

    __slots__ = ("_rebalances", "commits", "gone", "name")

    def __init__(self, name: str, metrics: "Metrics") -> None:
        self.name = name  # as labelled: perhaps __other__
        self.gone = False
        self.commits = metrics.group_commits.of(name)
        self._rebalances = metrics.group_rebalances

    def rebalances(self, reason: str) -> Series:
        """Those that ended, by what began them."""
        return Series() if self.gone else self._rebalances.of(self.name, reason)


class Metrics:
    """All families of one broker. ``clock`` gives monotonic seconds."""

    def __init__(self, *, version: str, topics_max: int, clock: Callable[[], float]) -> None:
        self.families = {spec.name: Family(spec) for spec in TABLE}
        self.topics: Places[str] = Places(topics_max)
        self.groups_named: Places[str] = Places(topics_max)
        self.pairs: Places[tuple[str, str]] = Places(PAIRS_PER_TOPIC * topics_max)
        self._topics: dict[str, TopicMetrics] = {}  # by label
        self._groups: dict[str, GroupMetrics] = {}
        self.partitions: Callable[[], Iterable[PartitionGauges]] = lambda: ()
        self.groups: Callable[[], Iterable[GroupGauges]] = lambda: ()  # perhaps a second old
        self.group_exists: Callable[[str], bool] = lambda name: True
        self.prepare: Callable[[], Awaitable[None]] = _nothing  # awaited before a scrape
        began = clock()
        self._connect_broker(version, lambda: clock() - began)
        self._connect_requests()
        self._connect_topics()
        self._connect_storage()
        self._connect_groups()

    # ── topics and groups ────────────────────────────────────────────────────────────────────

    def topic(self, name: str) -> TopicMetrics:
        """The counters of a topic; those of ``__other__`` once ``topics_max`` have their own."""
        label = name if self.topics.take(name) else OTHER
        found = self._topics.get(label)
        if found is None:
            found = self._topics[label] = TopicMetrics(label, self)
        return found

    def forget_topic(self, name: str) -> None:
        """Its series disappear; its place is free for another topic."""
        self.topics.leave(name)
        for label in _gone(name, self.topics, self._topics):
            self._topics.pop(label).gone = True
            self._forget("topic", label)

    def group(self, name: str) -> GroupMetrics:
        """The counters of a group; those of ``__other__`` once so many have their own."""
        label = name if self.groups_named.take(name) else OTHER
        found = self._groups.get(label)
        if found is None:
            found = self._groups[label] = GroupMetrics(label, self)
        return found

    def forget_group(self, name: str) -> None:
        """Its series disappear; its place is free for another group."""
        self.groups_named.leave(name)
        for label in _gone(name, self.groups_named, self._groups):
            self._groups.pop(label).gone = True
            self._forget("group", label)

    def _forget(self, label: str, value: str) -> None:
        for family in self.families.values():
            if label in family.spec.labels:
                family.forget(label, value)

    @property
    def truncated(self) -> bool:
        """Whether some topics or groups are summed."""
        return bool(self.topics.others or self.groups_named.others or self.pairs.others)

    def label(self, topic: str) -> str | None:
        """What the series of a topic are labelled with; None: there is no such topic any more."""
        if topic in self.topics.own:
            return topic
        return OTHER if topic in self.topics.others else None

    # ── families ─────────────────────────────────────────────────────────────────────────────

    def _connect_broker(self, version: str, uptime_s: Callable[[], float]) -> None:
        import platform

        of = self.families
        of["build_info"].of(version, platform.python_version()).set(1)
        of["broker_uptime_seconds"].read = lambda: {(): uptime_s()}
        self._state = of["broker_state"]
        self.read_state(lambda: "starting")
        self.event_loop_lag = of["event_loop_lag_seconds"].histogram()
        self.tasks = of["tasks"]
        of["threads_used"].read = lambda: {(): threading.active_count()}
        self.clock_skew = of["clock_skew_seconds"]
        of["metrics_truncated"].read = lambda: {(): self.truncated}
        self.elections = of["elections_total"]
        self.metadata_duration = of["metadata_request_duration_seconds"]
        self.metadata_errors = of["metadata_errors_total"]
        for op in METADATA_OPS:
            self.metadata_errors.of(op)
        self.lease_remaining = of["metadata_lease_remaining_seconds"]
        self.lease_remaining.of().set(math.inf)  # the lock stands for it

    def read_state(self, state: Callable[[], str]) -> None:
        """Where a scrape finds ``starting``, ``running``, ``read_only`` or ``draining``."""
        self._state.read = lambda: {(name,): name == state() for name in States}

    def _connect_requests(self) -> None:
        of = self.families
        self.requests = of["requests_total"]
        self.request_duration = of["request_duration_seconds"]
        self.requests_in_flight = of["requests_in_flight"].of()
        self.request_memory = of["request_memory_bytes"]
        self.connections = of["connections"]
        self.connections_refused = of["connections_refused_total"]
        self.sent_bytes = of["sent_bytes_total"]
        self.received_bytes = of["received_bytes_total"]

    def listener(self, name: str) -> None:
        """A listener is bound: its series are there, at 0."""
        for family in (self.connections, self.sent_bytes, self.received_bytes):
            family.of(name)

    def _connect_topics(self) -> None:
        of = self.families
        self.topic_records_in = of["topic_records_in_total"]
        self.topic_bytes_in = of["topic_bytes_in_total"]
        self.topic_bytes_out = of["topic_bytes_out_total"]
        self.old_timestamps = of["old_timestamps_total"]
        self.weak_acks = of["weak_acks_total"]
        self.retention_deleted_bytes = of["retention_deleted_bytes_total"]
        self.corrupt_batches = of["corrupt_batches_total"]
        for direction in ("shrink", "expand"):
            of["isr_changes_total"].of(direction)

    def _connect_storage(self) -> None:
        of = self.families
        self.append_duration = of["append_duration_seconds"].histogram()
        self.fsync_duration = of["fsync_duration_seconds"].histogram()
        self.fsync_batches = of["fsync_batches"].histogram()
        self.disk_free_bytes = of["disk_free_bytes"].of()
        self.disk_read_only = of["disk_read_only"].of()
        self.erasures_pending = of["erasures_pending"]
        self.compaction_runs = of["compaction_runs_total"]
        self.compaction_dirty_ratio = of["compaction_dirty_ratio"]
        self.recovery_truncated_bytes = of["recovery_truncated_bytes_total"].of()
        self.recovery_duration = of["recovery_duration_seconds"].of()
        self.data_loss_possible = of["data_loss_possible_total"].of()

    def _connect_groups(self) -> None:
        of = self.families
        self.group_commits = of["group_commits_total"]
        self.group_rebalances = of["group_rebalances_total"]
        self.group_rebalance_duration = of["group_rebalance_duration_seconds"].histogram()


def _gone(name: str, places: Places[str], counted: Mapping[str, object]) -> list[str]:
    """The labels nobody has any more, now that ``name`` left."""
    there = {name: name in places.own, OTHER: bool(places.others)}
    return [label for label, used in there.items() if label in counted and not used]


async def _nothing() -> None:
    pass
