"""What admin calls, the command line and HTTP show: frozen dataclasses, named as in their JSON.

Durations end in ``_ms`` or ``_seconds``, sizes in ``_bytes``; times are ms since the epoch, UTC.
Within a major version they only gain fields.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, NamedTuple, cast

ConfigSource = Literal["default", "file", "env", "cli", "topic"]
CompactionState = Literal["idle", "due", "running", "failed"]
PartitionStatus = Literal["ok", "under_replicated", "below_min_isr", "offline"]
GroupState = Literal["empty", "assigning", "stable"]
Verdict = Literal["ok", "warn", "stalled"]
BrokerState = Literal["starting", "running", "read_only", "draining", "offline"]
ExplainedKind = Literal["record", "partition", "topic", "group"]
Scalar = str | int | float | bool | None


class TopicPartition(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int


@dataclass(frozen=True)
class ConfigEntry:
    """One effective setting of a topic."""

    key: str
    value: str  # with its unit
    default: str
    source: ConfigSource  # where ``value`` comes from
    dynamic: bool  # may change while the broker runs


@dataclass(frozen=True)
class CompactionInfo:
    """How far a partition of a compacted topic is cleaned, and why no further."""

    state: CompactionState
    clean_offset: int  # below it no key stands twice
    dirty_bytes: int  # closed, and not yet cleaned
    dirty_ratio: float  # of all that is closed, 0 to 1
    progress: float  # of the run that is under way, 0 to 1
    reason: str  # why it is being cleaned, or why it is not; and what stays whatever is done
    last_run_at: int | None  # when a run last ended well
    last_error: str | None  # what went wrong since then


@dataclass(frozen=True)
class PartitionInfo:
    """One partition, as its leader sees it."""

    topic: str
    partition: int
    leader: str | None  # broker id; None while there is none
    leader_epoch: int
    replicas: list[str]
    isr: list[str]  # the replicas in sync
    key_range: tuple[str, str]  # of xxh3-64(key): 16 hex digits each, inclusive
    log_start: int
    log_end: int
    high_watermark: int
    last_stable_offset: int
    size_bytes: int
    segments: int
    last_append_time: int | None  # None: empty
    status: PartitionStatus
    compaction: CompactionInfo | None = None  # None: not a compacted topic


@dataclass(frozen=True)
class TopicInfo:
    """One topic in a list."""

    name: str
    topic_id: str  # UUID text
    internal: bool
    partitions: int
    replicas: int
    min_isr: int
    cleanup: str
    durability: str
    size_bytes: int
    records: int  # sum of log_end - log_start
    under_replicated: int
    offline: int


@dataclass(frozen=True)
class TopicDetail(TopicInfo):
    """One topic with its settings and partitions."""

    config: list[ConfigEntry]
    partition_list: list[PartitionInfo]
    groups: list[str]


@dataclass(frozen=True)
class ErasureReceipt:
    """What ``erase`` gives: what was found, and who has done it."""

    id: str  # UUID text
    topic: str
    records: int  # final once ``completed_at`` is set
    requested_at: int
    completed_at: int | None  # None: the broker still works on it
    replicas: dict[str, Literal["done", "pending"]]  # by broker id


@dataclass(frozen=True)
class GroupInfo:
    """One consumer group in a list."""

    name: str
    state: GroupState
    members: int
    generation: int  # rises with every change of members or topics
    topics: list[str]  # its members subscribe to them, or it has committed offsets of them
    coordinator: str  # broker id
    lag_records: int
    lag_seconds: float | None  # how long the oldest unread record has waited; None: not known
    verdict: Verdict  # of its worst partition


@dataclass(frozen=True)
class MemberInfo:
    """One member of a group."""

    member_id: str
    instance_id: str | None
    client_id: str
    host: str
    version: str  # of its software
    assigned: list[TopicPartition]
    last_heartbeat: int
    idle: bool  # nothing is assigned to it


@dataclass(frozen=True)
class PartitionLag:
    """How far a group is with one partition."""

    topic: str
    partition: int
    committed: int | None  # the next offset to read; None: lag counts from ``log_start``
    committed_at: int | None
    metadata: str
    log_start: int  # -1, here and in ``log_end``: the partition is offline
    log_end: int  # the last stable offset
    member_id: str | None
    lag_records: int
    lag_seconds: float | None
    rate_per_s: float  # of the group, over the window of the verdict
    verdict: Verdict
    margin_seconds: float | None  # until unread records expire, at the present rates; None: never


@dataclass(frozen=True)
class GroupDetail(GroupInfo):
    """One group with its members and partitions."""

    member_list: list[MemberInfo]
    partition_list: list[PartitionLag]


@dataclass(frozen=True)
class GroupLag:
    """How far behind a group is."""

    group: str
    lag_records: int
    lag_seconds: float | None
    drain_seconds: float | None  # until it has caught up, at the present rates; None: never
    verdict: Verdict
    partition_list: list[PartitionLag]


@dataclass(frozen=True)
class OffsetChange:
    """One committed offset that ``reset_group`` moves."""

    topic: str
    partition: int
    before: int | None
    after: int
    records: int  # > 0: read again, < 0: skipped


@dataclass(frozen=True)
class BrokerInfo:
    """One broker."""

    id: str
    address: str
    http: str | None
    rack: str | None
    version: str
    broker_epoch: int
    state: BrokerState
    leaders: int
    replicas: int
    disk_free_bytes: int
    disk_total_bytes: int
    uptime_ms: int
    last_seen: int


@dataclass(frozen=True)
class ClusterInfo:
    """The whole cluster."""

    cluster_id: str
    version: str
    controller: str | None
    metadata: Literal["embedded", "etcd"]
    metadata_ok: bool
    brokers: list[BrokerInfo]
    topics: int
    partitions: int
    under_replicated: int
    below_min_isr: int
    offline: int
    healthy: bool
    problems: list[str]


@dataclass(frozen=True)
class ClusterHealth:
    """Whether the cluster is healthy, and what is wrong if it is not."""

    healthy: bool
    problems: list[str]
    brokers_up: int
    brokers_total: int
    under_replicated: int
    below_min_isr: int
    offline: int
    metadata_ok: bool


@dataclass(frozen=True)
class Fact:
    """One thing that an explanation rests on; the name ends in the unit."""

    name: str
    value: Scalar | list[Scalar]


@dataclass(frozen=True)
class Explanation:
    """Why a record, a partition, a topic or a group is as it is.

    The verdict of a record is ``readable``, ``beyond_end``, ``not_committed``, ``expired``,
    ``compacted`` or ``erased``, for a group also ``waiting`` or ``committed``; where none of them
    is true ``damaged`` or ``offline``. Of a partition and a topic it is the (worst)
    PartitionStatus, of a group its Verdict.
    """

    target: str
    kind: ExplainedKind
    verdict: str
    summary: str
    facts: list[Fact]
    next: str | None  # one command; None: nothing needs to be done


def to_json(shape: object) -> Any:
    """The JSON value of a shape: objects by their names, lists for tuples.

    A ``TopicPartition`` is an object of its two names; anything that is no shape stays as it is.
    """
    if isinstance(shape, TopicPartition):
        return shape._asdict()
    if is_dataclass(shape):
        return {field.name: to_json(getattr(shape, field.name)) for field in fields(shape)}
    if isinstance(shape, dict):
        items = cast("Mapping[Any, Any]", shape).items()
        return {key: to_json(value) for key, value in items}
    if isinstance(shape, list | tuple):
        return [to_json(item) for item in cast("list[Any]", shape)]
    return shape
