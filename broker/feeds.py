"""Followers at the ends of partitions: each fetches and writes out once, for all tails there.

A tail joins where it has read to. A follower begins where its first tail stands, and keeps what it
found last (``RECENT_BYTES``), so that a tail which is a moment behind can join all the same. It
ends with its last tail, or with an error that all of them are told.

Invariants:
- ``position`` is where the follower goes on; everything below it was offered to every tail that
  had joined, in order;
- one look at the log per ``PACE_S``, however many tails there are, and nothing while nothing comes;
- followers that are behind look one at a time, and rest longer: a fifth of the event loop.
"""

import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.http_turns import Turns
from tailrace.broker.record_reading import (
    CHUNK_RECORDS,
    Chunk,
    Cursor,
    Fetched,
    Place,
    RecordReader,
)
from tailrace.broker.spell import Spell
from tailrace.broker.tail import QUEUE_BYTES, Tail
from tailrace.protocol import texts_http
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.record_json import Decode

if TYPE_CHECKING:
    from tailrace.broker.gateway import Gateway

log = logging.getLogger("tailrace.broker.http")

Push = Callable[[bytes], bool]  # sends without waiting; whether all of it went

PACE_S = 0.1
PAUSES = 4  # after a look by a follower that is behind, times what it took
WAIT_MS = 30_000
RECENT_BYTES = 262_144
HURRY_BYTES = QUEUE_BYTES // 2  # that wait for a tail: it sends them before its turn
HURRIES_PER_S = 400  # of all tails together, some 10 % of the event loop
STEP_S = 0.02  # for a tail that hurries
FLUSH_S = 0.1  # between two goes of all tails
FLUSHES_PER_S = 100  # of all of them together, beyond which the goes become rarer
FAREWELL_S = 0.5  # for the last events of tails when the broker stops
PUSH_BYTES = 16_384  # sent by whoever gives turns; more takes the tail's own task
READERS_AT_ONCE = 4  # that have batches in memory, and nobody to wait for
HOLDERS_MAX = 4  # tails and pages that keep what they have fetched while it is sent


class Follower:
    """One partition, one way of decoding."""

    def __init__(
        self,
        reader: RecordReader,
        place: Place,
        decode: Decode,
        position: int,
        hurries: "Hurries",
        behind: trio.Lock,
        give_way: Callable[[], Awaitable[None]],
    ) -> None:
        self.position = position
        self.tails: dict[Session, None] = {}
        self.scope = trio.CancelScope()
        self._behind = behind
        self._give_way = give_way
        self._hurries = hurries
        self._reader = reader
        self._place = place
        self._decode: Decode = decode
        self._recent: deque[Chunk] = deque()
        self._recent_bytes = 0
        self._recent_from = position

    def may_join(self, position: int) -> bool:
        """Whether all that a tail at this position has not seen can be given to it."""
        return position >= self._recent_from

    def join(self, session: "Session") -> None:
        """``may_join`` its position."""
        now = trio.current_time()
        for chunk in self._recent:
            session.tail.offer(chunk, now)
        self.tails[session] = None

    async def run(self) -> TailraceError | None:
        """Follow; what ended it, None if it was cancelled."""
        with self.scope:
            try:
                while True:
                    behind = await self._look()
                    await trio.sleep(PACE_S)
                    while behind:
                        async with self._behind:
                            began = trio.current_time()
                            behind = await self._look()
                            took_s = trio.current_time() - began
                            await trio.sleep(min(PACE_S, took_s * PAUSES))
            except TailraceError as error:
                return error
        return None

    async def _look(self) -> bool:
        """One fetch; whether there was more. Small batches are given together: each gift costs
        every tail the same."""
        await self._give_way()
        fetched = await self._reader.fetch(self._place, self.position, wait_ms=WAIT_MS)
        spell = Spell(self._give_way)
        position, gathered = self.position, Chunk(self._place.partition, [], [], self.position, 0)
        for header, entry in fetched.batches:
            cursor = await self._reader.open(self._place, header, entry, self._decode)
            while cursor is not None and cursor.seek(position).left:
                chunk = cursor.take(CHUNK_RECORDS)
                position = chunk.next_offset
                if not gathered.add(chunk):
                    await self._give(gathered)
                    gathered = chunk
            position = gathered.next_offset = header.next_offset
            await spell.pause()
        await self._give(gathered)
        return self.position < fetched.high_watermark

    async def _give(self, chunk: Chunk) -> None:
        """To every tail; those that must hurry, and do, are let go first."""
        self.position = chunk.next_offset
        self._recent.append(chunk)
        self._recent_bytes += chunk.size_bytes
        while self._recent_bytes > RECENT_BYTES:
            old = self._recent.popleft()
            self._recent_bytes -= old.size_bytes
            self._recent_from = old.next_offset
        now = trio.current_time()
        hurrying: list[Session] = []
        for session in self.tails:
            session.tail.offer(chunk, now)
            if session.wake(self._hurries):
                hurrying.append(session)
        await trio.lowlevel.checkpoint()
        for session in hurrying:
            await session.keep_step()


