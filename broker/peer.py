"""Connections to other brokers: one each, opened when it is needed, for requests of this broker.

Many requests may be in flight on one; a task of ``Peers.run`` reads each connection. A connection
that ended is forgotten, the next request opens another. Waiting between attempts is the caller's.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from tailrace.broker.arrivals import Arrivals
from tailrace.broker.limits import RECEIVE_BYTES
from tailrace.broker.members import Peer
from tailrace.broker.world import BrokerTransport
from tailrace.protocol import texts_client
from tailrace.protocol.connection import ClientConnection
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.messages import Request, Response


class Lost(Exception):
    """The connection ended before the answer came: the request may have been carried out."""


@dataclass(eq=False, slots=True)
class Reply:
    """What becomes of one request. ``told`` is called once it is there, or never will be."""

    told: Callable[[], None]
    arrived: bool = False
    outcome: Response | TailraceError | None = None  # None: the connection ended before
    body: memoryview = field(default_factory=lambda: memoryview(b""))

    def take(self) -> tuple[Response, memoryview]:
        """The answer and the bytes behind it. ``Lost``, or the error that the peer answers with."""
        assert self.arrived, "it has not come yet"
        if self.outcome is None:
            raise Lost
        if isinstance(self.outcome, TailraceError):
            raise self.outcome
        return self.outcome, self.body

    def arrive(self) -> None:
        """It is there, or never will be."""
        self.arrived = True
        self.told()


class Channel:
    """One connection. Invariant: once ``lost``, nobody waits for it."""

    def __init__(
        self, transport: BrokerTransport, connection: ClientConnection, address: str
    ) -> None:
        self.lost = False
        self.address = address
        self._transport = transport
        self._connection = connection
        self._waiting: dict[int, Reply] = {}
        self._sending = trio.Lock()

    async def greet(self) -> None:
        """Say hello. OSError, ConnectError."""
        await self._transport.send([self._connection.open()])
        while self._connection.hello is None:
            data = await self._transport.receive(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("closed before it said hello")
            for _ in self._connection.feed(data):
                pass

    async def read(self) -> None:
        """The task that reads, until the connection ends."""
        arrivals = Arrivals(self._transport, self._connection)
        with suppress(OSError, ConnectError):
            while (answers := await arrivals.take()) is not None:
                for answer in answers:
                    waiting = self._waiting.pop(answer.correlation_id, None)
                    if waiting is not None:
                        waiting.outcome, waiting.body = answer.message, answer.body
                        waiting.arrive()
        self.close()

    async def ask(self, request: Request, body: bytes) -> tuple[Response, memoryview]:
        """The answer. Raises ``Lost``, and the error the peer answers with.

        Cancelled: the connection stays; its answer is thrown away.
        """
        arrived = trio.Event()
        number, reply = await self._begin(request, body, arrived.set)
        try:
            if not reply.arrived:
                await arrived.wait()
        finally:
            self._waiting.pop(number, None)
        return reply.take()

    async def send(self, request: Request, told: Callable[[], None]) -> Reply:
        """Send a request without a body; the reply comes when it comes, in any order."""
        _, reply = await self._begin(request, b"", told)
        return reply

    async def _begin(
        self, request: Request, body: bytes, told: Callable[[], None]
    ) -> tuple[int, Reply]:
        number, head = self._connection.request(request, len(body))
        reply = self._waiting[number] = Reply(told)
        try:
            async with self._sending:
                if self.lost:
                    reply.arrive()
                else:
                    await self._send([head, body] if body else [head])
        except BaseException:
            self._waiting.pop(number, None)
            raise
        return number, reply

    async def _send(self, buffers: list[bytes]) -> None:
        whole = False
        try:
            await self._transport.send(buffers)
            whole = True
        except OSError:
            pass  # whoever waits is told by ``close``
        finally:
            if not whole:  # half a frame may have left
                self.close()

    def close(self) -> None:
        self.lost = True
        self._transport.close()
        waiting, self._waiting = self._waiting, {}
        for reply in waiting.values():
            reply.arrive()


class Peers:
    """Every other broker that was asked for something."""

    def __init__(self, dial: Callable[[Peer], Awaitable[Channel]]) -> None:
        self.dial = dial  # a connection of one's own: see ``Dialler.dial``
        self._channels: dict[str, Channel] = {}
        self._dialling: dict[str, trio.Lock] = {}
        self._start: Callable[[Channel], None] | None = None

    async def run(self) -> None:
        """Keep the connections until cancelled; then close them."""
        try:
            async with trio.open_nursery() as readers:
                self._start = lambda channel: readers.start_soon(channel.read)
                await trio.sleep_forever()
        finally:
            self._start = None
            for channel in self._channels.values():
                channel.close()

    async def ask(self, peer: Peer, request: Request, body: bytes = b"") -> tuple[Response, bytes]:
        """What a broker answers, and the bytes behind it.

        Raises ConnectError, as ``Dialler.dial`` does, if it cannot be reached (nothing was sent),
        ``Lost`` if the connection ended before the answer, and whatever error it answers with.
        """
        channel = await self._channel(peer)
        response, behind = await channel.ask(request, body)
        return response, bytes(behind)

    async def _channel(self, peer: Peer) -> Channel:
        async with self._dialling.setdefault(peer.broker_id, trio.Lock()):
            channel = self._channels.get(peer.broker_id)
            if channel is None or channel.lost:
                channel = await self._open(peer)
                self._channels[peer.broker_id] = channel
            return channel

    async def _open(self, peer: Peer) -> Channel:
        channel = await self.dial(peer)
        if self._start is None:
            channel.close()
            raise texts_client.no_broker([(channel.address, "this broker stops")], elapsed_s=0.0)
        self._start(channel)
        return channel
