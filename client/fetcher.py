"""Keeps the buffers of a consumer filled: asks the leaders of its partitions for more.

There is no loop. ``pump`` decides, without waiting, which partitions want more and may have it,
and starts one short task per request; each answer, each batch taken by the reader, each seek and
resume calls ``pump`` again. Invariants:

- a partition is in at most one request whose answer still counts;
- all requests together may bring no more than the budget leaves (C5);
- a partition at its end waits in a long poll, which holds up no other partition: those that want
  more meanwhile get a request of their own, and the last one a broker may be sent is kept short;
- what fails is asked again after a pause, from the offset where it stopped (C11); only what will
  not pass by waiting ends the consumer.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anyio

from tailrace.client.errands import Errands
from tailrace.client.metrics import instruments
from tailrace.client.offsets import partition_of
from tailrace.client.partition_buffer import Budget, PartitionBuffer
from tailrace.client.retry import Backoff
from tailrace.protocol import texts, texts_client
from tailrace.protocol.errors import OffsetOutOfRange, TailraceError, from_wire
from tailrace.protocol.messages import FetchPartition, FetchRequest, FetchResponse, FetchResult
from tailrace.protocol.units import format_count

if TYPE_CHECKING:
    from tailrace.client.client import Client

PARTITION_BYTES_MAX = 1 << 20  # of one answer
PARTITIONS_MAX = 1_000  # of one request (safety 9.1)
REQUESTS_MAX = 4  # to one broker at a time
LAST_WAIT_S = 0.1  # the wait of the last of them
_LEADER_CHANGED = ("T001", "T010", "T032", "T033", "T034", "T037", "T045")
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

    leader: str
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
        self._requests: dict[str, int] = {}  # under way, by broker
        self._locating: set[str] = set()
        self._backoffs: dict[str, Backoff] = {}
        self._errands = Errands(client)
        self._closed = False
        instruments.begin()

    def add(self, buffer: PartitionBuffer) -> None:
        """Fetch this one too, from the next ``pump`` on."""
        self._buffers.setdefault(buffer.at.topic, []).append(buffer)
        self._wanting[buffer] = None

    def remove(self, buffer: PartitionBuffer) -> None:
        """Ask for it no more; an answer that is under way is dropped, the others' are not."""
        buffer.give_up()
        self._buffers[buffer.at.topic].remove(buffer)
        self._wanting.pop(buffer, None)

    def consider(self, buffer: PartitionBuffer) -> None:
        """Some of it was taken, or it was sought or resumed: it may want more now."""
        if buffer.wants(PARTITION_BYTES_MAX):
            self._wanting[buffer] = None
        if self._wanting:
            self.pump()

    def pump(self) -> None:
        """Start every request that is wanted and allowed now."""
        if self._closed or self.failure is not None or not self._budget.next_fetch_bytes():
            return
        by_leader: dict[str, list[PartitionBuffer]] = {}
        for buffer in list(self._wanting):
            if not buffer.wants(PARTITION_BYTES_MAX):
                del self._wanting[buffer]
            elif buffer.leader is None:
                self._locate(buffer.at.topic)
            else:
                by_leader.setdefault(buffer.leader, []).append(buffer)
        for leader, buffers in by_leader.items():
            self._ask(leader, buffers)

    def close(self) -> None:
        """Stop asking; answers under way are dropped."""
        self._closed = True
        self._errands.close()
        for buffers in self._buffers.values():
            for buffer in buffers:
                buffer.drop()

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    def _ask(self, leader: str, buffers: list[PartitionBuffer]) -> None:
        under_way = self._requests.get(leader, 0)
        bytes_max = self._budget.next_fetch_bytes()
        if under_way >= REQUESTS_MAX or bytes_max == 0:
            return
        wait_s = self._options.wait_s
        if under_way == REQUESTS_MAX - 1 or len(buffers) > PARTITIONS_MAX:
            wait_s = min(wait_s, LAST_WAIT_S)
        chosen = buffers[:PARTITIONS_MAX]
        if any(buffer.end is None for buffer in chosen):
            wait_s = 0.0  # the first answer tells how far there is to go
        for buffer in chosen:
            del self._wanting[buffer]
            buffer.in_flight = True
        asked = tuple((buffer, buffer.generation) for buffer in chosen)
        self._requests[leader] = under_way + 1
        self._budget.reserved += bytes_max
        self._errands.start(self._fetch, _Question(leader, asked, bytes_max, wait_s))

    async def _fetch(self, question: _Question) -> None:
        clock = self._client.clock
        try:
            link = self._client.cluster.link(question.leader, "fetch")
            if link is None:
                raise texts_client.no_broker([(question.leader, "left the cluster")], elapsed_s=0.0)
            channel = await link.get()
            began = clock.now()
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
            self._requests[question.leader] -= 1
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
                    leader_epoch=-1,
                    last_fetched_epoch=-1,
                    flushed_end=-1,
                )
                for buffer, _ in question.buffers
            ),
        )

    def _answered(
        self, question: _Question, response: FetchResponse, body: memoryview, took_s: float
    ) -> None:
        self.trouble = None
        brought, place = False, 0
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
            # A view would keep the whole answer alive, as long as one partition is not read.
            mine = part if len(response.results) == 1 else memoryview(bytes(part))
            self._take(buffer, result, mine, question.leader)
            (fed if part else quiet).append(buffer)
        for buffer in (*quiet, *fed):  # those that got nothing are served first next time
            self._wanting.pop(buffer, None)
            self._wanting[buffer] = None
        if not brought and took_s < question.wait_s / 2:
            # The broker did not wait as it was asked to: do not ask in a tight loop.
            self._rest(quiet, question.leader)
        elif all(result.error is None for result in response.results):
            self._backoffs.pop(question.leader, None)

    def _take(
        self, buffer: PartitionBuffer, result: FetchResult, part: memoryview, leader: str
    ) -> None:
        committed = self._options.isolation != 0
        end = result.last_stable_offset if committed else result.high_watermark
        buffer.take_answer(part, end=end, broker=leader, now=self._client.clock.now())
        if part:
            self._on_change(buffer)

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────

    def _failed(self, question: _Question, error: TailraceError) -> None:
        """The request as a whole."""
        if not error.retriable or error.code == "T005":
            self.fail(error)
            return
        self.trouble = error.message
        instruments.retried(error.code)
        live = question.live()
        for buffer in live:
            self._forget_leader(buffer)
        self._rest(live, question.leader)

    def refused(self, buffer: PartitionBuffer, error: TailraceError) -> None:
        """One partition of it."""
        if error.code in _LEADER_CHANGED:
            instruments.retried(error.code)
            leader = buffer.leader or ""
            self._forget_leader(buffer)
            self._rest([buffer], leader)
        elif isinstance(error, OffsetOutOfRange) and self._explain is not None:
            buffer.in_flight = True
            self._errands.start(self._out_of_range, buffer, buffer.generation, error)
        elif isinstance(error, OffsetOutOfRange):
            self._moved_or_failed(buffer, error)
        elif error.retriable:
            instruments.retried(error.code)
            self.trouble = error.message
            self._rest([buffer], buffer.leader or "")
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

    def _forget_leader(self, buffer: PartitionBuffer) -> None:
        buffer.leader = None
        self._client.cluster.invalidate(buffer.at.topic)

    def _rest(self, buffers: list[PartitionBuffer], leader: str) -> None:
        """Ask for these again after a pause."""
        if not buffers:
            return
        backoff = self._backoffs.setdefault(leader, Backoff(self._client.random))
        for buffer in buffers:
            buffer.in_flight = True
            self._wanting.pop(buffer, None)
        asked = tuple((buffer, buffer.generation) for buffer in buffers)
        self._errands.start(self._wake_later, _Question(leader, asked, 0, backoff.next()))

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
        backoff = Backoff(self._client.random)
        try:
            while lost := [b for b in self._buffers[topic] if b.leader is None]:
                try:
                    metadata = await self._client.cluster.topic(topic)
                    for buffer in lost:
                        if buffer.topic_id != metadata.topic_id:
                            broker = self._client.cluster.cluster_id
                            raise texts.topic_id_not_found(buffer.topic_id, broker=broker)
                        buffer.leader = partition_of(metadata, buffer.at.partition).leader
                except TailraceError as error:
                    if not error.retriable or error.code == "T005":
                        self.fail(error)
                        return
                    self.trouble = error.message
                    instruments.retried(error.code)
                if all(buffer.leader is not None for buffer in lost):
                    break
                self._client.cluster.invalidate(topic)
                await anyio.sleep(backoff.next())
        finally:
            self._locating.discard(topic)
        self.pump()
