"""What arrives on one connection: a large body straight where it belongs, all else by a buffer.

The bytes of a body are then moved once, into memory that former bodies lay in. While large bodies
come one behind the other the buffer takes next to nothing: a few KiB that hold the head of the next
frame; and up to ``TURN_BYTES`` of them are received in one turn of the event loop, to be written
together. After anything else the buffer takes what a receive brings, often many small frames.
"""

from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import trio

from tailrace.broker.limits import RECEIVE_BYTES
from tailrace.broker.world import BrokerTransport

HEAD_BYTES = 4_096  # received at once behind a large body
TURN_BYTES = 1 << 20  # and more, by less than as much, before others have their turn

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Machine(Protocol[T_co]):
    """A connection without I/O: see ``protocol.connection``."""

    def feed(self, data: bytes) -> Iterator[T_co]: ...

    def room(self) -> memoryview | None: ...

    def filled(self, count: int) -> Iterator[T_co]: ...


class Arrivals(Generic[T]):
    """For the one task that receives."""

    __slots__ = ("_head", "_large", "_machine", "_transport", "_turn_bytes", "received_bytes")

    def __init__(self, transport: BrokerTransport, machine: Machine[T]) -> None:
        self.received_bytes = 0  # so far
        self._transport = transport
        self._machine = machine
        self._large = False  # a large body came last
        self._head: memoryview | None = None  # where what follows it is received
        self._turn_bytes = 0  # of bodies, since others had their turn

    async def take(self) -> Iterator[T] | None:
        """What the next receive completes, one by one; None when the peer has ended.

        While iterating, raises what the machine does. OSError. The iterator must be at its end
        before the next call.
        """
        if self._turn_bytes >= TURN_BYTES:
            self._turn_bytes = 0
            await trio.lowlevel.checkpoint()
        room = self._machine.room()
        if room is None:
            data = await self._next_head() if self._large else await self._next_frames()
            self._large = False
            self.received_bytes += len(data)
            return self._machine.feed(data) if data else None
        self._large = True
        count = await self._transport.receive_into(room[:TURN_BYTES])
        del room  # so that its memory may be used again
        self.received_bytes += count
        self._turn_bytes += count
        return self._machine.filled(count) if count else None

    async def _next_frames(self) -> bytes:
        self._turn_bytes = 0
        return await self._transport.receive(RECEIVE_BYTES)

    async def _next_head(self) -> bytes:
        if self._head is None:
            self._head = memoryview(bytearray(HEAD_BYTES))
        count = await self._transport.receive_into(self._head)
        return bytes(self._head[:count])