class Source:
    """What lies behind a tail in one partition, read by itself."""

    def __init__(self, reader: RecordReader, place: Place, decode: Decode) -> None:
        self.at_end = False  # the last fetch reached the end of the log, as it was then
        self._reader = reader
        self._place = place
        self._decode: Decode = decode
        self._fetched: Fetched | None = None
        self._cursor: Cursor | None = None

    def let_go(self) -> None:
        """Hold nothing: what was fetched and not given is fetched again."""
        self._fetched = self._cursor = None

    async def fill(self, tail: Tail, bytes_max: int, hold: Callable[[int], None]) -> bool:
        """Give the tail about so much; whether there is more than that of what was fetched.

        ``hold`` is told how many bytes wait, before they are written out, and may raise.
        """
        number = self._place.partition
        if self._fetched is None:
            self._fetched = await self._reader.fetch(self._place, tail.positions[number])
            self.at_end = self._fetched.next_offset >= self._fetched.high_watermark
        while tail.waiting_bytes < bytes_max:
            if self._cursor is None and not self._fetched.batches:
                self._fetched = None
                return False
            if self._cursor is None:
                header, entry = self._fetched.batches.pop(0)
                cursor = await self._reader.open(self._place, header, entry, self._decode)
                if cursor is None:
                    tail.skip(number, header.next_offset)
                    continue
                self._cursor = cursor.seek(tail.positions[number])
            hold(tail.waiting_bytes + self._cursor.ahead_bytes)
            self._give(self._cursor, tail)
            await trio.lowlevel.checkpoint()
        return True

    def _give(self, cursor: Cursor, tail: Tail) -> None:
        now = trio.current_time()
        allowed = tail.allowance(now)
        if cursor.left and allowed == 0:  # nothing may go out: it need not be written out either
            tail.drop(self._place.partition, cursor.left, cursor.next_offset)
            self._cursor = None
            return
        tail.offer(cursor.take(allowed), now)
        if not cursor.left:
            self._cursor = None


class Hurries:
    """How often tails may send before their turn, all of them together."""

    def __init__(self) -> None:
        self._left = float(HURRIES_PER_S)
        self._counted_at = -math.inf

    def take(self) -> bool:
        """Whether one more may, now."""
        now = trio.current_time()
        self._left = min(HURRIES_PER_S, self._left + (now - self._counted_at) * HURRIES_PER_S)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Session:
    """A tail and who waits for it.

    What comes at once may be more than it keeps until its turn: then it sends before it, and its
    followers wait a little for it, so that a reader which takes everything at once misses nothing.
    """

    def __init__(self, tail: Tail, turns: Turns) -> None:
        self.tail = tail
        self.idle = False  # its task writes nothing, and waits at the bell
        self.unsent = False  # some of what was pushed was not taken
        self.pushed_at = -math.inf
        self.push: Push | None = None
        self.ended: TailraceError | None = None
        self.bell = Bell()  # send what waits, now
        self._turns = turns
        self._hurries = False  # it was told to, before its turn
        self._sent = trio.Event()  # all that waited
        self._slow = False  # it did not send all in time when it had to hurry

    def begin(self) -> None:
        """What comes from now on is news."""
        self._hurries = False

    def sent(self) -> None:
        """Nothing waits any more."""
        self._slow = False
        self._sent.set()

    def wake(self, hurries: Hurries) -> bool:
        """There may be something to send. Whether it hurries."""
        if self.tail.waiting_bytes < HURRY_BYTES or self._slow:
            self._turns.ask(self._let)
            return False
        if not self._hurries and not hurries.take():
            self._turns.ask(self._let)
            return False
        self._sent = trio.Event()
        self._hurries = True
        self.bell.ring()
        return True

    def _let(self) -> None:
        """It is its turn. Mostly all of it can be sent from here: a turn of its task costs more
        than that."""
        if self.tail.pending and not self._pushed():
            self.idle = False
            self.bell.ring()

    def _pushed(self) -> bool:
        """Send what waits from here; whether that was all."""
        tail = self.tail
        if not self.idle or self.push is None or tail.waiting_bytes > PUSH_BYTES:
            return False
        self.pushed_at = trio.current_time()
        self.unsent = not self.push(tail.take(PUSH_BYTES))
        if self.unsent or tail.pending:
            return False
        self.sent()
        return True

    async def keep_step(self) -> None:
        """Wait until all is sent, for a moment."""
        with trio.move_on_after(STEP_S) as waited:
            await self._sent.wait()
        self._slow = waited.cancelled_caught

    def end(self, error: TailraceError) -> None:
        """Nothing more will come."""
        self.ended = self.ended or error
        self.bell.ring()


