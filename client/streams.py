"""Partition by partition: a stream for each, to be read by a task of its own.

Invariants:
- a stream ends when its partition goes to another member, and on close; it is not used again: if
  the partition comes back, that is a new stream;
- the reader of streams ends only when nothing more can come: not while a group may assign more.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, Self

import anyio
import anyio.lowlevel

from tailrace.client.reading import RecordReader, Source
from tailrace.client.records import K, Record, T, V
from tailrace.protocol import texts_client
from tailrace.protocol.errors import UsageError

if TYPE_CHECKING:
    from tailrace.client.feed import Feed
    from tailrace.client.partition_buffer import PartitionBuffer


class PartitionStream(Generic[K, V]):
    """The records of one partition; ends on revoke and on close. One reader.

    Its next record raises PartitionLost T040, once, if the partition went to another member before
    all that was handed out of it was committed.
    """

    def __init__(self, feed: "Feed", buffer: "PartitionBuffer", on_end: Callable[[], None]) -> None:
        self.topic, self.partition = buffer.at
        self.ended = False
        self.buffer = buffer
        self._feed = feed
        self._on_end = on_end
        source = Source(feed, [buffer], "async for over a PartitionStream", one=True)
        self.records: RecordReader[K, V] = RecordReader(feed, lambda: source)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record[K, V]:
        """The next record of the partition; raises what stands in its way (see ``Consumer``)."""
        return await self._ending(self.records.__anext__)

    async def window(self) -> "tuple[PartitionBuffer, list[Record[K, V]]]":
        """See ``RecordReader.window``."""
        return await self._ending(self.records.window)

    async def _ending(self, read: Callable[[], Awaitable[T]]) -> T:
        try:
            return await read()
        except StopAsyncIteration:
            self.end()
            raise
        except UsageError as error:
            if error.code != "T055" or not self._feed.closed:
                raise
            self.end()
            raise StopAsyncIteration from None

    async def commit(self, next_offset: int | None = None) -> None:
        """Commit that offset, None: all that was handed out. See ``Consumer.commit``."""
        group = self._feed.group
        if group is None:
            raise texts_client.no_group("commit()")
        await group.calls.commit_of(self.buffer, next_offset)

    def end(self) -> None:
        """Nothing more comes."""
        self.ended = True
        self._on_end()


class PartitionsReader(Generic[K, V]):
    """Each partition when it is assigned (``Consumer.partitions``)."""

    def __init__(self, feed: "Feed") -> None:
        self._feed = feed
        self._streams: dict[PartitionBuffer, PartitionStream[K, V]] = {}
        self._left: list[PartitionBuffer] = []
        self._source: Source | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PartitionStream[K, V]:
        """The next stream.

        Without a group: after the last one it waits until all of them have ended. With one it
        ends by ``idle_timeout`` (no stream that could bring a record for so long), or by
        ``stop_at_end`` when all streams have ended and no partition is on its way.
        """
        feed = self._feed
        await feed.open()
        await anyio.lowlevel.checkpoint()
        source = self._source
        if source is None:
            source = self._source = Source(feed, [], "partitions()")
            self._left = list(feed.buffers.values())
            feed.on_assigned(self._left.append, self._withdrawn)
        while True:
            feed.check()
            if self._left:
                buffer = self._left.pop(0)
                stream = PartitionStream[K, V](feed, buffer, source.wake)
                self._streams[buffer] = stream
                return stream
            self._streams = {b: stream for b, stream in self._streams.items() if not stream.ended}
            if self._streams:
                await source.news()
            elif source.ended or not await source.wait():
                raise StopAsyncIteration

    def _withdrawn(self, buffer: "PartitionBuffer") -> None:
        """It goes to another member, or went there."""
        if buffer in self._left:
            self._left.remove(buffer)
        elif (stream := self._streams.get(buffer)) is not None:
            stream.end()
