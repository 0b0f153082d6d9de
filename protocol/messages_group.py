"""Requests and responses of consumer groups: membership, committed offsets, administration.

They follow the rules of ``messages.py``, through which the rest of the house imports them. The
broker assigns partitions, in the spirit of KIP-848: a member reports what it owns, and is told what
it shall own now.
"""

from dataclasses import dataclass

from tailrace.protocol.fields import I32, I64, Count, WireError

JOIN_EPOCH = 0  # member_epoch of a member that is not in the group yet
LEAVE_EPOCH = -1  # of one that goes for good
AWAY_EPOCH = -2  # of one with an instance id that goes, and will be back within its session
NO_MEMBER = ""  # member_id of a commit from outside: allowed while the group has no members
NO_EPOCH = -1
METADATA_BYTES_MAX = 4_096  # of one committed offset


# ── where a group is ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class FindCoordinatorRequest:
    """Which broker coordinates a group: the leader of its partition of ``__offsets``."""

    group: str


@dataclass(frozen=True, slots=True)
class FindCoordinatorResponse:
    """The broker to send all other requests about the group to (addresses: Metadata)."""

    broker_id: str
    partition: I32  # of __offsets


# ── membership ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class OwnedPartitions:
    """What a member holds of one topic."""

    topic_id: bytes
    partitions: tuple[I32, ...]


@dataclass(frozen=True, slots=True)
class HeartbeatRequest:
    """A member is there. Held back up to ``wait_ms`` while there is nothing new for it."""

    group: str
    member_id: str  # made by the client: a UUID as text
    member_epoch: I32  # the newest one it was told; 0 joins, -1 leaves, -2 leaves for a while
    instance_id: str | None  # of a static member: one that comes back takes over what it had
    topics: tuple[str, ...]  # its subscription, sorted
    owned: tuple[OwnedPartitions, ...]  # what it reads now; what it was told to give up is missing
    session_timeout_ms: Count  # silent for so long, it is out of the group
    rebalance_timeout_ms: Count  # how long it may take to give up a partition
    wait_ms: Count
    told_generation: I32  # the newest rebalance it has heard of, -1: of none


@dataclass(frozen=True, slots=True)
class AssignedPartition:
    """One partition that the member shall read now."""

    partition: I32
    assignment_epoch: I32  # the generation in which it came to the member; commits carry it
    added_later: bool  # it did not exist when the group first subscribed: starts at its beginning


@dataclass(frozen=True, slots=True)
class AssignedTopic:
    """What the member shall read of one topic."""

    topic: str
    topic_id: bytes
    partitions: tuple[AssignedPartition, ...]


@dataclass(frozen=True, slots=True)
class MovedPartitions:
    """Partitions of one topic and whom they went to."""

    topic: str
    partitions: tuple[I32, ...]
    client_id: str


@dataclass(frozen=True, slots=True)
class Rebalance:
    """One rebalance that has ended, for the logs of the members (C14)."""

    generation: I32
    reason: str  # member joined, member left, session timed out, topics changed, ...
    took_ms: Count
    moved: tuple[MovedPartitions, ...]  # nothing moved: whose all partitions are; a bounded number
    more: Count  # partitions that are not listed


@dataclass(frozen=True, slots=True)
class HeartbeatResponse:
    """What the member shall own now: all of it, each time."""

    member_epoch: I32  # rises with every change of ``assigned``
    generation: I32  # of the group; rises with every change of its members or topics
    interval_ms: Count  # how long the member may wait before it is heard of again
    assigned: tuple[AssignedTopic, ...]
    stable: bool  # no partition of the group is on its way
    members: Count  # of the group
    partitions: Count  # that the group reads
    rebalances: tuple[Rebalance, ...]  # that ended since ``told_generation``, oldest first


# ── committed offsets ────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class CommitPartition:
    """The next offset to be read of one partition."""

    topic_id: bytes
    partition: I32
    offset: Count
    leader_epoch: I32  # of the record before ``offset``, -1: not known
    timestamp: I64  # event time of that record, -1: not known
    append_time: I64  # of that record, -1: not known
    assignment_epoch: I32  # as assigned; -1 without a member
    metadata: str  # at most 4,096 bytes


