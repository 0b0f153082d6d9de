"""What moves between brokers, as admin calls and the command line show it, like ``shapes``."""

from dataclasses import dataclass

from tailrace.protocol.shapes import TopicPartition


@dataclass(frozen=True)
class LeaderChange:
    """One partition that ``elect_leaders`` gave another leader, or could not."""

    topic: str
    partition: int
    before: str | None  # broker id; None: nobody led it
    after: str | None  # None: it stays as it is
    leader_epoch: int  # before
    log_end: int | None  # of an unclean leader: what was acknowledged beyond it is lost
    missing: list[str]  # brokers that may hold acknowledged records beyond it
    error: str | None  # why it stays as it is


@dataclass(frozen=True)
class ReplicaMove:
    """One partition whose copies are on their way."""

    topic: str
    partition: int
    before: list[str]  # brokers that hold a copy, or fill one
    after: list[str]  # those that are wanted, the preferred leader first
    filling: list[str]  # of those: the ones that are not in sync
    down: list[str]  # of those: the ones that are not up, and fill nothing until they are


@dataclass(frozen=True)
class DrainStatus:
    """How far a broker is from holding nothing."""

    broker: str
    draining: bool
    done: bool  # it is being drained, and holds nothing any more
    leads: int  # partitions, still
    holds: int  # partitions, still
    moves: list[ReplicaMove]  # of partitions that it holds
    stuck: list[TopicPartition]  # no other broker is there to take them
