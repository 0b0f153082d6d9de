"""Connections to other brokers: one each, opened when it is needed, for requests of this broker.

Many requests may be in flight on one; a task of ``Peers.run`` reads each connection. A connection
that ended is forgotten, the next request opens another. Waiting between attempts is the caller's.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from tailrace.broker.world import ServerNet
from tailrace.protocol import texts_client
from tailrace.protocol.connection import ClientConnection
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.messages import BrokerAddress, Request, Response
from tailrace.protocol.seams import Transport
from tailrace.protocol.version import SOFTWARE

CONNECT_S = 2.0  # to an open connection whose peer has said hello
RECEIVE_BYTES = 262_144


class Lost(Exception):
    """The connection ended before the answer came: the request may have been carried out."""


@dataclass(eq=False, slots=True)
class _Waiting:
    """One request without an answer."""

    arrived: trio.Event = field(default_factory=trio.Event)
    outcome: Response | TailraceError | None = None
    body: bytes = b""


class Channel:
    """One connection. Invariant: once ``lost``, nobody waits for it."""

    def __init__(self, transport: Transport, connection: ClientConnection) -> None:
        self.lost = False
        self._transport = transport
        self._connection = connection
        self._waiting: dict[int, _Waiting] = {}
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
        with suppress(OSError, ConnectError):
            while data := await self._transport.receive(RECEIVE_BYTES):
                for answer in self._connection.feed(data):
                    waiting = self._waiting.pop(answer.correlation_id, None)
                    if waiting is not None:
                        waiting.outcome, waiting.body = answer.message, bytes(answer.body)
                        waiting.arrived.set()
        self.close()

    async def ask(self, request: Request, body: bytes) -> tuple[Response, bytes]:
        """The answer. Raises ``Lost``, and the error the peer answers with.

        Cancelled: the connection stays; its answer is thrown away.
        """
        number, head = self._connection.request(request, len(body))
        waiting = self._waiting[number] = _Waiting()
        try:
            async with self._sending:
                if not self.lost:
                    await self._send([head, body] if body else [head])
            await waiting.arrived.wait()
        finally:
            self._waiting.pop(number, None)
        if waiting.outcome is None:
            raise Lost
        if isinstance(waiting.outcome, TailraceError):
            raise waiting.outcome
        return waiting.outcome, waiting.body

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
        for waiting in self._waiting.values():
            waiting.arrived.set()


class Peers:
    """Every other broker that was asked for something."""

    def __init__(self, net: ServerNet, broker_id: str, cluster_id: str) -> None:
        self._net = net
        self._broker_id = broker_id
        self._cluster_id = cluster_id
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

    async def ask(
        self, peer: BrokerAddress, request: Request, body: bytes = b""
    ) -> tuple[Response, bytes]:
        """What a broker answers, and the bytes behind it.

        Raises ConnectError T001 if it cannot be reached (nothing was sent), ``Lost`` if the
        connection ended before the answer, and whatever error it answers with.
        """
        channel = await self._channel(peer)
        return await channel.ask(request, body)

    async def _channel(self, peer: BrokerAddress) -> Channel:
        async with self._dialling.setdefault(peer.broker_id, trio.Lock()):
            channel = self._channels.get(peer.broker_id)
            if channel is None or channel.lost:
                channel = await self._open(peer)
                self._channels[peer.broker_id] = channel
            return channel

    async def _open(self, peer: BrokerAddress) -> Channel:
        address = f"{peer.host}:{peer.port}"
        began = trio.current_time()
        reason = "timed out"
        with trio.move_on_after(CONNECT_S):
            try:
                return await self._greet(peer, address)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
        elapsed_s = trio.current_time() - began
        raise texts_client.no_broker([(address, reason)], elapsed_s=elapsed_s)

    async def _greet(self, peer: BrokerAddress, address: str) -> Channel:
        transport = await self._net.connect(peer.host, peer.port)
        connection = ClientConnection(self._broker_id, SOFTWARE, self._cluster_id, address)
        channel = Channel(transport, connection)
        try:
            await channel.greet()
            if self._start is None:
                raise ConnectionAbortedError("this broker stops")
            self._start(channel)
        except BaseException:
            channel.close()
            raise
        return channel