class Feeds:
    """The followers of one broker, and what else reading records over HTTP shares. ``run`` it."""

    def __init__(self, gateway: "Gateway") -> None:
        self.reader = RecordReader(gateway)
        self.slots = trio.CapacityLimiter(READERS_AT_ONCE)
        self.sessions: dict[Session, None] = {}
        self._followers: dict[tuple[Place, Decode], Follower] = {}
        self.turns = Turns(
            lambda: max(FLUSH_S, len(self.sessions) / FLUSHES_PER_S),
            lambda: gateway.node.appender.in_hurry,
            gateway.node.flusher.give_way,
        )
        self._hurries = Hurries()
        self._behind = trio.Lock()
        self._gateway = gateway
        self._nursery: trio.Nursery | None = None  # None: it does not run, or does no more
        self._turn = 0
        self._holders = 0
        self._left = trio.Event()  # set when a tail is over

    @contextmanager
    def holding(self) -> Generator[bool, None, None]:
        """Whether one more may keep what it has fetched while its reader takes some of it.

        A reader may take its time for that, and a batch takes megabytes. Who may not fetches and
        opens it again, which is slower.
        """
        may_hold = self._holders < HOLDERS_MAX
        self._holders += may_hold
        try:
            yield may_hold
        finally:
            self._holders -= may_hold

    def next_turn(self) -> int:
        """Another number each time: whose turn it is, where nothing else decides."""
        self._turn += 1
        return self._turn

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until the broker stops: then every tail ends, at once."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.turns.run)
            task_status.started()
            await self._gateway.stopping.wait()
            stopped = texts_http.not_serving(self._gateway.node.broker_id, what="is stopping")
            self._nursery = None
            for session in self.sessions:
                session.end(stopped)
            with trio.move_on_after(FAREWELL_S):
                while self.sessions:
                    self._left = trio.Event()
                    await self._left.wait()
            nursery.cancel_scope.cancel()

    def join(self, session: Session, places: dict[int, Place], decode: Decode) -> bool:
        """Go on with what the followers find, if that leaves no gap; all partitions or none.

        T033 where the broker stops.
        """
        if self._nursery is None:
            broker_id = self._gateway.node.broker_id
            raise texts_http.not_serving(broker_id, what="is stopping")
        positions = session.tail.positions
        for number, place in places.items():
            follower = self._followers.get((place, decode))
            if follower is not None and not follower.may_join(positions[number]):
                return False
        for number, place in places.items():
            self._follower(place, decode, positions[number]).join(session)
        return True

    def leave(self, session: Session) -> None:
        """It is over."""
        self.sessions.pop(session, None)
        self._left.set()
        for follower in list(self._followers.values()):
            follower.tails.pop(session, None)
            if not follower.tails:
                follower.scope.cancel()

    def _follower(self, place: Place, decode: Decode, position: int) -> Follower:
        key = (place, decode)
        follower = self._followers.get(key)
        if follower is None or follower.scope.cancel_called:
            follower = self._followers[key] = Follower(
                *(self.reader, place, decode, position, self._hurries, self._behind),
                self._gateway.node.flusher.give_way,
            )
            assert self._nursery is not None, "tails are let in while this runs"
            self._nursery.start_soon(self._follow, key, follower)
        return follower

    async def _follow(self, key: tuple[Place, Decode], follower: Follower) -> None:
        try:
            error = await follower.run()
        except Exception as failure:  # a bug of ours ends these tails and nothing else (R40)
            log.error(
                "tails of %s[%d] failed: %r",
                *(key[0].topic, key[0].partition, failure),
                exc_info=failure,
                extra={"event": "http.tail_failed", "code": "T000"},
            )
            error = texts_http.unexpected(self._gateway.node.broker_id)
        if self._followers.get(key) is follower:
            del self._followers[key]
        if error is not None:
            for session in follower.tails:
                session.end(error)
