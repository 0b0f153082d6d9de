"""The consumer of the synchronous client (``sync.py``).

A hop between threads costs about as much as a thousand records: records come over in windows, of
about a millisecond of the caller's work. Invariants:

- what is held here counts as not handed out: ``position`` does not see it, ``seek`` and ``pause``
  give it back, an interrupted call leaves it for the next one;
- any number of threads may read: each record goes to one of them;
- with a group, a record is processed when the thread it went to asks for the next one. One whose
  thread has ended is not processed: it comes again.
"""

import signal
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar, overload

import anyio
import anyio.to_thread

from tailrace.client import consumer as async_consumer, streams
from tailrace.client.commits import CommitPoint
from tailrace.client.feed import Feed
from tailrace.client.partition_buffer import PartitionBuffer
from tailrace.client.policy import ErrorPolicy
from tailrace.client.portal import Portal, close_after
from tailrace.client.reading import BatchReader, RecordReader
from tailrace.client.records import At, Batch as AsyncBatch, K, Record, Slice, V
from tailrace.client.run import Run, in_main_thread, run
from tailrace.client.shapes import ConsumerHealth
from tailrace.protocol.shapes import TopicPartition

Item = TypeVar("Item")
Loaded = tuple[PartitionBuffer, list[Item]]


class _Held(Generic[Item]):
    """An iterator over what a reader on the loop hands out, several items at a time.

    With a group it is the ``Holder`` of what it took from there.
    """

    def __init__(
        self,
        portal: Portal,
        feed: Feed,
        reader: RecordReader[Any, Any] | BatchReader[Any, Any],
        load: Callable[[], Awaitable[Loaded[Item]]],
        offset_of: Callable[[Item], int],
    ) -> None:
        self._portal = portal
        self._feed = feed
        self._load = load
        self._offset_of = offset_of
        self._items: deque[Item] = deque()
        self._items_lock = threading.Lock()
        self._loading_lock = threading.Lock()
        self._buffer: PartitionBuffer | None = None
        self._position = 0  # of the buffer, behind the items
        group = feed.options.group
        self._grouped = group is not None
        self._timed = group is not None and group.max_processing is not None
        self._hands: dict[threading.Thread, tuple[PartitionBuffer, Item, float]] = {}
        self._gone: set[PartitionBuffer] = set()  # withdrawn, and some thread has one of them
        self._left_behind: dict[PartitionBuffer, int] = {}  # the lowest offset of ended threads
        if self._grouped:
            reader.holder = self
        feed.on_jump(self.give_back)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        self._portal.check()
        if self._grouped:
            return self._next_in_hand()
        while True:
            with self._items_lock:
                if self._items:
                    return self._items.popleft()
            self._load_more()

    def _load_more(self) -> None:
        """Or raise StopIteration."""
        with self._loading_lock:
            if not self._items and not self._portal.call(self._fill):
                raise StopIteration

    async def _fill(self) -> bool:
        """On the loop. False: reading has ended."""
        try:
            buffer, items = await self._load()
        except StopAsyncIteration:
            return False
        with self._items_lock:
            self._items.extend(items)
            self._buffer, self._position = buffer, buffer.position
        return True

    def give_back(self) -> None:
        """On the loop: what nobody took yet is handed out again."""
        with self._items_lock:
            if self._items and self._buffer is not None:
                self._buffer.rewind(self._offset_of(self._items[0]), self._position)
                self._feed.fetcher.consider(self._buffer)
            self._items.clear()

    # ── with a group: what is in hand ────────────────────────────────────────────────────────

    def _next_in_hand(self) -> Item:
        """The next one; what this thread had is processed."""
        thread, since = threading.current_thread(), 0.0
        if self._timed:
            since = self._feed.client.clock.now()
        while True:
            with self._items_lock:
                if self._gone:
                    self._put_down(thread)
                if self._items:
                    item = self._items.popleft()
                    assert self._buffer is not None
                    self._hands[thread] = self._buffer, item, since
                    return item
                self._hands.pop(thread, None)
            self._load_more()

    def _put_down(self, thread: threading.Thread) -> None:
        """Something was withdrawn that a thread had in hand: this one, perhaps."""
        had = self._hands.pop(thread, None)
        group = self._feed.group
        if had is not None and had[0] in self._gone and group is not None:
            self._portal.tell(group.look)
        self._gone &= {buffer for buffer, _, _ in self._hands.values()}

    def unprocessed(self, buffer: PartitionBuffer) -> CommitPoint | None:
        """See ``Holder``; on the loop."""
        with self._items_lock:
            for thread, (of, item, _) in list(self._hands.items()):
                if not thread.is_alive():
                    del self._hands[thread]
                    self._leave_behind(of, self._offset_of(item))
            items = [item for of, item, _ in self._hands.values() if of is buffer]
            if self._items and self._buffer is buffer:
                items.append(self._items[0])
        offsets = [self._offset_of(item) for item in items]
        if buffer in self._left_behind:
            offsets.append(self._left_behind[buffer])
        return buffer.point(min(offsets)) if offsets else None

    def _leave_behind(self, buffer: PartitionBuffer, offset: int) -> None:
        here = self._feed.buffers
        for old in list(self._left_behind):
            if here.get(old.at) is not old and old.stored is None:  # released, or lost
                del self._left_behind[old]
        self._left_behind[buffer] = min(self._left_behind.get(buffer, offset), offset)

    def busy_since(self, buffer: PartitionBuffer) -> float | None:
        """See ``Holder``; on the loop."""
        with self._items_lock:
            hands = list(self._hands.items())
        since = (since for t, (of, _, since) in hands if of is buffer and t.is_alive())
        return min(since, default=None)

    def withdrawn(self, buffer: PartitionBuffer) -> None:
        """See ``Holder``: what was held of it has been given back."""
        with self._items_lock:
            if any(of is buffer for of, _, _ in self._hands.values()):
                self._gone.add(buffer)


