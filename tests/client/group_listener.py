"""A listener that writes down what a membership tells it, and members for tests."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

import tailrace
from tailrace.client.client import Client
from tailrace.client.commits import CommitPoint
from tailrace.client.member import Member, MemberOptions
from tailrace.client.membership import Assignment
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import HeartbeatRequest, Rebalance
from tailrace.protocol.messages_group import LEAVE_EPOCH
from tailrace.protocol.shapes import TopicPartition

ALL = {0, 1, 2, 3}  # the partitions of "orders"


def at(partition: int) -> TopicPartition:
    """One of them."""
    return TopicPartition("orders", partition)


class Listening:
    """``Listener``: gives up at once what is withdrawn, unless told to keep it."""

    def __init__(self) -> None:
        self.member: Member
        self.client: Client
        self.has: set[int] = set()  # partitions
        self.points: dict[TopicPartition, CommitPoint] = {}
        self.keeps = False
        self.withdrawals: list[int] = []
        self.losses: list[tuple[list[int], str]] = []
        self.rebalances: list[Rebalance] = []
        self.idles: list[tuple[int, int]] = []
        self.failures: list[TailraceError] = []
        self.on_assigned: Callable[[], None] = lambda: None

    def assigned(self, partitions: Sequence[Assignment]) -> None:
        for one in partitions:
            assert one.partition not in self.has, "assigned twice"
            self.has.add(one.partition)
        self.on_assigned()

    def status_changed(self) -> None:
        """Nothing here waits for it."""

    def withdrawn(self, partitions: Sequence[TopicPartition]) -> None:
        for at in partitions:
            self.withdrawals.append(at.partition)
            if not self.keeps:
                self.release(at)

    def release(self, at: TopicPartition) -> None:
        self.has.remove(at.partition)  # first: it may come back at once
        self.member.released(at)
        self.points.pop(at, None)

    def lost(self, partitions: Sequence[TopicPartition], reason: str) -> None:
        self.losses.append(([at.partition for at in partitions], reason))
        for at in partitions:
            self.has.remove(at.partition)
            self.points.pop(at, None)

    def committable(self) -> dict[TopicPartition, CommitPoint]:
        return dict(self.points)

    def rebalanced(self, rebalance: Rebalance) -> None:
        self.rebalances.append(rebalance)

    def idle(self, partitions: int, members: int) -> None:
        self.idles.append((partitions, members))

    def failed(self, error: TailraceError) -> None:
        self.failures.append(error)


@asynccontextmanager
async def member(url: str, group: str, *topics: str, **options: Any) -> AsyncIterator[Listening]:
    """A member with a client of its own; it leaves at the end."""
    listening = Listening()
    async with tailrace.connect(url) as connected:
        listening.client = connected
        given: dict[str, Any] = {"session_timeout": 6.0, "commit_interval": None}
        listening.member = Member(
            connected, MemberOptions(group, topics, **given | options), listening
        )
        await listening.member.join()
        try:
            yield listening
        finally:
            await listening.member.leave()


async def expel(url: str, group: str, member_id: str) -> None:
    """Have somebody else say goodbye for a member: it is fenced."""
    async with tailrace.connect(url) as client:
        goodbye = HeartbeatRequest(
            group, member_id, LEAVE_EPOCH, None, (), (), 6_000, 30_000, 0, -1
        )
        await client.cluster.leader_request(None, goodbye, timeout=5.0)


async def settle(*listenings: Listening) -> None:
    """Until nothing of the group is on its way."""
    while any(one.member.rebalancing for one in listenings):  # noqa: ASYNC110 no event for it
        await anyio.sleep(0.001)
