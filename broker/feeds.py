"""Followers at the ends of partitions: each fetches and writes out once, for all tails there.

A tail joins where it has read to. A follower begins where its first tail stands, and keeps what it
found last (``RECENT_BYTES``), so that a tail which is a moment behind can join all the same. It
ends with its last tail, or with an error that all of them are told.

Invariants:
- ``position`` is where the follower goes on; everything below it was offered to every tail that
  had joined, in order;
- one look at the log per ``PACE_S``, however many tails there are, and nothing while nothing comes.
"""

from collections import deque
from typing import TYPE_CHECKING

import trio

from tailrace.broker.record_reading import Chunk, Place, RecordReader
from tailrace.broker.tail import Tail
from tailrace.protocol import texts_http
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.record_json import Decode

if TYPE_CHECKING:
    from tailrace.broker.gateway import Gateway

PACE_S = 0.05
WAIT_MS = 30_000
RECENT_BYTES = 262_144
PAGES_AT_ONCE = 4  # large pages that are being written out


class Follower:
    """One partition, one way of decoding."""

    def __init__(self, reader: RecordReader, place: Place, decode: Decode, position: int) -> None:
        self.position = position
        self.tails: dict[Session, None] = {}
        self.scope = trio.CancelScope()
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
                    await self._look()
                    await trio.sleep(PACE_S)
            except TailraceError as error:
                return error
        return None

    async def _look(self) -> None:
        fetched = await self._reader.fetch(self._place, self.position, wait_ms=WAIT_MS)
        for header, entry in fetched.batches:
            cursor = await self._reader.open(self._place, header, entry, self._decode)
            if cursor is None:
                self._give(Chunk(self._place.partition, [], [], header.next_offset, 0))
                continue
            cursor.seek(self.position)
            while True:
                self._give(cursor.take(1 << 62))
                if not cursor.left:
                    break
                await trio.lowlevel.checkpoint()

    def _give(self, chunk: Chunk) -> None:
        self.position = chunk.next_offset
        self._recent.append(chunk)
        self._recent_bytes += chunk.size_bytes
        while self._recent_bytes > RECENT_BYTES:
            old = self._recent.popleft()
            self._recent_bytes -= old.size_bytes
            self._recent_from = old.next_offset
        now = trio.current_time()
        for session in self.tails:
            session.tail.offer(chunk, now)
            session.wake()


class Session:
    """A tail and who waits for it."""

    def __init__(self, tail: Tail) -> None:
        self.tail = tail
        self.ended: TailraceError | None = None
        self.news = trio.Event()

    def wake(self) -> None:
        """There may be something to send."""
        self.news.set()

    def end(self, error: TailraceError) -> None:
        """Nothing more will come."""
        self.ended = self.ended or error
        self.news.set()


class Feeds:
    """The followers of one broker, and what else reading records over HTTP shares. ``run`` it."""

    def __init__(self, gateway: "Gateway") -> None:
        self.reader = RecordReader(gateway)
        self.page_slots = trio.CapacityLimiter(PAGES_AT_ONCE)
        self.sessions: dict[Session, None] = {}
        self._followers: dict[tuple[Place, Decode], Follower] = {}
        self._gateway = gateway
        self._nursery: trio.Nursery | None = None  # None: it does not run, or does no more
        self._turn = 0

    def next_turn(self) -> int:
        """Another number each time: whose turn it is, where nothing else decides."""
        self._turn += 1
        return self._turn

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until the broker stops: then every tail ends, at once."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._gateway.stopping.wait()
            stopped = texts_http.not_serving(self._gateway.node.broker_id, what="is stopping")
            for session in self.sessions:
                session.end(stopped)
            self._nursery = None
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
        for follower in list(self._followers.values()):
            follower.tails.pop(session, None)
            if not follower.tails:
                follower.scope.cancel()

    def _follower(self, place: Place, decode: Decode, position: int) -> Follower:
        key = (place, decode)
        follower = self._followers.get(key)
        if follower is None or follower.scope.cancel_called:
            follower = self._followers[key] = Follower(self.reader, place, decode, position)
            assert self._nursery is not None, "tails are let in while this runs"
            self._nursery.start_soon(self._follow, key, follower)
        return follower

    async def _follow(self, key: tuple[Place, Decode], follower: Follower) -> None:
        error = await follower.run()
        if self._followers.get(key) is follower:
            del self._followers[key]
        if error is not None:
            for session in follower.tails:
                session.end(error)
