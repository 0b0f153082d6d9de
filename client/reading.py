"""The ways to take records out of a feed: one by one and in batches (streams: ``streams.py``).

Invariants:
- what is handed out was taken after the last ``await`` of the call: a cancelled ``__anext__``
  loses nothing, the next call returns that record (C6);
- a loop over records touches the event loop when it has to wait, and otherwise once in about a
  millisecond, however long the caller takes for each record;
- partitions take turns: none waits for another to run dry;
- with a group, what was handed out last is in hand until the next is asked for (C12); within a
  window that is the record before the buffer's index, and costs nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self

import anyio
import anyio.lowlevel

from tailrace.client.codecs import Undecodable
from tailrace.client.commits import CommitPoint
from tailrace.client.progress import Holder, Loss
from tailrace.client.records import Batch, K, Record, Slice, V
from tailrace.protocol import texts_client, texts_config
from tailrace.protocol.errors import CorruptBatch, PartitionLost, TailraceError
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.feed import Feed
    from tailrace.client.partition_buffer import PartitionBuffer

QUIET_S = 10.0  # at the end of the log for so long: T072 (C17)
CHECKPOINT_S = 0.001
WINDOW_MAX = 1_024  # records handed out between two looks at the clock

_new: Callable[[Any], Any] = object.__new__


class Source:
    """Some partitions of a feed, read by one reader. With a group they come and go."""

    def __init__(
        self, feed: "Feed", buffers: "Sequence[PartitionBuffer]", kind: str, *, one: bool = False
    ) -> None:
        self.feed = feed
        self.kind = kind  # "async for", "batches()" … for error texts
        self.holder: Holder | None = None  # None: nobody has read anything yet
        self.lost: dict[TopicPartition, Loss] = {}  # what was not told yet
        self._one = one  # of one partition: it ends when that goes
        self._buffers = list(buffers)
        # In turn; ordered, as the first of a dict is found behind all that were first before.
        self._ready: OrderedDict[PartitionBuffer, None] = OrderedDict.fromkeys(buffers)
        self._event: anyio.Event | None = None  # while somebody waits
        self._quiet_since: float | None = None
        self._told_quiet = False
        self._breathed_at = 0.0  # last checkpoint
        feed.attach(self, self._buffers)

    @property
    def ended(self) -> bool:
        """Whether every partition came to the end it was to be read to."""
        done = all(buffer.finished for buffer in self._buffers)
        return done and (self._one or self.feed.settled)

    def add(self, buffer: "PartitionBuffer") -> None:
        """Read this one too."""
        self._buffers.append(buffer)
        self.feed.attach(self, [buffer])
        self.arrived(buffer)

    def remove(self, buffer: "PartitionBuffer") -> None:
        """Hand out nothing more of it; the others go on."""
        self._buffers.remove(buffer)
        self._ready.pop(buffer, None)
        if self.holder is not None:
            self.holder.withdrawn(buffer)
        self.wake()
        if self._one:
            self.feed.detach(self)

    def take_lost(self) -> PartitionLost:
        """T040 for what went to others; told once."""
        losses, self.lost = self.lost, {}
        assert self.feed.group is not None
        return self.feed.group.partition_lost(losses)

    def wake(self) -> None:
        """Whoever waits looks again."""
        if self._event is not None:
            self._event.set()

    def arrived(self, buffer: "PartitionBuffer") -> None:
        """It has something new."""
        self._ready[buffer] = None
        self.wake()

    def loaded(self) -> "Iterator[PartitionBuffer]":
        """Partitions with records at hand, in turn. Raises what stands in the way of one."""
        for buffer in list(self._ready):
            if not buffer.paused and self._load(buffer):
                yield buffer
            else:
                self._ready.pop(buffer, None)

    def first_loaded(self) -> "PartitionBuffer | None":
        """The first of them, without a look at the others; None if there is none."""
        while self._ready:
            buffer = next(iter(self._ready))
            if not buffer.paused and self._load(buffer):
                return buffer
            self._ready.pop(buffer, None)
        return None

    def _load(self, buffer: "PartitionBuffer") -> bool:
        failure: TailraceError | None
        try:
            if buffer.load():
                self.feed.fetcher.consider(buffer)
                return True
            failure = buffer.take_failure()
        except CorruptBatch as error:
            failure = error
        self.feed.fetcher.consider(buffer)
        if failure is not None:
            self.feed.stall(buffer, failure)
            raise failure
        return False

    def handed_out(self, buffer: "PartitionBuffer") -> None:
        """Records of it were: it is the next one's turn, and there is room for more."""
        if len(self._ready) > 1:
            self._ready.pop(buffer, None)
            self._ready[buffer] = None
        self._quiet_since = None
        self._told_quiet = False
        self.feed.last_record = self.feed.client.clock.wall_ms()
        self.feed.fetcher.consider(buffer)

    async def breathe(self) -> None:
        """A checkpoint, if the last one was long ago."""
        now = self.feed.client.clock.now()
        if now - self._breathed_at >= CHECKPOINT_S:
            await anyio.lowlevel.checkpoint()
            self._breathed_at = self.feed.client.clock.now()

    async def wait(self, until: float | None = None) -> bool:
        """Wait for news, or for a moment by the client's clock; False: ``idle_timeout`` is over.

        Nothing is called quiet while a first answer is due: a slow one must not look like an
        empty topic. A broker that is away is quiet, or a loop would never end.

        UsageError T055 if somebody waits already. Cancelled: nothing happened.
        """
        clock, idle_timeout = self.feed.client.clock, self.feed.options.idle_timeout
        now = clock.now()
        if self._quiet_since is None or self.feed.first_answers_due():
            self._quiet_since = now
        quiet_s = now - self._quiet_since
        if idle_timeout is not None and quiet_s >= idle_timeout:
            self._quiet_since = None  # a loop that is entered again waits anew
            return False
        if quiet_s >= QUIET_S and not self._told_quiet and self.feed.at_end():
            self._told_quiet = True
            self.feed.tell_quiet_end()
        pauses = [QUIET_S if quiet_s >= QUIET_S else QUIET_S - quiet_s]
        if idle_timeout is not None:
            pauses.append(idle_timeout - quiet_s)
        if until is not None:
            pauses.append(until - now)
        with anyio.move_on_after(max(0.0, min(pauses))):
            await self.news()
        self._breathed_at = clock.now()
        return True

    async def news(self) -> None:
        """Wait until ``wake``; UsageError T055 if somebody does already."""
        if self._event is not None:
            raise texts_client.second_reader(first=self.kind, second=self.kind)
        self._event = anyio.Event()
        try:
            await self._event.wait()
        finally:
            self._event = None


