"""A membership in memory: the test says what the coordinator would, and sees what it is told."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import anyio.lowlevel

from tailrace.client.commits import CommitPoint, Committed
from tailrace.client.member import Listener, MemberOptions
from tailrace.client.membership import Assignment
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tests.client.fake_broker import Topic


class FakeMember:
    """See the module. Takes the place of ``Member`` in ``holdings``."""

    last: "FakeMember"  # the newest one

    def __init__(self, client: "Client", options: MemberOptions, listener: Listener) -> None:
        FakeMember.last = self
        self.options = options
        self.listener = listener
        self.member_id = "fake"
        self.last_commit: int | None = None
        self.rebalancing = False
        self.trouble: str | None = None
        self.stored: dict[TopicPartition, CommitPoint] = {}
        self.requests: list[dict[TopicPartition, CommitPoint]] = []
        self.released_ones: list[TopicPartition] = []
        self.joined = 0
        self.left = 0
        self.assign_on_join: list[Assignment] = []
        self.on_store: Callable[[TopicPartition, CommitPoint], None] = lambda at, point: None
        self.refuse_with: list[TailraceError] = []  # for the next commits, look-ups or joins

    def assignment(self, topic: "Topic", partition: int = 0, *, later: bool = False) -> Assignment:
        return Assignment(topic.name, topic.topic_id, partition, 1, later)

    def known_committed(self, at: TopicPartition) -> int:
        return self.stored[at].offset if at in self.stored else -1

    async def join(self) -> None:
        await self._answer()
        self.joined += 1
        if self.assign_on_join:
            self.listener.assigned(self.assign_on_join)
        self.listener.status_changed()

    def released(self, at: TopicPartition) -> None:
        point = self.listener.committable().get(at)
        if point is not None:
            self.store({at: point})
        self.released_ones.append(at)

    def commit_soon(self) -> None:
        """Later than any test waits."""

    async def commit(
        self, points: Mapping[TopicPartition, CommitPoint], metadata: str = "", *, lower: bool
    ) -> None:
        await self._answer()
        self.requests.append(dict(points))
        self.store(points)

    async def committed(
        self, partitions: Iterable[TopicPartition], *, timeout: float
    ) -> dict[TopicPartition, Committed | None]:
        await self._answer()
        found: dict[TopicPartition, Committed | None] = {}
        for at in partitions:
            point = self.stored.get(at)
            found[at] = None if point is None else Committed(point.offset, -1, -1, -1, 0, "")
        return found

    async def leave(self, *, for_good: bool = False) -> None:
        await anyio.lowlevel.checkpoint()
        self.store(self.listener.committable())
        self.left += 1

    def store(self, points: Mapping[TopicPartition, CommitPoint]) -> None:
        """Commit these, without what is committed already."""
        for at, point in points.items():
            if point.offset > self.known_committed(at):
                self.on_store(at, point)
                self.stored[at] = point

    async def _answer(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.refuse_with:
            raise self.refuse_with.pop(0)
