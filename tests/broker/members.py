"""Members of consumer groups over bare connections, for tests."""

from dataclasses import dataclass, field, replace

import trio

from tailrace.protocol.errors import CoordinatorLoading
from tailrace.protocol.messages import (
    NO_EPOCH,
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    CommitPartition,
    CommitResult,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    OwnedPartitions,
)
from tests.broker.harness import Client


@dataclass
class Member:
    """One member, which owns what it was told to own last."""

    client: Client
    member_id: str
    group: str = "g"
    topics: tuple[str, ...] = ("orders",)
    instance_id: str | None = None
    session_timeout_ms: int = 10_000
    told: HeartbeatResponse | None = None
    generation: int = -1
    owned: dict[tuple[bytes, int], int] = field(default_factory=dict[tuple[bytes, int], int])

    def request(self, *, wait_ms: int = 0, epoch: int | None = None) -> HeartbeatRequest:
        if epoch is None:
            epoch = 0 if self.told is None else self.told.member_epoch
        by_topic: dict[bytes, list[int]] = {}
        for topic_id, number in sorted(self.owned):
            by_topic.setdefault(topic_id, []).append(number)
        return HeartbeatRequest(
            group=self.group,
            member_id=self.member_id,
            member_epoch=epoch,
            instance_id=self.instance_id,
            topics=self.topics,
            owned=tuple(OwnedPartitions(one, tuple(its)) for one, its in by_topic.items()),
            session_timeout_ms=self.session_timeout_ms,
            rebalance_timeout_ms=30_000,
            wait_ms=wait_ms,
            told_generation=self.generation,
        )

    def take(self, told: HeartbeatResponse) -> HeartbeatResponse:
        """Own what it was told to own."""
        self.told = told
        self.generation = max([self.generation, *(one.generation for one in told.rebalances)])
        self.owned = {
            (topic.topic_id, one.partition): one.assignment_epoch
            for topic in told.assigned
            for one in topic.partitions
        }
        return told

    async def beat(self, *, wait_ms: int = 0, epoch: int | None = None) -> HeartbeatResponse:
        request = self.request(wait_ms=wait_ms, epoch=epoch)
        return self.take((await self.client.ask(request, HeartbeatResponse))[0])

    async def leave(self) -> None:
        await self.client.ask(replace(self.request(), member_epoch=-1), HeartbeatResponse)

    async def join(self) -> HeartbeatResponse:
        """Be there, and heard of until all is stable."""
        told = await self.beat()
        while not told.stable:
            told = await self.beat(wait_ms=1_000)
        return told

    @property
    def numbers(self) -> list[int]:
        """The partitions it owns, of all topics."""
        return sorted(number for _, number in self.owned)

    async def commit(self, topic_id: bytes, partition: int, offset: int) -> CommitResult:
        since = self.owned.get((topic_id, partition), NO_EPOCH)
        return await commit(
            self.client, self.group, committing(topic_id, partition, offset, since), self.member_id
        )


def committing(
    topic_id: bytes, partition: int, offset: int, since: int = NO_EPOCH
) -> CommitPartition:
    return CommitPartition(topic_id, partition, offset, 1, -1, -1, since, "")


async def commit(
    client: Client, group: str, one: CommitPartition, member_id: str = ""
) -> CommitResult:
    request = CommitOffsetsRequest(group, member_id, (one,))
    answer, _ = await client.ask(request, CommitOffsetsResponse)
    (result,) = answer.results
    return result


async def committed(client: Client, group: str) -> dict[tuple[bytes, int], int]:
    """All that a group has committed."""
    answer, _ = await client.ask(FetchOffsetsRequest(group, None), FetchOffsetsResponse)
    return {(one.topic_id, one.partition): one.offset for one in answer.offsets}


async def loaded(client: Client, group: str) -> dict[tuple[bytes, int], int]:
    """What is committed, asked until the coordinator knows it."""
    for _ in range(1_000):
        try:
            return await committed(client, group)
        except CoordinatorLoading:
            await trio.sleep(0.001)
    raise AssertionError("it never loaded")


async def find(client: Client, group: str = "g") -> FindCoordinatorResponse:
    return (await client.ask(FindCoordinatorRequest(group), FindCoordinatorResponse))[0]
