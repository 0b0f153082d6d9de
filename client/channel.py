"""One open connection to a broker: many requests in flight, no task for any of them.

``post`` writes a request at once and later calls a function with its outcome; ``request`` is the
same for a task that waits. One task reads; a second one exists only while the socket is full.

Invariants:
- every request that was posted gets exactly one outcome: its answer, or ``Lost``;
- outcomes are handed over synchronously, by the reading task or by ``close``;
- a channel that is lost stays lost: whoever wants another one dials again (``link.py``).
"""

import math
import ssl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import anyio

from tailrace.client.net import TcpTransport, reason_of
from tailrace.client.options import Address
from tailrace.client.runtime import Runtime
from tailrace.protocol import foreign, texts_client
from tailrace.protocol.bodies import NO_BODY
from tailrace.protocol.connection import Answer, ClientConnection
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.messages import HelloResponse, Request, Response
from tailrace.protocol.seams import Transport
from tailrace.protocol.texts_wire import other_protocol
from tailrace.protocol.units import format_seconds
from tailrace.protocol.version import SOFTWARE

JOIN_BYTES_MAX = 16 << 10  # bodies up to this leave in one piece with their head
READ_BYTES = 64 << 10  # while no large body is under way, which is received into its own memory
READ_BYTES_MAX = 256 << 10  # of what a transport has decrypted
SILENCE_SHARE = 0.9  # of the time to connect; the rest is for finding out who is silent

