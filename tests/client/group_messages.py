"""Identities and answers for the tests of memberships: one topic, partitions by number."""

from collections.abc import Iterable, Mapping

from tailrace.client.membership import Identity
from tailrace.protocol.messages import (
    AssignedPartition,
    AssignedTopic,
    HeartbeatRequest,
    HeartbeatResponse,
    Rebalance,
)

TOPIC_ID = b"t" * 16


def identity(instance_id: str | None = None) -> Identity:
    """Of a member with a session of 9 s: a heartbeat every 3 s."""
    return Identity("g", "m1", instance_id, ("orders",), 9_000, 30_000)


def answer(
    epoch: int,
    partitions: Iterable[int] | Mapping[int, int] = (),
    *,
    stable: bool = True,
    members: int = 1,
    rebalances: tuple[Rebalance, ...] = (),
    interval_ms: int = 3_000,
) -> HeartbeatResponse:
    """``partitions``: numbers, or assignment epochs by number (else 1)."""
    epochs = partitions if isinstance(partitions, Mapping) else dict.fromkeys(partitions, 1)
    assigned = tuple(AssignedPartition(number, since, False) for number, since in epochs.items())
    topics = (AssignedTopic("orders", TOPIC_ID, assigned),) if assigned else ()
    return HeartbeatResponse(epoch, epoch, interval_ms, topics, stable, members, 4, rebalances)


def owned(request: HeartbeatRequest) -> list[int]:
    """The partitions that a heartbeat reports."""
    return [number for topic in request.owned for number in topic.partitions]
