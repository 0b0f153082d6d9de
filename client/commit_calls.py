"""What users ask to be committed, and ``commit_interval=0``; the rest is the member's business.

Invariant: nothing is committed under another assignment than it was read under.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio

from tailrace.client.commits import CommitPoint
from tailrace.client.holding import Holding
from tailrace.client.metrics import instruments
from tailrace.client.partition_buffer import PartitionBuffer, point_after
from tailrace.client.records import Batch
from tailrace.client.retry import Backoff
from tailrace.protocol import texts_client, texts_config
from tailrace.protocol.errors import PartitionLost, TailraceError, TopicNotFound
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.feed import Feed
    from tailrace.client.holdings import Holdings


class CommitCalls:
    """Of one consumer."""

    def __init__(self, feed: "Feed", holdings: "Holdings") -> None:
        self.used = False  # somebody commits by hand
        self._feed = feed
        self._holdings = holdings

    async def commit(self, offsets: Mapping[TopicPartition, int] | None, metadata: str) -> None:
        """See ``Consumer.commit``. What can be committed is, also if something was lost."""
        late = self._begin(None if offsets is None else list(offsets))
        points: dict[Holding, CommitPoint] = {}
        if offsets is None:
            # Of what ``run`` handed out only what is finished: it goes on with the rest meanwhile.
            running = self._feed.read_by == "run()"
            for holding in self._holdings.all():
                point = holding.processed if running else holding.handed_out
                if point is not None and point.offset > holding.stands_at:
                    points[holding] = point
        else:
            for at, offset in offsets.items():
                if late is None or at not in late.offsets:
                    holding = self._holding(at)
                    points[holding] = holding.point(_checked(offset))
        try:
            await self._store(points, metadata, lower=offsets is not None)
        except TailraceError as error:
            if not (offsets is None and self._told_gone(error)):
                if late is not None:
                    error.add_note(str(late))
                raise
        if late is not None:
            raise late

    def _told_gone(self, error: TailraceError) -> bool:
        """Whether a topic is gone, and reading has told of it: what else there was is stored."""
        failure = self._feed.fetcher.failure
        return isinstance(error, TopicNotFound) and isinstance(failure, TopicNotFound)

    async def commit_batch(self, buffer: PartitionBuffer, batch: Batch[Any, Any]) -> None:
        """See ``Batch.commit``."""
        if late := self._begin([buffer.at]):
            raise late
        holding = self._holding(buffer.at, buffer)
        point = holding.point(batch.next_offset)
        if len(batch):  # its records may not be at hand any more
            epoch = point.assignment_epoch
            point = point_after(batch[-1], batch.next_offset)._replace(assignment_epoch=epoch)
        await self._store({holding: point}, "", lower=False)

    async def commit_of(self, buffer: PartitionBuffer, next_offset: int | None) -> None:
        """See ``PartitionStream.commit``."""
        if late := self._begin([buffer.at]):
            raise late
        holding = self._holding(buffer.at, buffer)
        point = holding.handed_out if next_offset is None else holding.point(_checked(next_offset))
        await self._store({holding: point}, "", lower=next_offset is not None)

    async def before_next(self) -> None:
        """``commit_interval=0``; waits through outages, like reading.

        What it finds lost is told to whoever reads that (``Losses``), which may be another stream.
        """
        backoff = Backoff(self._feed.client.random)
        while points := {
            holding: point
            for holding in self._holdings.all()
            if (point := holding.processed) is not None and point.offset > holding.stands_at
        }:
            try:
                await self._send(points, "", lower=False)
            except TailraceError as error:
                lost = isinstance(error, PartitionLost)
                if not lost and (not error.retriable or error.code == "T005"):
                    raise
                instruments.retried(error.code)
                await anyio.sleep(backoff.next())
            self._feed.check()

    def _begin(self, partitions: list[TopicPartition] | None) -> PartitionLost | None:
        """What was lost before, of some partitions or of all, is told now."""
        self._feed.check_use()
        self.used = True
        return self._holdings.losses.take(partitions)

    def _holding(self, at: TopicPartition, buffer: PartitionBuffer | None = None) -> Holding:
        """Of a partition, and of no later assignment than the one ``buffer`` belongs to."""
        holding = self._holdings.find(at)
        if holding is not None and (buffer is None or holding.buffer is buffer):
            return holding
        raise texts_client.not_assigned(*at)

    async def _store(
        self, points: Mapping[Holding, CommitPoint], metadata: str, *, lower: bool
    ) -> None:
        if not points:
            return
        try:
            await self._send(points, metadata, lower=lower)
        except PartitionLost as error:
            for holding in points:
                holding.told = holding.told or holding.buffer.at in error.offsets
            self._holdings.losses.take(error.offsets)
            raise

    async def _send(
        self, points: Mapping[Holding, CommitPoint], metadata: str, *, lower: bool
    ) -> None:
        by_name = {holding.buffer.at: point for holding, point in points.items()}
        await self._holdings.member.commit(by_name, metadata, lower=lower)
        for holding, point in points.items():
            holding.sent = max(holding.sent, point.offset)
            if holding.leaving and point.offset >= holding.buffer.position:
                holding.told = True  # nothing is left that could be lost
        self._holdings.look()


def _checked(offset: int) -> int:
    """ConfigError T082 for what is no offset."""
    if isinstance(offset, bool) or offset < 0:
        raise texts_config.bad_argument(
            "offsets",
            offset,
            call="consumer.commit()",
            expected="an offset from 0 on",
            hint="It is the next offset to read: record.offset + 1.",
        )
    return offset
