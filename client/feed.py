"""What stands behind a consumer: its partitions, their buffers, and what to do with bad records.

``Consumer`` is the face of it; the readers (``reading.py``) take records out of it.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal
from weakref import WeakMethod

import anyio

from tailrace.client.codecs import Undecodable
from tailrace.client.consumer_options import ConsumerOptions, GroupOptions
from tailrace.client.dead_letters import DeadLetters
from tailrace.client.fetcher import Fetcher
from tailrace.client.guard import Guard
from tailrace.client.metrics import instruments
from tailrace.client.offsets import list_offsets, partition_of
from tailrace.client.partition_buffer import Budget, PartitionBuffer
from tailrace.client.records import At, Record
from tailrace.client.shapes import ConsumerHealth
from tailrace.protocol import texts_client, texts_group
from tailrace.protocol.errors import OffsetOutOfRange, TailraceError
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.client.holdings import Holdings
    from tailrace.client.reading import Source

State = Literal["starting", "ok", "rebalancing", "reconnecting", "stalled", "closed"]
OnBuffer = Callable[[PartitionBuffer], None]
_log = logging.getLogger("tailrace.client")


class Feed:
    """See the module."""

    def __init__(self, client: "Client", options: ConsumerOptions) -> None:
        self.client = client
        self.options = options
        self.buffers: dict[TopicPartition, PartitionBuffer] = {}
        self.group: Holdings | None = None  # from ``open`` on, where there is one
        self.dead_letters = DeadLetters(client, options.group.name if options.group else None)
        self.read_by: str | None = None  # "async for", "batches()" … : one for ever
        self.last_record: int | None = None  # when records were last handed out
        self.skipped = 0  # older records that start='latest' left out
        self.sources: list[Source] = []
        self._on_jump: list[WeakMethod[Callable[[], None]]] = []
        self._guard: Guard | None = None
        budget = Budget(options.prefetch_bytes)
        self._budget = budget
        explain = None if options.group is None else self._explain
        self.fetcher = Fetcher(client, options.fetch, budget, self._changed, explain)
        self._takers: list[tuple[OnBuffer, OnBuffer]] = []
        self._joining: anyio.Event | None = None

    # ── opening and closing ──────────────────────────────────────────────────────────────────

    @property
    def opened(self) -> bool:
        """Whether the partitions are known."""
        return self._guard is not None

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._guard is not None and self._guard.closed

    async def open(self) -> None:
        """Find the partitions and where to start, or join the group and learn them.

        Nothing is fetched before somebody reads. Raises what ``Member.join`` raises, TopicNotFound
        T010, PartitionNotFound T011, RequestTimeout T034 and what ``Client`` raises. Cancelled: it
        may be called again.
        """
        if self._guard is not None:
            self._guard.check()
            return
        self.client.check()
        if self.options.group is not None:
            await self._join(self.options.group)
            return
        ids: dict[TopicPartition, bytes] = {}
        if self.options.partitions is None:
            for topic in self.options.topics:
                metadata = await self.client.cluster.topic(topic)
                for one in metadata.partitions:
                    ids[TopicPartition(topic, one.partition)] = metadata.topic_id
        else:
            for at in self.options.partitions:
                metadata = await self.client.cluster.topic(at.topic)
                partition_of(metadata, at.partition)
                ids[TopicPartition(*at)] = metadata.topic_id
        positions = await self.offsets(ids, self.options.start)
        if self.options.start == "latest":
            starts = await self.offsets(ids, "earliest")
            self.skipped = sum(positions[at] - starts[at] for at in ids)
        ends = await self.offsets(ids, "latest") if self.options.stop_at_end else None
        if self._guard is None:  # another task may have been faster
            self._guard = Guard("Consumer")
            for at, topic_id in ids.items():
                stop = None if ends is None else ends[at]
                self.add(at, topic_id, positions[at], stop=stop)

    async def _join(self, group: GroupOptions) -> None:
        """Once, also if several tasks ask for it."""
        from tailrace.client.holdings import Holdings

        while self._joining is not None:
            await self._joining.wait()
        if self._guard is not None:
            self._guard.check()
            return
        for topic in self.options.topics:  # a typo is a typo, whatever the group reads
            await self.client.cluster.topic(topic)
        self._joining = anyio.Event()
        holdings = Holdings(self, group, close_timeout=self.options.close_timeout)
        try:
            await holdings.open()
            self.group = holdings
        finally:
            if self.group is None:
                holdings.abandon()
                self.remove(list(self.buffers.values()))
            self._joining.set()
            self._joining = None
        if self.closed:  # meanwhile
            await holdings.close()
            raise texts_client.already_closed("Consumer")
        self._guard = Guard("Consumer")

    def add(
        self, at: TopicPartition, topic_id: bytes, position: int, *, stop: int | None
    ) -> PartitionBuffer:
        """Read this partition too, from there on and up to ``stop``."""
        buffer = PartitionBuffer(
            at, topic_id, position, codecs=self.options.codecs, budget=self._budget
        )
        buffer.stop = stop
        self.buffers[at] = buffer
        self.fetcher.add(buffer)
        for take, _ in self._takers:
            take(buffer)
        return buffer

    def remove(self, buffers: Sequence[PartitionBuffer]) -> None:
        """Read these no more."""
        self.jumped()
        for buffer in buffers:
            del self.buffers[buffer.at]
            self.fetcher.remove(buffer)
            if buffer.source is not None:
                buffer.source.remove(buffer)
            for _, leave in self._takers:
                leave(buffer)
        self.dropped()

    def dropped(self) -> None:
        """What was at hand of some is not any more: there is more room for the others."""
        if self.sources:
            self.fetcher.pump()

    async def offsets(
        self, partitions: Mapping[TopicPartition, object] | list[TopicPartition], at: At
    ) -> dict[TopicPartition, int]:
        """Of partitions by time, as this consumer's isolation sees them."""
        isolation = self.options.fetch.isolation
        return await list_offsets(self.client, partitions, at, isolation=isolation)

    async def close(self) -> None:
        """Commit by C12, leave the group, end what runs in the background. Safe to call again.

        Raises PartitionLost T040 for what was processed and could not be committed any more.
        """
        if self.closed:
            return
        if self._guard is None:
            self._guard = Guard("Consumer")
        else:
            self._guard.check()
        self._guard.close()
        self.jumped()
        self.fetcher.close()
        self.wake()
        try:
            if self.group is not None:
                await self.group.close()
        finally:
            await self.dead_letters.aclose()

    # ── checks ───────────────────────────────────────────────────────────────────────────────

    def check_use(self) -> None:
        """Raise ForkedClientError T053, UsageError T054 or T055 for misuse."""
        if self._guard is None:
            raise texts_client.not_open("Consumer")
        self._guard.check()

    def check(self) -> None:
        """The same, or what ended the fetching for good."""
        self.check_use()
        if self.fetcher.failure is not None:
            raise copy.copy(self.fetcher.failure)

    def read_as(self, kind: str) -> None:
        """UsageError T055 if the consumer is read in another way already."""
        if self.read_by is None:
            self.read_by = kind
        elif self.read_by != kind:
            raise texts_client.second_reader(first=self.read_by, second=kind)

    def buffer(self, at: TopicPartition) -> PartitionBuffer:
        """Of an assigned partition, else UsageError T055."""
        self.check()
        buffer = self.buffers.get(at)
        if buffer is None:
            raise texts_client.not_assigned(*at)
        return buffer

    # ── readers ──────────────────────────────────────────────────────────────────────────────

    def attach(self, source: "Source", buffers: list[PartitionBuffer]) -> None:
        """``source`` is told when these have something new."""
        if source not in self.sources:
            self.sources.append(source)
        for buffer in buffers:
            buffer.source = source

    def detach(self, source: "Source") -> None:
        """It will not be told anything any more."""
        self.sources.remove(source)

    def on_assigned(self, take: OnBuffer, leave: OnBuffer) -> None:
        """Call these with each partition that comes from now on, and with each that goes."""
        self._takers.append((take, leave))

    def on_jump(self, forget: Callable[[], None]) -> None:
        """Call a reader's method, as long as the reader lives, when what it prepared is void."""
        self._on_jump.append(WeakMethod(forget))

    def jumped(self) -> None:
        """A position moved, or something was paused: prepared records no longer count."""
        methods = [(reference, reference()) for reference in self._on_jump]
        self._on_jump = [reference for reference, forget in methods if forget is not None]
        for _, forget in methods:
            if forget is not None:
                forget()

    def _changed(self, buffer: PartitionBuffer | None) -> None:
        if buffer is None:
            self.wake()
        elif buffer.source is not None and self.buffers.get(buffer.at) is buffer:
            buffer.source.arrived(buffer)

    def wake(self) -> None:
        """Everybody who waits looks again."""
        for source in self.sources:
            source.wake()

    def moved(self, buffer: PartitionBuffer) -> None:
        """After a seek or resume."""
        self.jumped()
        self._changed(buffer)
        self.fetcher.consider(buffer)

    # ── records that cannot be handed out ────────────────────────────────────────────────────

    def stall(self, buffer: PartitionBuffer, error: TailraceError) -> None:
        """A record in the way is about to be raised."""
        buffer.stalled = error
        topic, partition = buffer.at
        details = {"topic": topic, "partition": partition, "offset": buffer.position}
        self.client.events.emit("stalled", str(error), **details)

    async def undecodable(self, buffer: PartitionBuffer, found: Undecodable) -> None:
        """Deal with the record at the position by ``on_decode_error``; "raise" raises T060.

        A dead letter is durable before the position moves on. Cancelled: the record comes again.
        """
        stored, index, generation = buffer.stored, buffer.index, buffer.generation
        assert stored is not None
        error = found.error(*buffer.at, stored.offset(index))
        policy, topic = self.options.on_decode_error, self.options.dead_letter
        if policy == "raise":
            self.stall(buffer, error)
            raise error
        if topic is not None:
            await self.dead_letters.send(topic, Record(stored, index), error, 1)
        else:
            instruments.skipped("undecodable", 1)
        _log.warning(
            "%s; %s",
            error,
            "skipped" if topic is None else f"written to {topic}",
            extra={"event": "consumer.undecodable", "code": error.code},
        )
        if (buffer.stored, buffer.index, buffer.generation) == (stored, index, generation):
            buffer.step_over()

    # ── what is to be seen ───────────────────────────────────────────────────────────────────

    @property
    def settled(self) -> bool:
        """Whether no partition can come any more; while a group is open-ended, one always can."""
        return self.group is None or (self.options.stop_at_end and self.group.settled)

    def first_answers_due(self) -> bool:
        """Whether a first answer is still on its way, of a broker that seems well."""
        asked = any(b.lag is None and not b.paused for b in self.buffers.values())
        expecting = self.group is not None and self.group.expecting
        return (asked or expecting) and self.fetcher.trouble is None

    def at_end(self) -> bool:
        """Whether all that was readable at the last answers was handed out."""
        return bool(self.buffers) and all(buffer.lag == 0 for buffer in self.buffers.values())

    def tell_quiet_end(self) -> None:
        """Log T072 (C17)."""
        positions = [(at.topic, at.partition, b.position) for at, b in self.buffers.items()]
        name = self.options.group.name if self.options.group else None
        notice = texts_group.at_the_end(positions, group=name, skipped=self.skipped)
        level = logging.WARNING if self.skipped else logging.INFO
        _log.log(level, "%s", notice, extra={"event": "consumer.at_end", "code": notice.code})

    def health(self) -> ConsumerHealth:
        """See ``Consumer.health``."""
        lags = [buffer.lag for buffer in list(self.buffers.values())]  # any thread may ask
        known = [lag for lag in lags if lag is not None]
        state, reason = self._state(bool(known))
        return ConsumerHealth(
            state=state,
            healthy=state in ("ok", "rebalancing"),
            reason=reason,
            assigned=sorted(self.buffers),
            lag_records=sum(known) if known and len(known) == len(lags) else None,
            last_record=self.last_record,
            last_commit=None if self.group is None else self.group.member.last_commit,
        )

    def _state(self, heard: bool) -> tuple[State, str | None]:
        stalled = next((b.stalled for b in list(self.buffers.values()) if b.stalled), None)
        fetcher, client, group = self.fetcher, self.client.health(), self.group
        trouble = fetcher.trouble
        if group is not None:
            trouble = trouble or group.member.trouble or group.trouble
        if self.closed or client.state == "closed":
            return "closed", None
        if fetcher.failure is not None:
            return "stalled", str(fetcher.failure)
        if stalled is not None:
            return "stalled", str(stalled)
        if client.state == "reconnecting" or trouble is not None:
            return "reconnecting", trouble or client.reason
        if group is not None and not group.settled:
            return "rebalancing", "partitions are on their way"
        if not heard and (group is None or self.buffers):
            return "starting", None
        return "ok", None

    async def _explain(self, buffer: PartitionBuffer, error: OffsetOutOfRange) -> OffsetOutOfRange:
        return error if self.group is None else await self.group.explain(buffer, error)
