"""Requests to a group, and a coordinator that writes at once."""

from collections.abc import Iterable

from tailrace.broker.group import Group
from tailrace.broker.group_members import GroupSettings, Who
from tailrace.broker.group_topics import TopicShape, TopicShapes
from tailrace.protocol.messages import (
    CommitOffsetsRequest,
    CommitPartition,
    HeartbeatRequest,
    HeartbeatResponse,
    OwnedPartitions,
)

HELLO, WORLD = b"hello".ljust(16), b"world".ljust(16)
NOW_MS = 1_763_690_000_000


def shapes(hello: int = 4, world: int = 0) -> TopicShapes:
    topics = {"hello": TopicShape(HELLO, hello), "world": TopicShape(WORLD, world)}
    return TopicShapes({name: shape for name, shape in topics.items() if shape.partitions})


def new_group(
    topics: TopicShapes | None = None, *, members_max: int = 1_000, assign_delay_s: float = 0
) -> Group:
    settings = GroupSettings("b1", members_max, assign_delay_s=assign_delay_s)
    return Group("app", settings, topics or shapes())


def request(
    member_id: str,
    epoch: int = 0,
    *,
    owned: Iterable[int] = (),
    topics: tuple[str, ...] = ("hello",),
    instance_id: str | None = None,
    session_ms: int = 10_000,
    rebalance_ms: int = 60_000,
    told: int = -1,
) -> HeartbeatRequest:
    numbers = tuple(owned)
    return HeartbeatRequest(
        group="app",
        member_id=member_id,
        member_epoch=epoch,
        instance_id=instance_id,
        topics=topics,
        owned=(OwnedPartitions(HELLO, numbers),) if numbers else (),
        session_timeout_ms=session_ms,
        rebalance_timeout_ms=rebalance_ms,
        wait_ms=3_000,
        told_generation=told,
    )


def who(member_id: str) -> Who:
    return Who(f"client of {member_id}", "10.0.0.7", "1.2")


def send(group: Group, one: HeartbeatRequest, now: float = 0.0) -> HeartbeatResponse:
    """A heartbeat that is answered as soon as what it changed is written."""
    group.heartbeat(now, one, who(one.member_id))
    group.written = group.changes
    return group.answer(one)


def numbers_of(answer: HeartbeatResponse) -> list[int]:
    return [one.partition for topic in answer.assigned for one in topic.partitions]


def settle(group: Group, *members: str, now: float = 0.0) -> dict[str, HeartbeatResponse]:
    """Everybody does as told, until nothing is on its way. The last answers."""
    answers: dict[str, HeartbeatResponse] = {}
    for _ in range(3):
        for member in members:
            answers[member] = send(group, request(member, group.members[member].epoch), now)
    assert group.stable
    return answers


def commit(
    partition: int, offset: int, since: int, *, metadata: str = "", topic_id: bytes = HELLO
) -> CommitPartition:
    return CommitPartition(topic_id, partition, offset, 3, 1_000, 2_000, since, metadata)


def commits(member_id: str, *partitions: CommitPartition) -> CommitOffsetsRequest:
    return CommitOffsetsRequest("app", member_id, partitions)