class RecordReader(Generic[K, V]):
    """Records one by one.

    ``__anext__`` hands out of a window that was prepared in one go: most calls run to their end
    without a look at the event loop, the clock or the buffers.
    """

    def __init__(self, feed: "Feed", open_source: Callable[[], Source]) -> None:
        self._feed = feed
        self._open_source = open_source
        self._source: Source | None = None
        self._left = 0  # records of the window
        self._next: Callable[[], Record[K, V]]  # while there are some
        self.buffer: PartitionBuffer  # which they are of
        self.holder: Holder | None = None  # who takes the records from here; None: who iterates
        self._in_hand: PartitionBuffer | None = None  # of which the last record is in hand
        self._kept: CommitPoint | None = None  # that record, where the buffer has jumped since
        self._window = 16
        self._window_began = 0.0
        feed.on_jump(self._forget)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Record[K, V]:
        """The next record; raises what stands in its way (see ``Consumer``)."""
        if self._left:
            self._left -= 1
            return self._next()
        return await self._advance()

    async def _advance(self) -> Record[K, V]:
        feed = self._feed
        self._in_hand = self._kept = None
        await feed.open()
        source = self._source
        if source is None:
            source = self._source = self._open_source()
            source.holder = self
        if feed.group is not None:
            await feed.group.processed()
        self._adapt_window()
        await source.breathe()
        while True:
            feed.check()
            if source.lost:
                raise source.take_lost()
            buffer = source.first_loaded()
            if buffer is not None:
                self._window_began = feed.client.clock.now()
                found = buffer.take(self._window)
                if isinstance(found, Slice):
                    break
                await feed.undecodable(buffer, found)
            elif source.ended or not await source.wait():
                raise StopAsyncIteration
        source.handed_out(buffer)
        self.buffer = self._in_hand = buffer
        self._next = _records(buffer, found).__next__
        self._left = found.stop - found.start - 1
        return self._next()

    async def window(self) -> "tuple[PartitionBuffer, list[Record[K, V]]]":
        """Whatever ``__anext__`` would hand out without waiting again, at once."""
        first = await self.__anext__()
        left, self._left = self._left, 0
        return self.buffer, [first, *(self._next() for _ in range(left))]

    # ── what is in hand ──────────────────────────────────────────────────────────────────────

    def unprocessed(self, buffer: "PartitionBuffer") -> CommitPoint | None:
        """See ``Holder``."""
        if self.holder is not None:
            return self.holder.unprocessed(buffer)
        if buffer is not self._in_hand:
            return None
        if self._kept is None:
            assert buffer.stored is not None
            return buffer.point(buffer.stored.offset(buffer.index - 1))
        return self._kept

    def busy_since(self, buffer: "PartitionBuffer") -> float | None:
        """See ``Holder``."""
        if self.holder is not None:
            return self.holder.busy_since(buffer)
        return self._window_began if buffer is self._in_hand else None

    def withdrawn(self, buffer: "PartitionBuffer") -> None:
        """See ``Holder``."""
        if self.holder is not None:
            self.holder.withdrawn(buffer)

    def _adapt_window(self) -> None:
        """As many records as the caller works off in about a millisecond."""
        group = self._feed.group
        if group is not None and group.one_by_one:
            self._window = 1
            return
        took_s = self._feed.client.clock.now() - self._window_began
        if took_s < CHECKPOINT_S / 2:
            self._window = min(self._window * 2, WINDOW_MAX)
        elif took_s > CHECKPOINT_S:
            self._window = max(self._window // 2, 1)

    def _forget(self) -> None:
        """Positions are about to jump."""
        if self._in_hand is not None and self.holder is None:
            self._kept = self.unprocessed(self._in_hand)
        self._left = 0


def _records(buffer: "PartitionBuffer", found: Slice) -> Iterator[Record[Any, Any]]:
    """The records of a slice; the buffer's position moves with each."""
    stored = found.stored
    for index in range(found.start, found.stop):
        record: Record[Any, Any] = _new(Record)
        record._stored = stored  # pyright: ignore[reportPrivateUsage]
        record._index = index  # pyright: ignore[reportPrivateUsage]
        buffer.index = index + 1
        yield record


class BatchReader(Generic[K, V]):
    """Records of one partition at a time, as many as are there (``Consumer.batches``)."""

    def __init__(
        self,
        feed: "Feed",
        open_source: Callable[[], Source],
        *,
        max_records: int,
        max_wait: float,
    ) -> None:
        call = "consumer.batches()"
        if isinstance(max_records, bool) or max_records < 1:
            raise texts_config.bad_argument(
                "max_records", max_records, call=call, expected="at least 1", hint="Example: 500"
            )
        if not max_wait >= 0:
            raise texts_config.bad_argument(
                "max_wait", max_wait, call=call, expected="seconds, 0 or more", hint="Example: 0.2"
            )
        self._feed = feed
        self._open_source = open_source
        self._source: Source | None = None
        self._max_records = max_records
        self._max_wait = max_wait
        self.buffer: PartitionBuffer  # which the last batch is of
        self.holder: Holder | None = None  # see ``RecordReader``
        self._in_hand: CommitPoint | None = None  # the batch, or what is left of it
        self._handed_out_at = 0.0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch[K, V]:
        """The next batch, never an empty one."""
        feed = self._feed
        self._in_hand = None
        await feed.open()
        source = self._source
        if source is None:
            source = self._source = self._open_source()
            source.holder = self
        if feed.group is not None:
            await feed.group.processed()
        await source.breathe()
        while True:
            feed.check()
            if source.lost:
                raise source.take_lost()
            buffer, until = self._due(source)
            if buffer is not None:
                place = None if feed.group is None else buffer.point(buffer.position)
                found = self._gather(buffer)
                if isinstance(found, Batch):
                    source.handed_out(buffer)
                    self.buffer, self._in_hand = buffer, place
                    self._handed_out_at = feed.client.clock.now()
                    return found
                if found is not None:
                    await feed.undecodable(buffer, found)
            elif (until is None and source.ended) or not await source.wait(until):
                raise StopAsyncIteration

    def sized_like(self, other: "BatchReader[K, V]") -> None:
        """From the next batch on."""
        self._max_records, self._max_wait = other._max_records, other._max_wait

    def processed(self, next_offset: int) -> None:
        """The batch in hand is done up to there; nobody needs to ask for the next one first."""
        buffer = self.buffer
        left = next_offset < buffer.position
        self._in_hand = buffer.point(next_offset) if left else None
        if self._feed.group is not None:
            self._feed.group.look()

    def unprocessed(self, buffer: "PartitionBuffer") -> CommitPoint | None:
        """See ``Holder``."""
        if self.holder is not None:
            return self.holder.unprocessed(buffer)
        return self._in_hand if self._in_hand is not None and buffer is self.buffer else None

    def busy_since(self, buffer: "PartitionBuffer") -> float | None:
        """See ``Holder``."""
        if self.holder is not None:
            return self.holder.busy_since(buffer)
        return None if self.unprocessed(buffer) is None else self._handed_out_at

    def withdrawn(self, buffer: "PartitionBuffer") -> None:
        """See ``Holder``."""
        if self.holder is not None:
            self.holder.withdrawn(buffer)

    def _due(self, source: Source) -> "tuple[PartitionBuffer | None, float | None]":
        """A partition whose batch is full or has waited long enough, else when one will have."""
        now = self._feed.client.clock.now()
        until: float | None = None
        for buffer in source.loaded():
            due = buffer.waiting_since + self._max_wait
            # One that nothing more is being fetched for will not get fuller by waiting.
            if buffer.available >= self._max_records or now >= due or not buffer.in_flight:
                return buffer, None
            until = due if until is None else min(until, due)
        return None, until

    def _gather(self, buffer: "PartitionBuffer") -> "Batch[K, V] | Undecodable | None":
        """A batch; why there is none; or None if there is nothing after all."""
        slices: list[Slice] = []
        left = self._max_records
        while left:
            try:
                if not buffer.load():
                    break
            except CorruptBatch:
                if not slices:
                    raise
                break  # what comes before it is handed out first; it will be met again
            found = buffer.take(left)
            if isinstance(found, Undecodable):
                if not slices:
                    return found
                break
            slices.append(found)
            buffer.index = found.stop
            left -= found.stop - found.start
        if not slices:
            return None
        group = self._feed.group
        commit = None if group is None else partial(group.calls.commit_batch, buffer)
        return Batch(*buffer.at, slices, buffer.position, commit)
