"""Keeps the buffers of a consumer filled: asks the leaders of its partitions for more.

There is no loop. ``pump`` decides, without waiting, which partitions want more and may have it,
and starts one short task per request; each answer, each batch taken by the reader, each seek and
resume calls ``pump`` again. Invariants:

- a partition is in at most one request whose answer still counts;
- all requests together may bring no more than the budget leaves (C5);
- a partition at its end waits in a long poll, which holds up no other partition: those that want
  more meanwhile get a request of their own, and the last one a broker may be sent is kept short;
- what fails is asked again after a pause, from the offset where it stopped (C11); only what will
  not pass by waiting ends the consumer;
- a partition whose leader has moved is asked for there at once: what the old one still owes no
  longer counts.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import anyio

from tailrace.client.errands import Errands
from tailrace.client.metrics import instruments
from tailrace.client.offsets import partition_of
from tailrace.client.partition_buffer import Budget, PartitionBuffer
from tailrace.client.retry import DOUBTFUL, LEADER_LIMIT_S, Backoff, fails_over, passes
from tailrace.protocol import texts
from tailrace.protocol.errors import OffsetOutOfRange, TailraceError, from_wire
from tailrace.protocol.limits import PARTITIONS_PER_REQUEST_MAX
from tailrace.protocol.messages import (
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchResult,
    TopicMetadata,
)
from tailrace.protocol.units import format_count

if TYPE_CHECKING:
    from tailrace.client.client import Client

PARTITION_BYTES_MAX = 1 << 20  # of one answer: no broker gives more
WAITING_BYTES_MAX = 2 << 20  # of a partition, when more of it is asked for
REQUESTS_MAX = 4  # to one broker at a time
LAST_WAIT_S = 0.1  # the wait of the last of them
QUIET_TIMES = (1, 4, 12)  # as long a wait after none, one, several in vain
QUIET_WAIT_S = 60.0  # at most then
CROWDED_FROM = 4  # requests on the connection that all consumers of a client share
_LEADER_CHANGED = ("T001", "T010", "T032", "T033", "T034", "T037", "T045", "T100")
_log = logging.getLogger("tailrace.client")

OutOfRange = Literal["raise", "earliest", "latest"]
Explain = Callable[[PartitionBuffer, OffsetOutOfRange], Awaitable[OffsetOutOfRange]]


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """What a consumer asks of its fetcher."""

    isolation: int
    wait_s: float
    on_out_of_range: OutOfRange


@dataclass(frozen=True, slots=True)
class _Question:
    """One request: which buffers, as of which generation of each."""

    broker: str
    rack: str | None  # None: it is not to name a follower
    buffers: tuple[tuple[PartitionBuffer, int], ...]
    bytes_max: int
    wait_s: float

    def live(self) -> list[PartitionBuffer]:
        """Those that were not sought or paused since."""
        return [buffer for buffer, asked in self.buffers if buffer.generation == asked]


class Fetcher:
    """See the module.

    ``on_change`` is called, synchronously, when a reader should look again; ``explain`` says what
    a position outside the log means to a group.
    """

    def __init__(
        self,
        client: "Client",
        options: FetchOptions,
        budget: Budget,
        on_change: Callable[[PartitionBuffer | None], None],
        explain: "Explain | None" = None,
    ) -> None:
        self.failure: TailraceError | None = None  # for good
        self.trouble: str | None = None  # of the last attempt, None once one works
        self._client = client
        self._options = options
        self._budget = budget
        self._on_change = on_change
        self._explain = explain
        self._wanting: dict[PartitionBuffer, None] = {}  # in the order of asking: none starves
        self._buffers: dict[str, list[PartitionBuffer]] = {}  # by topic
        # Whether a ``pump`` may start what the last one could not, though no request has ended:
        # else none is worth a walk over all that want more, for every batch that is handed out.
        self._stale = True
        self._requests: dict[str, int] = {}  # under way, by broker
        self._vain = 0  # waits in a row that brought nothing
        self._locating: set[str] = set()
        self._seen: dict[str, TopicMetadata] = {}  # by topic, as ``_learnt`` has taken it in
        self._backoffs: dict[str, Backoff] = {}
        self._errands = Errands(client)
        self._closed = False
        client.cluster.watch(self._learnt)
        instruments.begin()

    def add(self, buffer: PartitionBuffer) -> None:
        """Fetch this one too, from the next ``pump`` on."""
        self._buffers.setdefault(buffer.at.topic, []).append(buffer)
        self._wanting[buffer] = None
        self._stale = True

    def remove(self, buffer: PartitionBuffer) -> None:
        """Ask for it no more; an answer that is under way is dropped, the others' are not."""
        buffer.give_up()
        self._buffers[buffer.at.topic].remove(buffer)
        self._wanting.pop(buffer, None)

    def consider(self, buffer: PartitionBuffer) -> None:
        """Some of it was taken, or it was sought or resumed: it may want more now."""
        if buffer not in self._wanting and buffer.wants(WAITING_BYTES_MAX):
            self._wanting[buffer] = None
            self._stale = True
        if self._stale and self._wanting:
            self.pump()

    def pump(self) -> None:
        """Start every request that is wanted and allowed now."""
        self._stale = not self._budget.next_fetch_bytes()
        if self._closed or self.failure is not None or self._stale:
            return
        now, rack = self._client.clock.now(), self._client.options.rack
        by_broker: dict[tuple[str, str | None], list[PartitionBuffer]] = {}
        for buffer in list(self._wanting):
            served_by = buffer.served_by
            if not buffer.wants(WAITING_BYTES_MAX):
                del self._wanting[buffer]
            elif (broker := served_by.broker(now)) is None:
                self._locate(buffer.at.topic)
            else:
                told = rack if served_by.tells_rack(now) else None
                by_broker.setdefault((broker, told), []).append(buffer)
        for (broker, told), buffers in by_broker.items():
            self._ask(broker, told, buffers)

    def close(self) -> None:
        """Stop asking; answers under way are dropped."""
        if not self._closed:
            self._client.cluster.unwatch(self._learnt)
        self._closed = True
        self._errands.close()
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer.drop()

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    def _ask(self, broker: str, rack: str | None, buffers: list[PartitionBuffer]) -> None:
        under_way = self._requests.get(broker, 0)
        bytes_max = self._budget.next_fetch_bytes()
        if under_way >= REQUESTS_MAX or bytes_max == 0:
            self._stale = self._stale or bytes_max == 0
            return
        wait_s = self._wait_s(buffers) if under_way == 0 else self._options.wait_s
        if under_way == REQUESTS_MAX - 1 or len(buffers) > PARTITIONS_PER_REQUEST_MAX:
            wait_s = min(wait_s, LAST_WAIT_S)
        chosen = buffers[:PARTITIONS_PER_REQUEST_MAX]
        if any(buffer.end is None for buffer in chosen):
            wait_s = 0.0  # the first answer tells how far there is to go
        for buffer in chosen:
            del self._wanting[buffer]
            buffer.in_flight = True
        asked = tuple((buffer, buffer.generation) for buffer in chosen)
        self._requests[broker] = under_way + 1
        self._budget.reserved += bytes_max
        self._errands.start(self._fetch, _Question(broker, rack, asked, bytes_max, wait_s))

    def _wait_s(self, buffers: Sequence[PartitionBuffer]) -> float:
        """Longer where nothing comes: it costs the broker nothing. Not where another may take
        over from it, now or when it is back, as the end of the wait is when a silence is noticed.
        """
        wait_s, cluster = self._options.wait_s, self._client.cluster
        if cluster.several or any(map(self._has_copies, {buffer.at.topic for buffer in buffers})):
            return wait_s
        times = QUIET_TIMES[min(self._vain, len(QUIET_TIMES) - 1)]
        return max(wait_s, min(wait_s * times, QUIET_WAIT_S))

    def _has_copies(self, topic: str) -> bool:
        known = self._client.cluster.known(topic)
        return known is not None and any(len(one.replicas) > 1 for one in known.partitions[:1])

    async def _fetch(self, question: _Question) -> None:
        clock, cluster = self._client.clock, self._client.cluster
        try:
            channel = await cluster.channel(question.broker, "fetch")
            if channel.in_flight >= CROWDED_FROM:  # it takes few: do not hold up the others
                wait_s = min(question.wait_s, self._options.wait_s)
                question = replace(question, wait_s=wait_s)
            began = clock.now()
            with cluster.owing(question.broker, question.wait_s):
                response, body = await channel.request(
                    self._request(question),
                    timeout=question.wait_s + self._client.options.request_timeout,
                )
            assert isinstance(response, FetchResponse)
        except TailraceError as error:
            self._failed(question, error)
        else:
            self._answered(question, response, body, clock.now() - began)
        finally:
            self._budget.reserved -= question.bytes_max
            self._requests[question.broker] -= 1
        self.pump()

    def _request(self, question: _Question) -> FetchRequest:
        each = min(PARTITION_BYTES_MAX, question.bytes_max)
        return FetchRequest(
            wait_ms=int(question.wait_s * 1000),
            bytes_min=1,
            bytes_max=question.bytes_max,
            isolation=self._options.isolation,
            replica_id=None,
            broker_epoch=-1,
            partitions=tuple(
                FetchPartition(
                    topic_id=buffer.topic_id,
                    partition=buffer.at.partition,
                    offset=buffer.fetch_offset,
                    bytes_max=each,
                    leader_epoch=buffer.served_by.leader_epoch,
                    last_fetched_epoch=-1,
                    flushed_end=-1,
                )
                for buffer, _ in question.buffers
            ),
            rack=question.rack,
        )

    def _answered(
        self, question: _Question, response: FetchResponse, body: memoryview, took_s: float
    ) -> None:
        self.trouble = None
        brought, place, now = False, 0, self._client.clock.now()
        quiet, fed = list[PartitionBuffer](), list[PartitionBuffer]()
        for (buffer, asked), result in zip(question.buffers, response.results, strict=True):
            part = body[place : place + result.length]
            place += result.length
            brought = brought or bool(part) or result.error is not None
            if buffer.generation != asked:
                continue
            buffer.in_flight = False
            if result.error is not None:
                self.refused(buffer, from_wire(result.error))
                continue
            near = result.preferred_replica
            if near is not None and question.rack:
                if near in self._client.cluster.brokers:
                    buffer.served_by.go_near(near, now)
                else:
                    buffer.served_by.leave_near(now)
                self._wanting[buffer] = None
                brought = True
                continue
            # A view would keep the whole answer alive, as long as one partition is not read.
            mine = part if len(response.results) == 1 else memoryview(bytes(part))
            self._take(buffer, result, mine, question.broker)
            (fed if part else quiet).append(buffer)
        for buffer in (*quiet, *fed):  # those that got nothing are served first next time
            self._wanting.pop(buffer, None)
            self._wanting[buffer] = None
        waited = took_s >= question.wait_s / 2
        if brought:
            self._vain = 0
        elif question.wait_s >= self._options.wait_s and waited:
            self._vain += 1
        if not brought and not waited:
            # The broker did not wait as it was asked to: do not ask in a tight loop.
            self._rest(quiet, question.broker)
        elif all(result.error is None for result in response.results):
            self._backoffs.pop(question.broker, None)

    def _take(
        self, buffer: PartitionBuffer, result: FetchResult, part: memoryview, broker: str
    ) -> None:
        committed = self._options.isolation != 0
        end = result.last_stable_offset if committed else result.high_watermark
        buffer.take_answer(part, end=end, broker=broker, now=self._client.clock.now())
        if part:
            self._on_change(buffer)

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────

    def _failed(self, question: _Question, error: TailraceError) -> None:
        """The request as a whole."""
        if not passes(error, several=self._client.cluster.several) or error.code == "T005":
            self.fail(error)
            return
        self.trouble, self._vain = error.message, 0
        instruments.retried(error.code)
        if error.code in DOUBTFUL:
            self._client.cluster.doubt(question.broker)
        live = [buffer for buffer in question.live() if not self._left_near(buffer)]
        for buffer in live:
            buffer.in_flight = True  # until it has rested
            self._forget_leader(buffer)
            self._locate(buffer.at.topic)
        self._rest(live, question.broker)

    def refused(self, buffer: PartitionBuffer, error: TailraceError) -> None:
        """One partition of it."""
        if self._left_near(buffer):
            return
        leader = buffer.served_by.leader or ""
        if error.code in _LEADER_CHANGED or fails_over(error, several=self._client.cluster.several):
            instruments.retried(error.code)
            if error.code in DOUBTFUL:
                self._client.cluster.doubt(leader)
            buffer.in_flight = True
            self._forget_leader(buffer)
            if error.code != "T010":  # a topic that is new may not be known there yet
                self._locate(buffer.at.topic)
            self._rest([buffer], leader)
        elif isinstance(error, OffsetOutOfRange) and self._explain is not None:
            buffer.in_flight = True
            self._errands.start(self._out_of_range, buffer, buffer.generation, error)
        elif isinstance(error, OffsetOutOfRange):
            self._moved_or_failed(buffer, error)
        elif error.retriable:
            instruments.retried(error.code)
            self.trouble = error.message
            self._rest([buffer], leader)
        else:
            buffer.failure = error
            self._on_change(buffer)

    async def _out_of_range(
        self, buffer: PartitionBuffer, generation: int, error: OffsetOutOfRange
    ) -> None:
        assert self._explain is not None
        error = await self._explain(buffer, error)
        if buffer.generation == generation:
            buffer.in_flight = False
            self._moved_or_failed(buffer, error)
            self.pump()

    def _moved_or_failed(self, buffer: PartitionBuffer, error: OffsetOutOfRange) -> None:
        """C18: go on elsewhere, and say what that skips; or raise it."""
        policy = self._options.on_out_of_range
        if policy == "raise":
            buffer.failure = error
            self._on_change(buffer)
            return
        target = error.start if policy == "earliest" else error.end
        lost = max(0, target - error.requested)
        _log.warning(
            "%s; on_out_of_range='%s' moves on to %s: %s records lost",
            texts.error_summary(error),
            policy,
            format_count(target),
            format_count(lost),
            extra={"event": "consumer.out_of_range", "code": error.code},
        )
        instruments.skipped("out_of_range", lost)
        buffer.skip_to(target)
        self._wanting[buffer] = None

    def fail(self, error: TailraceError) -> None:
        """Nothing more can be read."""
        self.failure = error
        self._on_change(None)

    def _left_near(self, buffer: PartitionBuffer) -> bool:
        """Whether it was a follower that failed: the leader is asked at once."""
        served_by = buffer.served_by
        if served_by.near is None:
            return False
        served_by.leave_near(self._client.clock.now())
        buffer.in_flight = False
        self._wanting[buffer] = None
        return True

    def _forget_leader(self, buffer: PartitionBuffer) -> None:
        buffer.served_by.forget()
        self._client.cluster.misled(buffer.at.topic)

    def _rest(self, buffers: list[PartitionBuffer], broker: str) -> None:
        """Ask for these again after a pause."""
        if not buffers:
            return
        backoff = self._backoffs.setdefault(broker, self._new_backoff())
        for buffer in buffers:
            buffer.in_flight = True
            self._wanting.pop(buffer, None)
        asked = tuple((buffer, buffer.generation) for buffer in buffers)
        self._errands.start(self._wake_later, _Question(broker, None, asked, 0, backoff.next()))

    def _new_backoff(self) -> Backoff:
        """Short pauses where somebody else may take over."""
        return Backoff(
            self._client.random, LEADER_LIMIT_S if self._client.cluster.several else None
        )

    async def _wake_later(self, question: _Question) -> None:
        await anyio.sleep(question.wait_s)
        for buffer in question.live():
            buffer.in_flight = False
            self._wanting[buffer] = None
        self.pump()

    # ── leaders ──────────────────────────────────────────────────────────────────────────────

    def _locate(self, topic: str) -> None:
        if topic not in self._locating:
            self._locating.add(topic)
            self._errands.start(self._find_leaders, topic)

    async def _find_leaders(self, topic: str) -> None:
        backoff, several = self._new_backoff(), self._client.cluster.several
        try:
            while lost := [b for b in self._buffers[topic] if b.served_by.leader is None]:
                try:
                    metadata = await self._client.cluster.topic(topic)
                    self._found(lost, metadata)
                except TailraceError as error:
                    if not error.retriable or error.code == "T005":
                        self.fail(error)
                        return
                    self.trouble = error.message
                    instruments.retried(error.code)
                if all(buffer.served_by.leader is not None for buffer in lost):
                    break
                self._client.cluster.misled(topic)
                await anyio.sleep(backoff.next_leader() if several else backoff.next())
        finally:
            self._locating.discard(topic)
        self.pump()

    def _found(self, buffers: Sequence[PartitionBuffer], metadata: TopicMetadata) -> None:
        """Whoever leads now is asked at once if it is another one than before, or leads anew."""
        told = {one.partition: one for one in metadata.partitions}
        for buffer in buffers:
            if buffer.topic_id != metadata.topic_id:
                broker = self._client.cluster.cluster_id
                raise texts.topic_id_not_found(buffer.topic_id, broker=broker)
            partition = buffer.at.partition
            one = told.get(partition) or partition_of(metadata, partition)
            if buffer.served_by.led_by(one.leader, one.leader_epoch):
                buffer.ask_anew()
                self._wanting[buffer] = None

    def _learnt(self) -> None:
        """The cluster told us something: a leader may have moved away from who is being asked."""
        if self._closed or self.failure is not None:
            return
        for topic, buffers in self._buffers.items():
            known = self._client.cluster.known(topic)
            if known is not None and known is not self._seen.get(topic):
                self._seen[topic] = known
                led = [buffer for buffer in buffers if buffer.served_by.leader is not None]
                self._found([b for b in led if b.topic_id == known.topic_id], known)
        if self._wanting:
            self.pump()