def _offset_of_record(record: Record[Any, Any]) -> int:
    return record.offset


def _offset_of_batch(batch: AsyncBatch[Any, Any]) -> int:
    return batch.first_offset


class Batch(AsyncBatch[K, V]):
    """Records of one partition; see ``tailrace.Batch``."""

    __slots__ = ("_portal",)

    def __init__(self, portal: Portal, batch: AsyncBatch[K, V]) -> None:
        super().__init__(batch.topic, batch.partition, batch.slices, batch.next_offset)
        self.committer = batch.committer
        self._portal = portal

    def commit(self) -> None:  # type: ignore[override]  # sync where the base is async, on purpose
        """Commit ``next_offset``; returns when that is durable."""
        self._portal.call(super().commit)

    @overload
    def __getitem__(self, index: int) -> Record[K, V]: ...
    @overload
    def __getitem__(self, index: slice) -> "Batch[K, V]": ...
    def __getitem__(self, index: int | slice) -> "Record[K, V] | Batch[K, V]":
        found = super().__getitem__(index)
        assert isinstance(found, Record | Batch)
        return found

    def like(self, slices: Sequence[Slice], next_offset: int) -> "Batch[K, V]":
        """Other records of the same partition, from the same consumer."""
        return Batch(self._portal, super().like(slices, next_offset))


class PartitionStream(Generic[K, V]):
    """The records of one partition; ends on close. See ``tailrace.PartitionStream``."""

    def __init__(self, portal: Portal, feed: Feed, inner: streams.PartitionStream[K, V]) -> None:
        self.topic = inner.topic
        self.partition = inner.partition
        self._portal = portal
        self._feed = feed
        self._inner = inner
        self._held = _Held(portal, feed, inner.records, inner.window, _offset_of_record)

    def __iter__(self) -> Iterator[Record[K, V]]:
        return self._held

    def commit(self, next_offset: int | None = None) -> None:
        """Commit that offset, None: all that was handed out. See ``tailrace.PartitionStream``."""

        async def commit() -> None:
            self._feed.jumped()  # what is held here was not handed out
            await self._inner.commit(next_offset)

        self._portal.call(commit)


