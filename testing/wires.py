"""The network between the brokers of a test cluster, and where it is cut.

A broker that dials another one gets a ``Wire``: while the two are on different sides nothing passes
in either direction, and what was on its way arrives when they are together again, as with TCP.
Clients reach everybody. The metadata store can be put on a side, too.
"""

import ssl
from collections.abc import Collection, Sequence

from tailrace.broker.world import BrokerTransport, Listener, ServerNet
from tailrace.protocol.seams import Buffer
from tailrace.testing.bell import Bell

METADATA = "metadata"  # the store's name among the sides


class Wiring:
    """What is cut. Any thread."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.ports: dict[int, str] = {}  # who listens there
        self._cuts: list[tuple[frozenset[str], ...]] = []

    def cut(self, sides: Sequence[Collection[str]]) -> tuple[frozenset[str], ...]:
        """Take the sides apart; who is on none of them reaches all."""
        cut = tuple(map(frozenset, sides))
        self._cuts.append(cut)
        return cut

    def mend(self, cut: tuple[frozenset[str], ...]) -> None:
        """Undo one ``cut``."""
        self._cuts.remove(cut)
        self.bell.ring()

    def apart(self, one: str, other: str) -> bool:
        """Whether nothing passes between the two."""
        for sides in list(self._cuts):
            of_one = [side for side in sides if one in side]
            if of_one and any(other in side for side in sides if side not in of_one):
                return True
        return False

    async def joined(self, one: str, other: str) -> None:
        """Wait until something passes. In any trio run."""
        while self.apart(one, other):
            mended = self.bell.listen()
            if self.apart(one, other):
                await mended.wait()


class WiredNet:
    """``ServerNet`` of one broker."""

    def __init__(self, inner: ServerNet, wiring: Wiring, broker_id: str) -> None:
        self._inner = inner
        self._wiring = wiring
        self._broker_id = broker_id

    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> Listener:
        return await self._inner.listen(host, port, tls=tls)

    async def connect(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> BrokerTransport:
        other = self._wiring.ports.get(port, "")
        await self._wiring.joined(self._broker_id, other)
        transport = await self._inner.connect(host, port, tls=tls)
        return Wire(transport, self._wiring, self._broker_id, other)


class Wire:
    """One connection between two brokers (``BrokerTransport``)."""

    def __init__(self, inner: BrokerTransport, wiring: Wiring, own: str, other: str) -> None:
        self._inner = inner
        self._wiring = wiring
        self._ends = own, other

    @property
    def peer(self) -> str:
        return self._inner.peer

    async def receive(self, max_bytes: int) -> bytes:
        data = await self._inner.receive(max_bytes)
        await self._wiring.joined(*self._ends)
        return data

    async def receive_into(self, room: memoryview) -> int:
        count = await self._inner.receive_into(room)
        await self._wiring.joined(*self._ends)
        return count

    async def send(self, buffers: Sequence[Buffer]) -> None:
        await self._wiring.joined(*self._ends)
        await self._inner.send(buffers)

    def send_nowait(self, data: bytes) -> int:
        return 0 if self._wiring.apart(*self._ends) else self._inner.send_nowait(data)

    def close(self) -> None:
        self._inner.close()
