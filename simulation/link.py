"""One direction between two hosts, and one direction of one connection over it.

A pipe is TCP as a reader sees it: bytes in order, late, cut at random places, never lost while
the connection lives. A link that drops packets only delays them: the sender's system sends them
again, so they arrive after the link has healed, however long that takes (a zombie request *does*
land late). Between two pipes there is no order at all.
"""

import math
from collections import deque
from random import Random

import trio

WINDOW_BYTES = 128 << 10  # what a sender may have under way or unread: then it must wait
WHOLE_READS = 0.5  # this share of reads gets all there is, the others a part


class Signal:
    """Something changed: wakes all who wait now."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def send(self) -> None:
        self._event.set()
        self._event = trio.Event()

    async def wait(self, until: float = math.inf) -> None:
        """Until the next ``send`` or that moment."""
        event = self._event
        with trio.move_on_at(until):
            await event.wait()


class Link:
    """From one host to another: how long bytes take, and whether they pass at all."""

    def __init__(self, rng: Random, *, delay_min: float, delay_mean: float) -> None:
        self.rng = rng
        self.delay_min = delay_min
        self.delay_mean = delay_mean
        self.clogged_until = 0.0
        self.flips = 0.0  # this share of reads has a bit that was never sent so
        self.pipes: list[Pipe] = []
        self.healed = Signal()
        self._cut = False

    @property
    def cut(self) -> bool:
        return self._cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        """Cut: nothing arrives any more. Healed: what was sent meanwhile is sent again."""
        self._cut = cut
        if not cut:
            self.healed.send()
        for pipe in self.pipes:
            pipe.reschedule()

    def delay(self) -> float:
        """Seconds for one packet: a minimum and an exponential tail."""
        return self.delay_min + self.rng.expovariate(1 / self.delay_mean)

    def arrival(self, not_before: float) -> float:
        """When something sent now arrives; never, while the link is cut."""
        if self._cut:
            return math.inf
        return max(trio.current_time() + self.delay(), self.clogged_until, not_before)


class Pipe:
    """The bytes of one direction of one connection, under way and unread.

    ``ended``: the sender closed; ``reset``: nothing more comes but what had arrived;
    ``void``: the receiving machine is gone, bytes vanish.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.ended = False
        self.reset = False
        self.void = False
        self.deaf = False  # the receiver closed its end
        self.carried = 0  # bytes taken from the sender so far
        self.breaks_at: int | None = None  # the connection is reset once so much was carried
        self.readable = Signal()
        self.writable = Signal()
        self._chunks: deque[tuple[float, memoryview]] = deque()
        self._buffered = 0
        self._end_arrives = math.inf
        link.pipes.append(self)

    @property
    def room(self) -> int:
        return WINDOW_BYTES - self._buffered

    def put(self, data: memoryview) -> int:
        """Take what the window allows of ``data``; how much that was."""
        taken = min(len(data), self.room)
        if taken:
            arrival = math.inf if self.void else self.link.arrival(self._last_arrival())
            self._chunks.append((arrival, data[:taken]))
            self._buffered += taken
            self.carried += taken
            self.readable.send()
        return taken

    def end(self) -> None:
        """The sender closes: its end arrives after its bytes."""
        if not self.ended:
            self.ended = True
            self._end_arrives = self.link.arrival(self._last_arrival())
            self.readable.send()

    def take(self, bytes_max: int) -> bytes | None:
        """What has arrived, or a part of it; ``b""`` at the end, None if one has to wait.

        Raises ``ConnectionResetError`` once the arrived bytes of a reset pipe are used up.
        """
        now, found, size = trio.current_time(), list[memoryview](), 0
        wanted = bytes_max
        while self._chunks and self._chunks[0][0] <= now and size < wanted:
            arrival, chunk = self._chunks.popleft()
            if len(chunk) > wanted - size:
                self._chunks.appendleft((arrival, chunk[wanted - size :]))
                chunk = chunk[: wanted - size]
            found.append(chunk)
            size += len(chunk)
        if not size:
            if self.reset:
                raise ConnectionResetError("connection reset by peer")
            return b"" if self.ended and not self._chunks and self._end_arrives <= now else None
        data = b"".join(found)
        rng = self.link.rng
        if self.link.flips and rng.random() < self.link.flips:
            data = _flipped(data, rng.randrange(8 * len(data)))
        if rng.random() >= WHOLE_READS and size > 1:
            part = rng.randrange(1, size)
            self._chunks.appendleft((now, memoryview(data)[part:]))
            data = data[:part]
        self._buffered -= len(data)
        self.writable.send()
        return data

    def next_arrival(self) -> float:
        """When there may be something to take."""
        if self._chunks:
            return self._chunks[0][0]
        return self._end_arrives if self.ended else math.inf

    def break_off(self) -> None:
        """A reset: some of what is under way still arrives, at once; then the error."""
        whole = b"".join(chunk for _, chunk in self._chunks)
        kept = self.link.rng.randint(0, len(whole)) if whole else 0
        self._chunks.clear()
        if kept:
            self._chunks.append((trio.current_time(), memoryview(whole)[:kept]))
        self._buffered = kept
        self.reset = True
        self.forget()
        self.readable.send()
        self.writable.send()

    def reschedule(self) -> None:
        """The link was cut or healed: what has not arrived yet gets a new time."""
        if self.void:
            return
        now = trio.current_time()
        last = 0.0
        chunks = list(self._chunks)
        self._chunks.clear()
        for arrival, chunk in chunks:
            last = arrival if arrival <= now else self.link.arrival(last)
            self._chunks.append((last, chunk))
        if self.ended and self._end_arrives > now:
            self._end_arrives = self.link.arrival(last)
        self.readable.send()

    def forget(self) -> None:
        """The link need not know this pipe any more."""
        if self in self.link.pipes:
            self.link.pipes.remove(self)

    def _last_arrival(self) -> float:
        return self._chunks[-1][0] if self._chunks else 0.0


def _flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)