Body = Sequence[bytes | bytearray | memoryview]


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection ended before the answer came: the request may have been carried out."""

    address: Address
    reason: str

    def error(self, elapsed_s: float) -> ConnectError:
        """T001 for whoever waited so long."""
        return texts_client.no_broker([(str(self.address), self.reason)], elapsed_s=elapsed_s)


class Written(Enum):
    """The outcome of a request that gets no answer (acks 0): the socket has all of it."""

    WRITTEN = 1


WRITTEN = Written.WRITTEN
Outcome = Response | TailraceError | Lost | Written
OnOutcome = Callable[[Outcome, memoryview], None]


async def open_channel(
    runtime: Runtime, address: Address, cluster_id: str | None, timeout: float
) -> "Channel":
    """Dial and greet.

    Raises OSError (nobody there, broke, or ``TimeoutError`` after ``timeout`` seconds) or
    ConnectError (T004 someone else is there, T120 no common version, T121 and so on). Cancelled:
    nothing stays open.
    """
    options = runtime.options
    with anyio.move_on_after(timeout):
        try:
            transport = await runtime.net.connect(address.host, address.port, options.tls)
        except ssl.SSLError as error:
            raise _not_tls(address, error) from error
        connection = ClientConnection(options.client_id, SOFTWARE, cluster_id, str(address))
        try:
            hello = None
            with anyio.move_on_after(timeout * SILENCE_SHARE):
                hello = await _greet(transport, connection)
            if hello is None:
                await _nudge(transport, connection)
                raise TimeoutError
        except BaseException:
            transport.close()
            raise
        channel = Channel(runtime, address, connection, hello, transport)
        runtime.start_soon(channel.read)
        return channel
    raise TimeoutError


def _not_tls(address: Address, error: ssl.SSLError) -> OSError | ConnectError:
    """T004 if the other side does not speak TLS at all."""
    found = foreign.instead_of_tls(error.reason or "")
    return error if found is None else other_protocol(str(address), found=found, expected="TLS")


async def _greet(transport: Transport, connection: ClientConnection) -> HelloResponse:
    await transport.send([connection.open()])
    while connection.hello is None:
        data = await transport.receive(READ_BYTES)
        if not data:
            raise ConnectionResetError("closed during the greeting")
        for _ in connection.feed(data):
            pass  # Hello's answer, which is connection.hello now
    return connection.hello


async def _nudge(transport: Transport, connection: ClientConnection) -> None:
    """Find out whether the peer is an HTTP server, which waits for the end of a request.

    It is sent one, and says what it is: T004 then, and no T001 after all. Of our own frames this is
    less than a header, so a broker that wakes up just now makes nothing of it.
    """
    await transport.send([b"\r\n\r\n"])
    if data := await transport.receive(READ_BYTES):
        list(connection.feed(data))


class Channel:
    """See the module; made by ``open_channel``."""

    def __init__(
        self,
        runtime: Runtime,
        address: Address,
        connection: ClientConnection,
        hello: HelloResponse,
        transport: Transport,
    ) -> None:
        self.address = address
        self.hello = hello
        self.lost: Lost | None = None
        self.answered = 0  # requests, since the greeting
        self.on_lost: Callable[[Lost], None] | None = None
        self._runtime = runtime
        self._connection = connection
        self._transport = transport
        self._waiting: dict[int, OnOutcome] = {}
        self._outbox: list[bytes | bytearray | memoryview] = []
        self._writing = False
        self._unanswered: list[OnOutcome] = []
        self._room: anyio.Event | None = None

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return len(self._waiting)

    def post(self, message: Request, body: Body, on_outcome: OnOutcome) -> None:
        """Send now; ``on_outcome`` is called later.

        A produce request with acks 0 gets no answer: its outcome is ``WRITTEN``, which may come
        before this returns. Raises ConnectError T122 if the broker does not serve the request. The
        channel must not be lost.
        """
        assert self.lost is None
        length = sum(map(len, body))
        before = self._connection.in_flight
        correlation_id, data = self._connection.request(message, length)
        if self._connection.in_flight > before:
            self._waiting[correlation_id] = on_outcome
        else:
            self._unanswered.append(on_outcome)
        if length <= JOIN_BYTES_MAX:
            self._write([data + b"".join(body)] if body else [data])
        else:
            self._write([data, *body])
        if not self._outbox and not self._writing:
            self._all_written()

    async def request(
        self,
        message: Request | Callable[[], Request],
        body: Body = (),
        *,
        timeout: float = math.inf,
    ) -> tuple[Response, memoryview]:
        """Send, wait for the answer, return it with its body. A function is asked for the message
        when it is sent, after the wait for room.

        Raises the error the broker answered, ConnectError T001 if the connection was lost, and
        RequestTimeout T034; after that the connection is closed, as nothing is heard from it.
        Cancelled: the request may still be carried out; its answer is dropped.
        """
        began = self._runtime.clock.now()
        done = anyio.Event()
        outcomes: list[tuple[Outcome, memoryview]] = []

        def arrived(outcome: Outcome, content: memoryview) -> None:
            outcomes.append((outcome, content))
            done.set()

        with anyio.move_on_after(timeout):
            while self.lost is None and self.in_flight >= self.hello.in_flight_max:
                self._room = self._room or anyio.Event()
                await self._room.wait()
            if self.lost is None:
                message = message() if callable(message) else message
                self.post(message, body, arrived)
                await done.wait()
        elapsed = self._runtime.clock.now() - began
        if not outcomes:
            if self.lost is None:
                self.close(f"no answer in {format_seconds(timeout)} s")
                raise texts_client.request_timeout(
                    name_of(message), address=str(self.address), waited_s=elapsed
                )
            raise self.lost.error(elapsed)
        outcome, content = outcomes[0]
        if isinstance(outcome, Lost):
            raise outcome.error(elapsed)
        if isinstance(outcome, TailraceError):
            raise outcome
        assert not isinstance(outcome, Written), "only the sender asks without wanting an answer"
        return outcome, content

    def close(self, reason: str = "closed") -> None:
        """End it now; what waits gets ``Lost``. Safe to call again."""
        if self.lost is not None:
            return
        self.lost = Lost(self.address, reason)
        self._transport.close()
        self._outbox.clear()
        if self.on_lost is not None:  # first, so that nobody below tries this one again
            self.on_lost(self.lost)
        waiting = [*self._waiting.values(), *self._unanswered]
        self._waiting, self._unanswered = {}, []
        for on_outcome in waiting:
            on_outcome(self.lost, NO_BODY)
        self._make_room()

    async def read(self) -> None:
        """The reading task: until the connection ends, for whatever reason."""
        transport = self._transport
        try:
            if isinstance(transport, TcpTransport):
                await transport.each_readable(partial(self._readable, transport))
            else:
                while await self._receive():
                    pass
            self.close("closed by the broker")
        except OSError as error:
            self.close(reason_of(error))
        except ConnectError as error:
            self.close(error.message)

    def _readable(self, transport: TcpTransport) -> bool:
        """Take what is there, to where it belongs; False when the broker has closed."""
        room = self._connection.room()
        if room is None:
            data = transport.receive_nowait(READ_BYTES)
            if data:
                self._take(self._connection.feed(data))
            return data != b""
        count = transport.receive_into_nowait(room)
        del room  # so that its memory may be used again
        if count:
            self._take(self._connection.filled(count))
        return count != 0

    async def _receive(self) -> bool:
        """The same where bytes come in pieces that somebody else has made."""
        data = await self._transport.receive(READ_BYTES_MAX)
        if data:
            self._take(self._connection.feed(data))
        return bool(data)

    def _take(self, answers: Iterator[Answer]) -> None:
        for answer in answers:
            on_outcome = self._waiting.pop(answer.correlation_id, None)
            self.answered += 1
            if on_outcome is not None:
                on_outcome(answer.message, answer.body)
        self._make_room()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    def _write(self, buffers: list[bytes | bytearray | memoryview]) -> None:
        """As much as the socket takes at once; the rest by a task, in order."""
        if not self._writing:
            self._send_at_once(buffers)
        self._outbox += buffers
        if self._outbox and not self._writing:
            self._writing = True
            self._runtime.start_soon(self._drain)

    def _send_at_once(self, buffers: list[bytes | bytearray | memoryview]) -> None:
        """Drop from the front what is taken; a head goes together with its body, or the broker
        would wake up for the head alone."""
        transport, first = self._transport, buffers[0]
        try:
            if len(buffers) > 1 and isinstance(transport, TcpTransport):
                transport.gather_nowait(buffers)
                return
            taken = transport.send_nowait(first) if isinstance(first, bytes) else 0
        except OSError:
            return  # the reading task notices too, and says why
        if taken == len(first):
            del buffers[0]
        elif taken:
            buffers[0] = memoryview(first)[taken:]

    async def _drain(self) -> None:
        try:
            while self._outbox:
                buffers, self._outbox = self._outbox, []
                await self._transport.send(buffers)
        except OSError as error:
            self.close(reason_of(error))
            return
        finally:
            self._writing = False
        self._all_written()  # at last: whoever hears of it may write more, and start the next one

    def _all_written(self) -> None:
        unanswered, self._unanswered = self._unanswered, []
        for on_outcome in unanswered:
            on_outcome(WRITTEN, NO_BODY)


def name_of(message: Request | Callable[[], Request]) -> str:
    """ "create topic", "fetch": for error texts. Of a function its own name."""
    name = getattr(message, "__name__", type(message).__name__).removesuffix("Request")
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
