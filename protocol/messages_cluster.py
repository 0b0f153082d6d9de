"""Requests and responses that move leaders and copies between the brokers of a cluster.

They follow the rules of ``messages.py``, through which the rest of the house imports them.
"""

from dataclasses import dataclass

from tailrace.protocol.fields import I32, I64, Count, WireError


@dataclass(frozen=True, slots=True)
class PartitionRange:
    """One partition of a topic, or all of them."""

    topic: str
    partition: I32 | None  # nil: all


@dataclass(frozen=True, slots=True)
class ConfirmedLeader:
    """An election that somebody saw (with ``dry_run``) and said yes to."""

    topic: str
    partition: I32
    leader: str  # LeaderMove.after
    leader_epoch: I32
    log_end: I64


@dataclass(frozen=True, slots=True)
class ElectLeadersRequest:
    """Give partitions another leader: the preferred one, or one that may lack something."""

    partitions: tuple[PartitionRange, ...]  # none: all of the cluster, if not ``unclean``
    unclean: bool  # of partitions without a leader: whoever has the most; may lose records
    dry_run: bool  # say what would be done
    confirmed: tuple[ConfirmedLeader, ...] | None  # these or nothing; nil: nobody was asked


@dataclass(frozen=True, slots=True)
class LeaderMove:
    """One partition that gets, or cannot get, another leader."""

    topic: str
    partition: I32
    error: WireError | None  # why it stays as it is
    before: str | None
    after: str | None
    leader_epoch: I32
    log_end: I64  # of an unclean leader: what was acknowledged beyond it is lost; else -1
    missing: tuple[str, ...]  # brokers that may hold acknowledged records beyond it


@dataclass(frozen=True, slots=True)
class ElectLeadersResponse:
    """Partitions that are not as they shall be; none for those that are."""

    moves: tuple[LeaderMove, ...]


@dataclass(frozen=True, slots=True)
class ReassignRequest:
    """Put copies of partitions on other brokers. It goes on after the answer."""

    partitions: tuple[PartitionRange, ...]
    brokers: tuple[str, ...] | None  # the preferred leader first; nil: they are chosen
    replicas: I32 | None  # how many, if they are chosen; nil: as many as there are
    cancel: bool  # stay with the copies that are complete
    dry_run: bool


@dataclass(frozen=True, slots=True)
class ReplicaMove:
    """One partition that is not yet, or would not be, where it was."""

    topic: str
    partition: I32
    before: tuple[str, ...]  # brokers that hold a copy, or fill one
    after: tuple[str, ...]  # those that are wanted, the preferred leader first
    filling: tuple[str, ...]  # of those: the ones that are not in sync
    down: tuple[str, ...]  # of those: the ones that are not up, and fill nothing until they are


@dataclass(frozen=True, slots=True)
class ReassignResponse:
    """What is changed, or would be."""

    moves: tuple[ReplicaMove, ...]


@dataclass(frozen=True, slots=True)
class DrainBrokerRequest:
    """Take everything off a broker for good, or no longer."""

    broker_id: str
    cancel: bool
    dry_run: bool


@dataclass(frozen=True, slots=True)
class DrainBrokerResponse:
    """How far it is. Asking again is safe."""

    broker_id: str
    draining: bool
    leads: Count  # partitions, still
    holds: Count  # partitions, still
    moves: tuple[ReplicaMove, ...]  # of partitions that it holds: with ``dry_run`` as they would be
    stuck: tuple[PartitionRange, ...]  # no other broker is there to take them


@dataclass(frozen=True, slots=True)
class DescribeMovesRequest:
    """Which copies are on their way, and off which brokers."""


@dataclass(frozen=True, slots=True)
class DescribeMovesResponse:
    """By topic and partition; none: everything is where it shall be."""

    moves: tuple[ReplicaMove, ...]
    drains: tuple[str, ...]  # broker ids


@dataclass(frozen=True, slots=True)
class DescribeReplicasRequest:
    """How far each copy of partitions is."""

    partitions: tuple[PartitionRange, ...]
    local: bool  # one broker asks another: of its own copies alone


@dataclass(frozen=True, slots=True)
class ReplicaDescription:
    """One copy, as its broker has it."""

    topic: str
    partition: I32
    broker_id: str
    last_epoch: I32  # of its last batch; -1: it has none
    log_start: I64
    log_end: I64
    high_watermark: I64


@dataclass(frozen=True, slots=True)
class DescribeReplicasResponse:
    """Copies of brokers that answered in time."""

    replicas: tuple[ReplicaDescription, ...]