@dataclass(frozen=True, slots=True)
class CommitOffsetsRequest:
    """Store offsets: each for itself, those that are stored are stored together."""

    group: str
    member_id: str  # "" from outside the group
    partitions: tuple[CommitPartition, ...]


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What became of one."""

    topic_id: bytes
    partition: I32
    error: WireError | None  # T042: it is another member's now
    offset: I64  # what is committed now, -1: nothing


@dataclass(frozen=True, slots=True)
class CommitOffsetsResponse:
    """One result per partition, in the request's order. Durable when it is answered."""

    results: tuple[CommitResult, ...]


@dataclass(frozen=True, slots=True)
class FetchOffsetsRequest:
    """What is committed. T036 until the coordinator has loaded: never a wrong "nothing"."""

    group: str
    partitions: tuple[OwnedPartitions, ...] | None  # nil: all that the group has committed


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    """One partition of a group."""

    topic_id: bytes
    partition: I32
    offset: I64  # -1: nothing was ever committed
    leader_epoch: I32
    timestamp: I64
    append_time: I64
    committed_at: I64  # ms since the epoch, -1
    metadata: str


@dataclass(frozen=True, slots=True)
class FetchOffsetsResponse:
    """In the request's order; sorted if all were asked. An unknown group has committed nothing."""

    offsets: tuple[CommittedOffset, ...]


# ── administration ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """One group in a list."""

    name: str
    state: str  # empty, assigning or stable
    members: Count
    generation: I32
    topics: tuple[str, ...]
    coordinator: str  # broker id
    lag_records: Count
    lag_ms: I64 | None  # nil: not known
    drain_ms: I64 | None  # until it has caught up at the present rates; nil: it never does
    verdict: str  # ok, warn or stalled


@dataclass(frozen=True, slots=True)
class AssignedPartitionName:
    """A partition by its topic's name."""

    topic: str
    partition: I32


@dataclass(frozen=True, slots=True)
class MemberDescription:
    """One member of a group."""

    member_id: str
    instance_id: str | None
    client_id: str
    host: str
    version: str  # of its software
    assigned: tuple[AssignedPartitionName, ...]
    last_heartbeat: I64  # ms since the epoch


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """How far a group is with one partition."""

    topic: str
    partition: I32
    committed: I64 | None
    committed_at: I64 | None
    metadata: str
    log_start: I64
    log_end: I64  # the last stable offset
    member_id: str | None
    lag_records: Count
    lag_ms: I64 | None  # how long the oldest unread record has been waiting; nil: not known
    rate_milli: Count  # thousandths of a record per second, over the window of the verdict
    verdict: str
    margin_ms: I64 | None  # until unread records expire at the present rates; nil: never


@dataclass(frozen=True, slots=True)
class ListGroupsRequest:
    """Every group."""

    local: bool = False  # a broker asks: of those that the answering one coordinates


@dataclass(frozen=True, slots=True)
class ListGroupsResponse:
    """Sorted by name."""

    groups: tuple[GroupSummary, ...]


@dataclass(frozen=True, slots=True)
class DescribeGroupRequest:
    """One group with its members and partitions. T043 if it does not exist."""

    group: str


@dataclass(frozen=True, slots=True)
class DescribeGroupResponse:
    """See the shapes of the SDK."""

    summary: GroupSummary
    members: tuple[MemberDescription, ...]
    partitions: tuple[PartitionProgress, ...]


@dataclass(frozen=True, slots=True)
class OffsetTarget:
    """Where a group shall go on."""

    topic_id: bytes
    partition: I32
    offset: Count


@dataclass(frozen=True, slots=True)
class ResetOffsetsRequest:
    """Move committed offsets: all of them or none. T043, T044 with members, T041 outside a log."""

    group: str
    targets: tuple[OffsetTarget, ...]
    dry_run: bool  # only say what would change


@dataclass(frozen=True, slots=True)
class OffsetMove:
    """One committed offset, before and after."""

    topic: str
    partition: I32
    before: I64 | None
    after: I64


@dataclass(frozen=True, slots=True)
class ResetOffsetsResponse:
    """In the order asked."""

    moves: tuple[OffsetMove, ...]


@dataclass(frozen=True, slots=True)
class DeleteGroupRequest:
    """Forget a group and what it committed. T043, T044 with members."""

    group: str


@dataclass(frozen=True, slots=True)
class DeleteGroupResponse:
    """It is gone."""
