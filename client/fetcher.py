"""Keeps the buffers of a consumer filled: asks the leaders of its partitions for more.

There is no loop. ``pump`` decides, without waiting, which partitions want more and may have it,
and starts one short task per request; each answer, each batch taken by the reader, each seek and
resume calls ``pump`` again. Invariants:

- a partition is asked for once at a time: named in a request, it stands in the session with its
  broker (``fetch_session.py``) until that has told of it, and only then it is named again, or when
  it was sought, paused or led anew meanwhile;
- while something stands a request is under way, or soon (``IDLE_S``), if the budget allows one;
- all requests together may bring no more than the budget leaves (C5);
- a partition at its end waits in a long poll, which holds up no other partition: the request for
  those that want more meanwhile ends it, and waits for both (a broker that lets nothing
  stand ends none, so the last one that it may be sent waits ``LAST_WAIT_S`` at most);
- what fails is asked again after a pause, from the offset where it stopped (C11); only what will
  not pass by waiting ends the consumer;
- a partition whose leader has moved is asked for there at once: what the old one still owes no
  longer counts.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import anyio

from tailrace.client.errands import Errands
from tailrace.client.fetch_session import FetchSession
from tailrace.client.leaders import Leaders
from tailrace.client.metrics import instruments
from tailrace.client.partition_buffer import Budget, PartitionBuffer
from tailrace.client.retry import DOUBTFUL, LEADER_LIMIT_S, Backoff, fails_over, passes
from tailrace.client.served_by import NEAR_S
from tailrace.protocol import texts
from tailrace.protocol.errors import OffsetOutOfRange, TailraceError, from_wire
from tailrace.protocol.limits import PARTITIONS_PER_REQUEST_MAX, pieces
from tailrace.protocol.messages import (
    FetchPartition,
    FetchRequest,
    FetchResponse,
    FetchResult,
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
IDLE_S = 0.005  # without a request, where records are at hand
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
    """One request, which names what is to be named when it leaves."""

    session: FetchSession
    life: int
    bytes_max: int
    wait_s: float

    @property
    def counts(self) -> bool:
        """Whether the session was not begun anew since."""
        return self.session.life == self.life


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
        # Whether a ``pump`` may start what the last one could not, though no request has ended:
        # else none is worth a walk over all that want more, for every batch that is handed out.
        self._stale = True
        self._sessions: dict[tuple[str, str | None], FetchSession] = {}  # by broker and rack
        self._requests: dict[str, int] = {}  # under way, by broker
        self._vain = 0  # waits in a row that brought nothing
        self._backoffs: dict[str, Backoff] = {}
        self._errands = Errands(client)
        self._leaders = Leaders(client, self._errands, self)
        self._resting = False  # before it waits on for what stands
        self._closed = False
        instruments.begin()

    def add(self, buffer: PartitionBuffer) -> None:
        """Fetch this one too, from the next ``pump`` on."""
        self._leaders.add(buffer)
        self._wanting[buffer] = None
        self._stale = True

    def remove(self, buffer: PartitionBuffer) -> None:
        """Ask for it no more; an answer that is under way is dropped, the others' are not."""
        buffer.give_up()
        self._leaders.remove(buffer)
        self._wanting.pop(buffer, None)

    def consider(self, buffer: PartitionBuffer) -> None:
        """Some of it was taken, or it was sought or resumed: it may want more now."""
        if buffer not in self._wanting and buffer.wants(WAITING_BYTES_MAX):
            self._wanting[buffer] = None
            self._stale = True
        if self._stale and (self._wanting or self._sessions):
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
                self._leaders.locate(buffer.at.topic)
            else:
                told = rack if served_by.tells_rack(now) else None
                by_broker.setdefault((broker, told), []).append(buffer)
        for at, buffers in by_broker.items():
            session = self._sessions.get(at)
            if session is None:
                session = FetchSession(next(self._client.fetch_sessions), *at)
                self._sessions[at] = session
            for piece in pieces(buffers, PARTITIONS_PER_REQUEST_MAX):
                self._ask(session, piece)
        if any(session.idle for session in self._sessions.values()):
            self._go_on()

    def close(self) -> None:
        """Stop asking; answers under way are dropped."""
        if not self._closed:
            self._leaders.close()
        self._closed = True
        self._errands.close()
        for session in self._sessions.values():
            self._end(session)
        for buffer in self._leaders.buffers():
            buffer.drop()

    # ── asking ───────────────────────────────────────────────────────────────────────────────

    def _ask(self, session: FetchSession, buffers: Sequence[PartitionBuffer]) -> None:
        under_way = self._requests.get(session.broker, 0)
        bytes_max = self._budget.next_fetch_bytes()
        if under_way >= REQUESTS_MAX or bytes_max == 0:
            self._stale = self._stale or bytes_max == 0
            return
        for buffer in buffers:
            del self._wanting[buffer]
        session.add(buffers)
        wait_s = self._wait_s(session.topics) if under_way == 0 else self._options.wait_s
        if under_way == REQUESTS_MAX - 1:
            wait_s = min(wait_s, LAST_WAIT_S)
        session.under_way += 1
        self._requests[session.broker] = under_way + 1
        self._budget.reserved += bytes_max
        self._errands.start(self._fetch, _Question(session, session.life, bytes_max, wait_s))

    def _go_on(self) -> None:
        """Wait on for what stands; soon, where records are at hand: mostly more of those is asked
        for before, and that request waits for all."""
        if self._budget.used and not self._resting:
            self._resting = True
            self._errands.start(self._go_on_soon)
        elif not self._budget.used:
            self._go_on_now()

    async def _go_on_soon(self) -> None:
        await anyio.sleep(IDLE_S)
        self._resting = False
        self._go_on_now()

    def _go_on_now(self) -> None:
        if self.failure is not None:
            return
        for session in self._sessions.values():
            if session.idle and session.wanted:
                self._ask(session, ())
            elif session.idle:  # it was all sought, paused or given up since
                self._end(session)

    def _wait_s(self, topics: Collection[str]) -> float:
        """Longer where nothing comes: it costs the broker nothing. Not where another may take
        over from it, now or when it is back, as the end of the wait is when a silence is noticed.
        """
        wait_s, cluster = self._options.wait_s, self._client.cluster
        times = QUIET_TIMES[min(self._vain, len(QUIET_TIMES) - 1)]
        if times == 1 or cluster.several or any(map(self._has_copies, topics)):
            return wait_s
        return max(wait_s, min(wait_s * times, QUIET_WAIT_S))

    def _has_copies(self, topic: str) -> bool:
        known = self._client.cluster.known(topic)
        return known is not None and any(len(one.replicas) > 1 for one in known.partitions[:1])

    async def _fetch(self, question: _Question) -> None:
        clock, cluster, session = self._client.clock, self._client.cluster, question.session
        number, sent_at = 0, 0.0

        def fetch() -> FetchRequest:
            nonlocal question, number, sent_at
            sent_at = clock.now()
            number, named = session.name(channel, sent_at)
            # The first answer tells how far there is to go; without a name nothing is waited for.
            at_once = any(one.end is None for one in named) or not (named or number)
            wait_s = 0.0 if at_once else question.wait_s
            question = replace(question, life=session.life, wait_s=wait_s)
            return self._request(question, number, named)

        try:
            channel = await cluster.channel(session.broker, "fetch")
            if self._closed:
                return
            if session.broken(channel):
                live = session.give_up()
                session.add(live[:PARTITIONS_PER_REQUEST_MAX])
                question = replace(question, life=session.life)
                self._ask_anew(live[PARTITIONS_PER_REQUEST_MAX:])
                self.pump()
            if channel.in_flight >= CROWDED_FROM:  # it takes few: do not hold up the others
                wait_s = min(question.wait_s, self._options.wait_s)
                question = replace(question, wait_s=wait_s)
            timeout = question.wait_s + self._client.options.request_timeout
            with cluster.owing(session.broker, question.wait_s):
                response, body = await channel.request(fetch, timeout=timeout)
            assert isinstance(response, FetchResponse)
        except TailraceError as error:
            self._failed(question, error)
        else:
            self._answered(question, number, response, body, clock.now() - sent_at)
        finally:
            self._budget.reserved -= question.bytes_max
            session.under_way -= 1
            self._requests[session.broker] -= 1
        self.pump()

    def _request(
        self, question: _Question, number: int, named: Sequence[PartitionBuffer]
    ) -> FetchRequest:
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
                    bytes_max=PARTITION_BYTES_MAX,
                    leader_epoch=buffer.served_by.leader_epoch,
                    last_fetched_epoch=-1,
                    flushed_end=-1,
                )
                for buffer in named
            ),
            rack=question.session.rack,
            sequence=number,
            session=question.session.number,
        )

    def _answered(
        self,
        question: _Question,
        number: int,
        response: FetchResponse,
        body: memoryview,
        took_s: float,
    ) -> None:
        session, self.trouble = question.session, None
        if session.life != question.life:
            return  # all of it is asked for again
        brought, place, now = False, 0, self._client.clock.now()
        quiet, fed = list[PartitionBuffer](), list[PartitionBuffer]()
        for result in response.results:
            part = body[place : place + result.length]
            place += result.length
            brought = brought or bool(part) or result.error is not None
            buffer = session.told(result, number)
            if buffer is None:
                continue
            buffer.in_flight = False
            if result.error is not None:
                self.refused(buffer, from_wire(result.error))
                continue
            near = result.preferred_replica
            if near is not None and session.rack:
                if near in self._client.cluster.brokers:
                    buffer.served_by.go_near(near, now)
                else:
                    buffer.served_by.leave_near(now)
                self._wanting[buffer] = None
                brought = True
                continue
            # A view would keep the whole answer alive, as long as one partition is not read.
            mine = part if len(response.results) == 1 else memoryview(bytes(part))
            self._take(buffer, result, mine, session.broker)
            (fed if part else quiet).append(buffer)
        for buffer in (*quiet, *fed):  # those that got nothing are served first next time
            self._wanting.pop(buffer, None)
            self._wanting[buffer] = None
        last = session.sequence == number + 1  # else the next one has ended it
        waited = took_s >= question.wait_s / 2
        if brought:
            self._vain = 0
        elif last and question.wait_s >= self._options.wait_s and waited:
            self._vain += 1
        if not brought and not waited and (last or quiet):
            # The broker did not wait as it was asked to: do not ask in a tight loop.
            self._rest([*quiet, *(self._end(session) if last else ())], session.broker)
        elif all(result.error is None for result in response.results):
            self._backoffs.pop(session.broker, None)
        if last and self._client.options.rack and now >= session.began + NEAR_S:
            self._ask_anew(self._end(session))  # somebody else may be near by now, or nobody

    def _ask_anew(self, buffers: Iterable[PartitionBuffer]) -> None:
        for buffer in buffers:
            buffer.in_flight = False
            self._wanting[buffer] = None

    def _end(self, session: FetchSession) -> list[PartitionBuffer]:
        """Let the broker forget what stands, and return it; one not told forgets it with the
        connection."""
        live, channel = session.give_up(), session.channel
        if channel is not None and channel.lost is None:
            question = _Question(session, session.life, 0, 0.0)
            channel.post(self._request(question, 0, ()), (), lambda outcome, content: None)
        return live

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
            self._client.cluster.doubt(question.session.broker)
        if not question.counts:
            return  # all of it is asked for again
        session = question.session
        live = [buffer for buffer in session.give_up() if not self._left_near(buffer)]
        for buffer in live:
            self._leaders.doubt(buffer)
        self._rest(live, session.broker)

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
            # A topic that is new may not be known there yet.
            self._leaders.doubt(buffer, locate=error.code != "T010")
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

    def led_anew(self, buffer: PartitionBuffer) -> None:
        """Ask whoever leads it now: what another one still owes no longer counts."""
        buffer.ask_anew()
        self._wanting[buffer] = None

    def _left_near(self, buffer: PartitionBuffer) -> bool:
        """Whether it was a follower that failed: the leader is asked at once."""
        served_by = buffer.served_by
        if served_by.near is None:
            return False
        served_by.leave_near(self._client.clock.now())
        buffer.in_flight = False
        self._wanting[buffer] = None
        return True

    def _rest(self, buffers: list[PartitionBuffer], broker: str) -> None:
        """Ask for these again after a pause, unless they are sought or paused meanwhile."""
        if not buffers:
            return
        backoff = self._backoffs.setdefault(broker, self._new_backoff())
        for buffer in buffers:
            buffer.in_flight = True
            self._wanting.pop(buffer, None)
        asked = [(buffer, buffer.generation) for buffer in buffers]
        self._errands.start(self._wake_later, asked, backoff.next())

    def _new_backoff(self) -> Backoff:
        """Short pauses where somebody else may take over."""
        return Backoff(
            self._client.random, LEADER_LIMIT_S if self._client.cluster.several else None
        )

    async def _wake_later(
        self, asked: Sequence[tuple[PartitionBuffer, int]], pause_s: float
    ) -> None:
        await anyio.sleep(pause_s)
        self._ask_anew(buffer for buffer, then in asked if buffer.generation == then)
        self.pump()
