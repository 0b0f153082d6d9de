"""Requests and responses of the data path: records in and out, and where they stand.

They follow the rules of ``messages.py``, through which the rest of the house imports them.
"""

from dataclasses import dataclass

from tailrace.protocol.fields import I8, I16, I32, I64, Count, WireError

ACKS_ALL = -1
OFFSET_EARLIEST = -2  # in ListOffsets
OFFSET_LATEST = -1
READ_UNCOMMITTED = 0
READ_COMMITTED = 1


# ── 2 Produce ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ProducePartition:
    """One record batch of the body. A partition may come more than once, in order."""

    topic_id: bytes
    partition: I32
    length: Count  # bytes of the body that are this batch


@dataclass(frozen=True, slots=True)
class ProduceRequest:
    """Append batches. The body is the batches, back to back, in the order named."""

    acks: I8  # -1 all, 1 the leader's disk page cache, 0 no answer is sent at all
    timeout_ms: Count  # with acks -1: until it is durable on all that are in sync
    partitions: tuple[ProducePartition, ...]


@dataclass(frozen=True, slots=True)
class ProduceResult:
    """What became of one batch."""

    error: WireError | None
    base_offset: I64  # of its first record; the original one for a duplicate; -1 on error
    append_time: I64  # ms; -1 on error
    log_start: I64


@dataclass(frozen=True, slots=True)
class ProduceResponse:
    """One result per batch, in the request's order."""

    results: tuple[ProduceResult, ...]


# ── 3 Fetch ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class FetchPartition:
    """What is wanted of one partition. From ``last_fetched_epoch`` on: a follower's, else -1."""

    topic_id: bytes
    partition: I32
    offset: I64  # the first record wanted
    bytes_max: Count  # of this partition; the first batch comes whole even if larger
    leader_epoch: I32  # the epoch the reader knows, -1: not checked
    last_fetched_epoch: I32
    flushed_end: I64
    high_watermark: I64 = -1  # as the follower knows it: it is told of another one soon
    cleaned: I64 = -1  # the follower has compacted all below it


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """Read batches, waiting for them if there are none."""

    wait_ms: Count  # how long to wait until ``bytes_min`` are there
    bytes_min: Count
    bytes_max: Count  # of the whole answer
    isolation: I8  # 0 up to the high watermark, 1 up to the last stable offset
    replica_id: str | None  # a follower's broker id, nil for a consumer
    broker_epoch: I64  # a follower's, else -1
    partitions: tuple[FetchPartition, ...]
    rack: str | None = None  # of a consumer that would read from a follower near it
    sequence: I64 = 0  # of a session: 0 begins anew; else what is not named stands as it was asked
    session: I32 = 0  # a consumer's, any number of its own; 0: none, all that is named is told of


@dataclass(frozen=True, slots=True)
class FetchResult:
    """One partition's share of the body."""

    topic_id: bytes
    partition: I32
    error: WireError | None
    log_start: I64
    high_watermark: I64
    last_stable_offset: I64
    log_end: I64
    length: Count  # bytes of the body: whole batches, the first may begin below ``offset``
    diverging_epoch: I32 = -1  # a follower's log is another one behind the end of this epoch,
    diverging_end: I64 = -1  # which is here: it truncates before it asks again
    cleaned_min: I64 = -1  # every replica has compacted all below it
    preferred_replica: str | None = None  # a broker near a consumer: ask it from now on


@dataclass(frozen=True, slots=True)
class FetchResponse:
    """One result per partition asked, in the request's order; the body is their batches.

    A follower, and a consumer in a session, hear only of those of which there is news.
    """

    results: tuple[FetchResult, ...]


# ── 4 ListOffsets ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class OffsetQuery:
    """One partition and the time looked for."""

    topic_id: bytes
    partition: I32
    time: I64  # append time in ms; -2 the log start, -1 the end readable by ``isolation``


@dataclass(frozen=True, slots=True)
class ListOffsetsRequest:
    """Offsets by append time."""

    isolation: I8
    partitions: tuple[OffsetQuery, ...]


@dataclass(frozen=True, slots=True)
class OffsetFound:
    """The first record with append time >= the time asked, or the end if there is none."""

    topic_id: bytes
    partition: I32
    error: WireError | None
    offset: I64
    append_time: I64  # of that record's batch, -1 at the end
    leader_epoch: I32


@dataclass(frozen=True, slots=True)
class ListOffsetsResponse:
    """One answer per query, in the request's order."""

    results: tuple[OffsetFound, ...]


# ── 5 InitProducerId ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class InitProducerIdRequest:
    """A new identity for an idempotent producer."""

    transactional_id: str | None  # reserved, nil


@dataclass(frozen=True, slots=True)
class InitProducerIdResponse:
    """An id never given out before."""

    producer_id: I64
    producer_epoch: I16