class Consumer(Generic[K, V]):
    """Use as ``with client.consumer("orders") as consumer``; see ``tailrace.Consumer``."""

    def __init__(self, portal: Portal, inner: async_consumer.Consumer[K, V]) -> None:
        self._portal = portal
        self._inner = inner
        self._records: _Held[Record[K, V]] | None = None
        self._batches: _Held[Batch[K, V]] | None = None
        self._batch_reader: BatchReader[K, V] | None = None  # of ``_batches``

    def __enter__(self) -> Self:
        """Find the partitions and where to start; raises as the asynchronous one."""
        self._portal.call(self._inner.__aenter__)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        close_after(self.close, exc)

    def close(self) -> None:
        """Stop reading; whoever waits gets UsageError T055. Safe to call again."""
        if not self._inner.feed.closed:
            self._portal.call(self._inner.aclose)

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def __iter__(self) -> Iterator[Record[K, V]]:
        """Records one by one; a loop that was left may be entered again."""

        def shared() -> _Held[Record[K, V]]:
            reader = self._inner.records("for")
            if self._records is None:
                feed = self._inner.feed
                self._records = _Held(self._portal, feed, reader, reader.window, _offset_of_record)
            return self._records

        return self._portal.run(shared)

    def batches(self, *, max_records: int = 500, max_wait: float = 0.2) -> Iterator[Batch[K, V]]:
        """Batches of one partition each, never empty; see ``tailrace.Consumer.batches``.

        All loops share one reader: each batch goes to one thread, and the newest call says how
        large they are.
        """

        def shared() -> _Held[Batch[K, V]]:
            sized = self._inner.batches(max_records=max_records, max_wait=max_wait)
            if self._batches is None:
                self._batch_reader = sized
                feed = self._inner.feed
                self._batches = _Held(self._portal, feed, sized, load, _offset_of_batch)
            elif self._batch_reader is not None:
                self._batch_reader.sized_like(sized)
            return self._batches

        async def load() -> Loaded[Batch[K, V]]:
            reader = self._batch_reader
            assert reader is not None
            batch = await reader.__anext__()
            return reader.buffer, [Batch(self._portal, batch)]

        return self._portal.run(shared)

    def partitions(self) -> Iterator[PartitionStream[K, V]]:
        """A stream for each partition, to be read by a thread of its own."""
        reader = self._portal.run(self._inner.partitions)

        async def following() -> streams.PartitionStream[K, V] | None:
            try:
                return await reader.__anext__()
            except StopAsyncIteration:
                return None

        while (stream := self._portal.call(following)) is not None:
            yield PartitionStream(self._portal, self._inner.feed, stream)

    def run(
        self,
        handler: Callable[[Record[K, V]], None],
        *,
        in_flight: int = 8,
        order: Literal["key", "partition", "none"] = "key",
        on_error: ErrorPolicy | None = None,
        drain_timeout: float = 30.0,
        signals: bool = True,
    ) -> None:
        """Call ``handler`` with every record, in up to ``in_flight`` threads at a time.

        See ``tailrace.Consumer.run``. A handler that runs cannot be interrupted: after
        ``drain_timeout`` seconds ``run`` returns without it.
        """

        async def go() -> None:
            limiter = anyio.CapacityLimiter(in_flight)

            async def handle(record: Record[K, V]) -> None:
                await anyio.to_thread.run_sync(
                    handler, record, limiter=limiter, abandon_on_cancel=True
                )

            feed = self._inner.feed
            this.append(Run(feed, handle, on_error, order, in_flight))
            records: RecordReader[K, V] = self._inner.records("run()")
            await run(this[0], records, signals=False, drain_timeout=drain_timeout)
            if this[0].drained and feed.group is not None:
                await self._inner.aclose()

        def drain() -> None:
            if this:
                this[0].drain(0.0 if drained else drain_timeout)
                drained.append(True)

        this: list[Run] = []
        drained: list[bool] = []
        with _on_signals(lambda: self._portal.tell(drain), signals and in_main_thread()):
            self._portal.call(go)

    # ── positions ────────────────────────────────────────────────────────────────────────────

    def seek(self, partition: TopicPartition, to: int | At) -> None:
        """Hand out the record at offset ``to`` next, or the first one appended at that time."""
        self._portal.call(self._inner.seek, partition, to)

    def pause(self, *partitions: TopicPartition) -> None:
        """Hand out nothing of these (none given: of any) until ``resume``.

        What was fetched ahead of them is dropped, and fetched again then.
        """
        self._portal.run(self._inner.pause, *partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        """Go on with these (none given: with all)."""
        self._portal.run(self._inner.resume, *partitions)

    def position(self, partition: TopicPartition) -> int:
        """The offset of the next record to be handed out."""
        return self._exactly(lambda: self._inner.position(partition))

    def lag(self) -> dict[TopicPartition, int]:
        """Records not handed out yet, as of the last fetch."""
        return self._exactly(self._inner.lag)

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions it reads; empty before ``with``."""
        return self._inner.assignment

    def health(self) -> ConsumerHealth:
        """How it is doing; never fails."""
        return self._inner.health()

    def commit(
        self, offsets: Mapping[TopicPartition, int] | None = None, *, metadata: str = ""
    ) -> None:
        """Commit these next offsets, None: all that was handed out; see ``tailrace.Consumer``."""

        async def commit() -> None:
            self._inner.feed.jumped()  # what is held here was not handed out
            await self._inner.commit(offsets, metadata=metadata)

        self._portal.call(commit)

    def committed(self) -> dict[TopicPartition, int | None]:
        """The committed offset of each assigned partition, None: nothing yet."""
        return self._portal.call(self._inner.committed)

    def _exactly(self, read: Callable[[], Item]) -> Item:
        """``read`` on the loop, after what is held here was given back."""

        def on_loop() -> Item:
            self._inner.feed.jumped()
            return read()

        return self._portal.run(on_loop)


@contextmanager
def _on_signals(heard: Callable[[], None], listen: bool) -> Generator[None]:
    """Call ``heard`` at SIGTERM and SIGINT while the body runs."""
    if not listen:
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)

    def hear(number: int, frame: object) -> None:
        heard()

    before = [signal.signal(number, hear) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
