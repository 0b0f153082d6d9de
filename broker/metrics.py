"""What a broker counts (interfaces: metrics), cheap where it is counted.

A series is a plain object with a number in it: the data path adds to an integer it holds, with no
lock and no look-up, as only the event loop writes. What a scrape makes of it is in
``exposition.py``, and so is prometheus_client.

Invariants: a series of a deleted topic disappears; at most ``topics_max`` topics have series of
their own, the others share ``__other__`` and ``metrics_truncated`` says so.
"""

import threading
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

OTHER = "__other__"
SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
BATCHES = tuple(float(1 << power) for power in range(11))
Kind = Literal["counter", "gauge", "histogram"]
States = ("starting", "running", "read_only", "draining")


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
    """Observations by upper bound."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last: above every bound
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


class Family:
    """The series of one metric, by the values of its labels."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        doc: str,
        labels: tuple[str, ...] = (),
        bounds: tuple[float, ...] = SECONDS,
    ) -> None:
        self.name = name  # without prefix and without _total
        self.kind: Kind = kind
        self.doc = doc
        self.labels = labels
        self._bounds = bounds
        self.series: dict[tuple[str, ...], Series] = {}
        self.histograms: dict[tuple[str, ...], Histogram] = {}
        self.read: Callable[[], Mapping[tuple[str, ...], float]] | None = None

    def of(self, *values: str) -> Series:
        """The series of these label values, made at its first use."""
        series = self.series.get(values)
        if series is None:
            assert len(values) == len(self.labels), f"{self.name} has labels {self.labels}"
            series = self.series[values] = Series()
        return series

    def histogram(self, *values: str) -> Histogram:
        """The histogram of these label values, made at its first use."""
        histogram = self.histograms.get(values)
        if histogram is None:
            histogram = self.histograms[values] = Histogram(self._bounds)
        return histogram

    def forget(self, label: str, value: str) -> None:
        """Drop every series whose label has that value."""
        at = self.labels.index(label)
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
    partitions: tuple[LagGauges, ...]


class TopicMetrics:
    """The counters of one topic, held by whoever counts."""

    __slots__ = (
        *("_weak_acks", "bytes_in", "bytes_out", "corrupt_batches", "name", "old_timestamps"),
        *("records_in", "retention_deleted_bytes"),
    )

    def __init__(self, name: str, metrics: "Metrics") -> None:
        self.name = name  # as labelled: perhaps __other__
        self.records_in = metrics.topic_records_in.of(name)
        self.bytes_in = metrics.topic_bytes_in.of(name)
        self.bytes_out = metrics.topic_bytes_out.of(name)
        self.old_timestamps = metrics.old_timestamps.of(name)
        self.retention_deleted_bytes = metrics.retention_deleted_bytes.of(name)
        self.corrupt_batches = metrics.corrupt_batches.of(name)
        self._weak_acks = metrics.weak_acks

    def weak_acks(self, acks: int) -> Series:
        """Batches acknowledged (or not) on a weaker promise than acks=all."""
        return self._weak_acks.of(self.name, str(acks))


