"""Requests and responses of administration: topics, their settings, the cluster.

They follow the rules of ``messages.py``, through which the rest of the house imports them.
"""

from dataclasses import dataclass

from tailrace.protocol.fields import I32, I64, U64, Count, Scalar


@dataclass(frozen=True, slots=True)
class ConfigItem:
    """One setting as text, with its unit."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """A new value for one setting, or nil for its default again."""

    key: str
    value: str | None


@dataclass(frozen=True, slots=True)
class ConfigEntry:
    """One effective setting and where it comes from."""

    key: str
    value: str
    default: str
    source: str  # default, file, env, cli or topic
    dynamic: bool  # may change while the broker runs


@dataclass(frozen=True, slots=True)
class CompactionDescription:
    """How far a partition of a compacted topic is cleaned, and why no further."""

    state: str  # idle, due, running or failed
    clean_offset: I64
    dirty_bytes: Count
    dirty_ppm: Count  # millionths of all bytes that can be cleaned
    progress_ppm: Count  # of the run that is under way
    reason: str
    last_run_at: I64 | None  # when one last ended well, ms since the epoch
    last_error: str | None  # since then


@dataclass(frozen=True, slots=True)
class PartitionDescription:
    """One partition, as its leader sees it."""

    partition: I32
    leader: str | None
    leader_epoch: I32
    replicas: tuple[str, ...]
    isr: tuple[str, ...]
    key_first: U64
    key_last: U64
    log_start: I64
    log_end: I64
    high_watermark: I64
    last_stable_offset: I64
    size_bytes: Count
    segments: Count
    last_append_time: I64 | None
    status: str  # ok, under_replicated, below_min_isr or offline
    compaction: CompactionDescription | None  # nil: not a compacted topic


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """One topic with its settings and partitions."""

    name: str
    topic_id: bytes
    internal: bool
    replicas: I32
    min_isr: I32
    cleanup: str
    durability: str
    config: tuple[ConfigEntry, ...]
    partitions: tuple[PartitionDescription, ...]
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CreateTopicRequest:
    """Create a topic. Nil leaves a count to the broker's defaults."""

    name: str
    partitions: I32 | None
    replicas: I32 | None
    config: tuple[ConfigItem, ...]
    exist_ok: bool  # an existing topic is fine unless a value given here differs


@dataclass(frozen=True, slots=True)
class DeleteTopicRequest:
    """Delete a topic and its records."""

    name: str


@dataclass(frozen=True, slots=True)
class DeleteTopicResponse:
    """The topic that is gone."""

    topic_id: bytes


@dataclass(frozen=True, slots=True)
class AlterTopicRequest:
    """Change settings of a topic; all of them or none."""

    name: str
    config: tuple[ConfigChange, ...]


@dataclass(frozen=True, slots=True)
class TopicResponse:
    """Answers CreateTopic and AlterTopic: the topic as it now is."""

    topic: TopicDescription


@dataclass(frozen=True, slots=True)
class DescribeTopicsRequest:
    """Describe topics by name, or all."""

    names: tuple[str, ...] | None  # a missing name fails the request with T010
    internal: bool  # with nil names: internal topics too
    local: bool = False  # a broker asks: of what the answering one leads, no other is asked


@dataclass(frozen=True, slots=True)
class DescribeTopicsResponse:
    """In the order asked, or sorted by name."""

    topics: tuple[TopicDescription, ...]


@dataclass(frozen=True, slots=True)
class DescribeClusterRequest:
    """Describe the cluster and its brokers."""

    local: bool = False  # a broker asks: of itself alone, no other is asked


@dataclass(frozen=True, slots=True)
class BrokerDescription:
    """One broker and its health."""

    broker_id: str
    address: str
    http: str | None
    rack: str | None
    version: str
    broker_epoch: I64
    state: str  # starting, running, read_only, draining or offline
    leaders: Count
    replicas: Count
    disk_free_bytes: Count
    disk_total_bytes: Count
    uptime_ms: Count
    last_seen: I64  # ms since the epoch


@dataclass(frozen=True, slots=True)
class DescribeClusterResponse:
    """The whole cluster in one answer."""

    cluster_id: str
    version: str
    controller: str | None
    metadata: str  # embedded or etcd
    metadata_ok: bool
    brokers: tuple[BrokerDescription, ...]
    topics: Count
    partitions: Count
    under_replicated: Count
    below_min_isr: Count
    offline: Count
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StartOffset:
    """Where the log of one partition begins, or shall begin."""

    partition: I32
    offset: I64  # in a request, -1 is the high watermark


@dataclass(frozen=True, slots=True)
class DeleteRecordsRequest:
    """Move log starts up: all of them or, where one cannot be, none."""

    topic: str
    partitions: tuple[StartOffset, ...]  # a start that is lower than the present one is no change


@dataclass(frozen=True, slots=True)
class DeleteRecordsResponse:
    """Where the logs now begin, in the order asked."""

    partitions: tuple[StartOffset, ...]


@dataclass(frozen=True, slots=True)
class RecordPosition:
    """One record."""

    partition: I32
    offset: I64


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """Erase records for good: those with a key, and single ones."""

    erasure_id: bytes  # 16 bytes, a UUID the client made: asking again is asking once
    topic: str
    keys: tuple[bytes, ...]
    records: tuple[RecordPosition, ...]


@dataclass(frozen=True, slots=True)
class GetErasureRequest:
    """How far an erasure is."""

    topic: str
    erasure_id: bytes
    wait_ms: Count  # how long to wait for its end


@dataclass(frozen=True, slots=True)
class ReplicaErasure:
    """How far one broker is."""

    broker_id: str
    done: bool


@dataclass(frozen=True, slots=True)
class ErasureResponse:
    """Answers Erase and GetErasure: the receipt as of now."""

    erasure_id: bytes
    topic: str
    records: Count  # that were found so far, and are erased or about to be
    requested_at: I64  # ms since the epoch
    completed_at: I64 | None  # nil while a replica has not done it
    replicas: tuple[ReplicaErasure, ...]


@dataclass(frozen=True, slots=True)
class ExplainRequest:
    """Why a record, a partition, a topic or a group is as it is; nil where it is not about one."""

    topic: str | None
    partition: I32 | None  # of ``topic``
    offset: I64 | None  # in ``partition``
    group: str | None  # alone: the group; with a topic: as far as it reads that


@dataclass(frozen=True, slots=True)
class ExplainResponse:
    """What was found, with the facts it rests on."""

    target: str  # as in texts: "orders[2]@881"
    kind: str  # record, partition, topic or group
    verdict: str
    summary: str
    facts: dict[str, Scalar | list[Scalar]]  # in the order to be shown
    next: str | None  # one command
