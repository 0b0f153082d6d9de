"""``Consumer``: records out of topics, in the order of each partition.

What users are promised is in docs/clients.md; what stands behind it is in ``feed.py``, and for a
member of a group in ``holdings.py``. Without a group a consumer reads fixed partitions, or all of
its topics, and commits nothing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Literal, Self, Unpack

from tailrace.client.codecs import CodecSpec
from tailrace.client.consumer_options import DecodePolicy, OfGroups, check_options
from tailrace.client.feed import Feed
from tailrace.client.offsets import time_of
from tailrace.client.reading import BatchReader, RecordReader, Source
from tailrace.client.records import At, K, Record, V
from tailrace.client.shapes import ConsumerHealth
from tailrace.client.streams import PartitionsReader, PartitionStream
from tailrace.protocol import texts_client, texts_config
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.client.holdings import Holdings
    from tailrace.client.partition_buffer import PartitionBuffer
    from tailrace.client.policy import ErrorPolicy

__all__ = ["Consumer", "PartitionStream"]


class Consumer(Generic[K, V]):
    """Made by ``client.consumer``; use it as ``async with client.consumer("orders") as consumer``.

    Read it in one way: ``async for``, ``batches()``, ``partitions()`` or ``run()``; a second way
    is UsageError T055. Reading ends without error only by ``idle_timeout`` or ``stop_at_end``; it
    waits through outages, and raises

    - DecodeError T060 or CorruptBatch T035 at a record that cannot be handed out; the position
      stays there until ``seek``, reading on tries the same record again;
    - OffsetOutOfRange T041 where the position is outside the log, by ``on_out_of_range``;
    - TopicNotFound T010 if the topic was deleted, ConnectError T005 after ``max_outage``;
    - with a group: PartitionLost T040, once, where a partition went to another member before all
      that was handed out was committed (``run`` logs it); GroupFenced T042 if another consumer
      took over its ``instance_id``;
    - UsageError T053-T055 for misuse, after ``aclose`` too.

    Cancelling a wait loses nothing: the next call returns the record that was waited for.

    With a group and ``commit="after"`` a record (a batch) is processed when the next one is asked
    for; ``run`` has its own rule. What is processed is committed every ``commit_interval``, when a
    partition goes, and on close. The one in hand is never committed by itself, not by ``break``
    either: it comes again.
    """

    def __init__(
        self,
        client: "Client",
        topics: Sequence[str],
        *,
        group: str | None,
        partitions: Sequence[TopicPartition] | None,
        start: At,
        key: CodecSpec[K],
        value: CodecSpec[V],
        isolation: Literal["read_committed", "read_uncommitted"],
        on_out_of_range: Literal["raise", "earliest", "latest"],
        on_decode_error: DecodePolicy,
        dead_letter: str | None,
        prefetch_bytes: int,
        fetch_wait: float,
        idle_timeout: float | None,
        stop_at_end: bool,
        close_timeout: float,
        **of_groups: Unpack[OfGroups],
    ) -> None:
        """See ``Client.consumer``. Raises ConfigError T082, InvalidName T013."""
        self._options = check_options(
            topics,
            group=group,
            partitions=partitions,
            start=start,
            key=key,
            value=value,
            isolation=isolation,
            on_out_of_range=on_out_of_range,
            on_decode_error=on_decode_error,
            dead_letter=dead_letter,
            prefetch_bytes=prefetch_bytes,
            fetch_wait=fetch_wait,
            idle_timeout=idle_timeout,
            stop_at_end=stop_at_end,
            close_timeout=close_timeout,
            of_groups=of_groups,
        )
        self._client = client
        self.feed = Feed(client, self._options)
        self._source: Source | None = None
        self._records: RecordReader[K, V] | None = None
        self._by_partition = False
        client.attach_consumer(self)

    async def __aenter__(self) -> Self:
        """Find the partitions and where to start; with a group join it and learn them.

        Raises TopicNotFound T010, PartitionNotFound T011, RequestTimeout T034 if that could not be
        learnt within ``request_timeout``; with a group GroupConfigMismatch T070 and ConfigError
        T082 for what the broker refuses. Nothing is fetched before somebody reads.
        """
        await self.feed.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.aclose()
        except TailraceError as error:
            if exc is None:
                raise
            exc.add_note(f"also failed: {type(error).__name__}: {error}")

    async def aclose(self) -> None:
        """Stop reading; whoever waits gets UsageError T055, a partition stream ends.

        With a group: commits what is processed (C12) and leaves, within ``close_timeout``. Safe to
        call again. Raises PartitionLost T040 for what was processed too late to be committed, and
        what the producer of dead letters raises when it closes. Cancelled: 2 s more, shielded.
        """
        if self.feed.closed:
            return
        try:
            await self.feed.close()
        finally:
            self._client.detach(self)

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def __aiter__(self) -> AsyncIterator[Record[K, V]]:
        """Records one by one. A loop that was left may be entered again: it goes on."""
        return self.records("async for")

    def batches(self, *, max_records: int = 500, max_wait: float = 0.2) -> BatchReader[K, V]:
        """Batches of one partition each, never empty.

        One is handed out when ``max_records`` are there, ``max_wait`` seconds after its first
        record came, or when no more fit into ``prefetch_bytes``. Reading its columns builds no
        ``Record``: the fastest way to consume.
        """
        self.feed.read_as("batches()")
        return BatchReader[K, V](self.feed, self._whole, max_records=max_records, max_wait=max_wait)

    def partitions(self) -> PartitionsReader[K, V]:
        """A stream for each partition, to be read by a task of its own.

        After the last partition it waits until all streams have ended. With a group it goes on:
        a partition that goes ends its stream, one that comes has a new one. Can be called once.
        """
        self.feed.read_as("partitions()")
        if self._by_partition:  # each buffer has one reader
            raise texts_client.partitions_again()
        self._by_partition = True
        return PartitionsReader[K, V](self.feed)

    async def run(
        self,
        handler: Callable[[Record[K, V]], Awaitable[None]],
        *,
        in_flight: int = 64,
        order: Literal["key", "partition", "none"] = "key",
        on_error: "ErrorPolicy | None" = None,
        drain_timeout: float = 30.0,
        signals: bool = True,
    ) -> None:
        """Call ``handler`` with every record, up to ``in_flight`` of them at a time.

        ``order``: records of one key (one partition) are handled one after the other, while up to
        16 times ``in_flight`` are read ahead; a record without a key waits for none. ``on_error``:
        see ``tailrace.retry``; None raises the first exception and cancels the other handlers. On
        SIGTERM or SIGINT (in the main thread, if ``signals``) it takes no more records, gives what
        is in flight ``drain_timeout`` seconds to finish, and returns; a second signal ends it at
        once. When reading ends it waits for what is in flight. Cancelled: the handlers are
        cancelled too.

        With a group only the contiguous finished records of each partition are committed. Of a
        partition that is withdrawn it finishes what was begun, and what lies before that; what
        took longer than ``rebalance_timeout`` is logged (T040), and is handled again elsewhere.
        After a signal it commits, leaves the group and closes the consumer.
        """
        from tailrace.client.run import Run, run

        this = Run(self.feed, handler, on_error, order, in_flight)
        records: RecordReader[K, V] = self.records("run()")
        await run(this, records, signals=signals, drain_timeout=drain_timeout)
        if this.drained and self.feed.group is not None:
            await self.aclose()

    def records(self, kind: str) -> RecordReader[K, V]:
        """The reader of single records, for ``async for``, ``run()`` and ``tailrace.sync``."""
        self.feed.read_as(kind)
        if self._records is None:
            self._records = RecordReader(self.feed, self._whole)
        return self._records

    def _whole(self) -> Source:
        """All partitions, for the one reader."""
        if self._source is None:
            kind = self.feed.read_by or ""
            source = self._source = Source(self.feed, list(self.feed.buffers.values()), kind)
            self.feed.on_assigned(source.add, lambda buffer: None)
        return self._source

    # ── positions ────────────────────────────────────────────────────────────────────────────

    async def seek(self, partition: TopicPartition, to: int | At) -> None:
        """Hand out the record at offset ``to`` next, or the first one appended at that time.

        An offset outside the log is noticed when it is read. Raises ConfigError T082 for a
        negative offset or a naive datetime, UsageError T055 if the partition is not assigned.
        Cancelled: the position has not moved.
        """
        await self.feed.open()
        buffer = self.feed.buffer(partition)
        if isinstance(to, int):
            if isinstance(to, bool) or to < 0:
                raise texts_config.bad_argument(
                    "to",
                    to,
                    call="consumer.seek()",
                    expected="an offset from 0 on",
                    hint="Use 'earliest', 'latest' or a datetime to seek by time.",
                )
            offset = to
        else:
            time_of(to, call="consumer.seek()", key="to")
            offset = (await self.feed.offsets([partition], to))[partition]
        self.feed.jumped()
        buffer.seek(offset)
        self.feed.moved(buffer)

    def pause(self, *partitions: TopicPartition) -> None:
        """Hand out nothing of these (none given: of any) until ``resume``.

        What was fetched ahead of them is dropped, and fetched again then; meanwhile the others
        have their share of ``prefetch_bytes``.
        """
        for buffer in self._chosen(partitions):
            buffer.pause()
        self.feed.jumped()
        self.feed.dropped()

    def resume(self, *partitions: TopicPartition) -> None:
        """Go on with these (none given: with all) where they were paused."""
        for buffer in self._chosen(partitions):
            buffer.resume()
            self.feed.moved(buffer)

    def _chosen(self, partitions: Sequence[TopicPartition]) -> "list[PartitionBuffer]":
        self.feed.check()
        if not partitions:
            return list(self.feed.buffers.values())
        return [self.feed.buffer(partition) for partition in partitions]

    def position(self, partition: TopicPartition) -> int:
        """The offset of the next record to be handed out."""
        return self.feed.buffer(partition).position

    def lag(self) -> dict[TopicPartition, int]:
        """Records not handed out yet, as of the last fetch; without those not fetched yet."""
        self.feed.check()
        lags = {at: buffer.lag for at, buffer in self.feed.buffers.items()}
        return {at: lag for at, lag in lags.items() if lag is not None}

    @property
    def assignment(self) -> frozenset[TopicPartition]:
        """The partitions it reads; empty before ``async with``. With a group they come and go."""
        return frozenset(self.feed.buffers)

    def health(self) -> ConsumerHealth:
        """How it is doing; asks nobody, never fails, also after the end."""
        return self.feed.health()

    # ── commits: with a group only ───────────────────────────────────────────────────────────

    async def commit(
        self, offsets: Mapping[TopicPartition, int] | None = None, *, metadata: str = ""
    ) -> None:
        """Commit these next offsets, None: all that was handed out; durable when it returns.

        During ``run`` None means what is finished. ``metadata``: at most 4,096 bytes, kept with
        the offsets. Raises PartitionLost T040 for partitions that went to another member (once),
        ConfigError T082 for a lower offset than the committed one, UsageError T055 without a group
        or for a partition that is not assigned, RequestTimeout T034. Cancelled: it may be stored.
        """
        await self._group("commit()").calls.commit(offsets, metadata)

    async def committed(self) -> dict[TopicPartition, int | None]:
        """The committed offset of each assigned partition, None: nothing yet.

        Raises RequestTimeout T034, UsageError T055 without a group.
        """
        return await self._group("committed()").committed()

    def _group(self, call: str) -> "Holdings":
        if self.feed.options.group is None:
            raise texts_client.no_group(call)
        self.feed.check_use()
        assert self.feed.group is not None
        return self.feed.group