class Metrics:
    """All families of one broker. ``clock`` gives monotonic seconds."""

    def __init__(self, *, version: str, topics_max: int, clock: Callable[[], float]) -> None:
        self.families: list[Family] = []
        self._topics_max = topics_max
        self._topics: dict[str, TopicMetrics] = {}
        self._other: TopicMetrics | None = None  # made when it is first needed
        self.partitions: Callable[[], Iterable[PartitionGauges]] = lambda: ()
        self.groups: Callable[[], Iterable[GroupGauges]] = lambda: ()
        self.prepare: Callable[[], Awaitable[None]] = _nothing  # awaited before a scrape
        began = clock()
        self._add_broker(version, lambda: clock() - began)
        self._add_requests()
        self._add_topics()
        self._add_storage()
        self._add_groups()

    def topic(self, name: str) -> TopicMetrics:
        """The counters of a topic; those of ``__other__`` once ``topics_max`` have their own."""
        found = self._topics.get(name)
        if found is None:
            if len(self._topics) >= self._topics_max:
                if self._other is None:
                    self._other = TopicMetrics(OTHER, self)
                return self._other
            found = self._topics[name] = TopicMetrics(name, self)
        return found

    def forget_topic(self, name: str) -> None:
        """Its series disappear; its place is free for another topic."""
        if self._topics.pop(name, None) is not None:
            for family in self.families:
                if "topic" in family.labels:
                    family.forget("topic", name)

    def watch_partitions(self, read: Callable[[], Iterable[PartitionGauges]]) -> None:
        """Where a scrape finds the partitions."""
        self.partitions = read

    @property
    def truncated(self) -> bool:
        """Whether some topics are summed."""
        return self._other is not None

    def label(self, topic: str) -> str:
        """What the series of a topic are labelled with."""
        return topic if topic in self._topics else OTHER

    @property
    def topics(self) -> list[str]:
        """The topics with series of their own."""
        return list(self._topics)

    # ── families ─────────────────────────────────────────────────────────────────────────────

    def _add(self, name: str, kind: Kind, doc: str, *labels: str) -> Family:
        family = Family(name, kind, doc, labels)
        self.families.append(family)
        return family

    def _add_broker(self, version: str, uptime_s: Callable[[], float]) -> None:
        import platform

        build = self._add("build_info", "gauge", "This broker's software.", "version", "python")
        build.of(version, platform.python_version()).set(1)
        uptime = self._add("broker_uptime_seconds", "gauge", "Since the start.")
        uptime.read = lambda: {(): uptime_s()}
        self._state = self._add("broker_state", "gauge", "1: the current state.", "state")
        self.read_state(lambda: "starting")
        self.event_loop_lag = self._add(
            "event_loop_lag_seconds", "histogram", "How late the event loop woke a sleeper."
        ).histogram()
        self.tasks = self._add("tasks", "gauge", "Tasks of the event loop.")
        threads = self._add("threads_used", "gauge", "Threads of the process.")
        threads.read = lambda: {(): threading.active_count()}
        self.metadata_duration = self._add(
            "metadata_request_duration_seconds", "histogram", "Of the metadata store.", "op"
        )
        self.metadata_errors = self._add("metadata_errors", "counter", "Failed requests.", "op")

    def read_state(self, state: Callable[[], str]) -> None:
        """Where a scrape finds ``starting``, ``running``, ``read_only`` or ``draining``."""
        self._state.read = lambda: {(name,): name == state() for name in States}

    def _add_requests(self) -> None:
        self.requests = self._add("requests", "counter", "Answered requests.", "api", "code")
        self.request_duration = self._add(
            "request_duration_seconds", "histogram", "From the last byte in to the answer.", "api"
        )
        self.requests_in_flight = self._add(
            "requests_in_flight", "gauge", "Requests taken and not yet answered."
        ).of()
        self.request_memory = self._add(
            "request_memory_bytes", "gauge", "Memory of the requests in hand."
        )
        self.connections = self._add("connections", "gauge", "Open connections.", "listener")
        self.connections_refused = self._add(
            "connections_refused", "counter", "Connections turned away.", "reason"
        )
        self.sent_bytes = self._add("sent_bytes", "counter", "Bytes sent.", "listener")
        self.received_bytes = self._add("received_bytes", "counter", "Bytes received.", "listener")

    def _add_topics(self) -> None:
        self.topic_records_in = self._add(
            "topic_records_in", "counter", "Records appended.", "topic"
        )
        self.topic_bytes_in = self._add("topic_bytes_in", "counter", "Bytes appended.", "topic")
        self.topic_bytes_out = self._add("topic_bytes_out", "counter", "Bytes fetched.", "topic")
        self.old_timestamps = self._add(
            "old_timestamps", "counter", "Batches with an event time older than 7 days.", "topic"
        )
        self.weak_acks = self._add(
            "weak_acks", "counter", "Batches produced with acks below all.", "topic", "acks"
        )
        self.retention_deleted_bytes = self._add(
            "retention_deleted_bytes", "counter", "Bytes that retention removed.", "topic"
        )
        self.corrupt_batches = self._add(
            "corrupt_batches", "counter", "Stored batches found damaged.", "topic"
        )

    def _add_storage(self) -> None:
        self.append_duration = self._add(
            "append_duration_seconds", "histogram", "Writes to the log."
        ).histogram()
        self.fsync_duration = self._add(
            "fsync_duration_seconds", "histogram", "Rounds of sync."
        ).histogram()
        batches = Family("fsync_batches", "histogram", "Batches per sync round.", (), BATCHES)
        self.families.append(batches)
        self.fsync_batches = batches.histogram()
        self.disk_free_bytes = self._add("disk_free_bytes", "gauge", "Room on the disk.").of()
        self.disk_read_only = self._add(
            "disk_read_only", "gauge", "1: below min_free, writes get T031."
        ).of()
        self.erasures_pending = self._add(
            "erasures_pending", "gauge", "Erasures that have not come to their end."
        )
        self.compaction_runs = self._add(
            "compaction_runs", "counter", "Partitions cleaned, or not.", "topic", "result"
        )
        self.compaction_dirty_ratio = self._add(
            "compaction_dirty_ratio", "gauge", "Of the dirtiest partition, 0 to 1.", "topic"
        )
        self.recovery_truncated_bytes = self._add(
            "recovery_truncated_bytes", "counter", "Torn tails cut at start."
        ).of()
        self.recovery_duration = self._add(
            "recovery_duration_seconds", "gauge", "Of the last start."
        ).of()
        self.data_loss_possible = self._add(
            "data_loss_possible", "counter", "Cuts that may have removed good data."
        ).of()

    def _add_groups(self) -> None:
        self.group_members = self._add("group_members", "gauge", "Members of a group.", "group")
        self.group_commits = self._add(
            "group_commits", "counter", "Offsets committed, one per partition.", "group"
        )
        self.group_rebalances = self._add(
            "group_rebalances", "counter", "Rebalances that ended.", "group", "reason"
        )
        self.group_rebalance_duration = self._add(
            "group_rebalance_duration_seconds", "histogram", "From the cause to the end."
        ).histogram()

    def forget_group(self, name: str) -> None:
        """Its series disappear."""
        for family in self.families:
            if "group" in family.labels:
                family.forget("group", name)


async def _nothing() -> None:
    pass
