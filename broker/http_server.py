"""Connections of HTTP: accepted, bounded and ended here. What goes over one is hypercorn's.

hypercorn's own worker takes any number of connections, waits for ever for a client that does not
read (shielded: not even a stop ends that), and its one read timeout would also end answers that
take long. So sockets and deadlines are ours, and of hypercorn it is the HTTP/1.1 protocol:

- at most ``CONNECTIONS_MAX`` at once; beyond, the one that idles longest makes room, or the new one
  is told 503;
- a connection idles for ``KEEP_ALIVE_S``; a head that began is complete within ``HEADER_S``;
- whoever does not take ``WRITE_BYTES`` within ``WRITE_STALL_S`` is cut off, and with it whatever
  is being done for it;
- a body that nobody wants is read and thrown away for ``DISCARD_S``, so that the answer arrives;
- HTTP/2 is not offered: one protocol, one set of limits.
"""

import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, cast

import trio
from h11 import Request
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as Settings
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from tailrace.broker.groups import first_of
from tailrace.broker.http_errors import error_body
from tailrace.broker.limits import WRITE_STALL_S
from tailrace.broker.metrics import Metrics
from tailrace.broker.world import Listener, ServerTransport
from tailrace.protocol import texts_http

log = logging.getLogger("tailrace.broker.http")

CONNECTIONS_MAX = 256
RECEIVE_BYTES = 16_384  # at once; two of them wait for the application, at most
KEEP_ALIVE_S = 60.0
HEADER_S = 10.0  # from its first byte
DISCARD_S = 2.0
LINGER_S, LINGER_RECEIVES = 0.01, 16
WRITE_BYTES = 65_536
ACCEPT_PAUSE_S = 0.1
LISTENER = "http"  # in metrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]


class HttpServer:
    """Serves an application to whoever connects."""

    def __init__(self, app: Asgi, settings: Settings, metrics: Metrics) -> None:
        settings.max_app_queue_size = 2
        self.settings = settings
        self.app = ASGIWrapper(cast(Any, _Discarding(app)))
        self.context = WorkerContext(None)
        self.open: dict[_Connection, None] = {}
        self._metrics = metrics

    async def serve(self, listener: Listener) -> None:
        """Until cancelled: then every connection is closed at once."""
        async with trio.open_nursery() as connections:
            while True:
                try:
                    transport = await listener.accept()
                except OSError:
                    await trio.sleep(ACCEPT_PAUSE_S)
                    continue
                if len(self.open) >= CONNECTIONS_MAX and not self._make_room():
                    self._refuse(transport)
                    continue
                connection = _Connection(self, transport, (listener.host, listener.port))
                self.open[connection] = None
                connections.start_soon(self._run, connection)

    async def _run(self, connection: "_Connection") -> None:
        self._metrics.connections.of(LISTENER).inc()
        try:
            await connection.run()
        except* Exception as errors:
            # What goes wrong on one connection ends there (R40). Cut off, hypercorn may still try
            # to answer, and h11 refuses.
            log.log(
                logging.DEBUG if connection.cut_off or _cancelled() else logging.WARNING,
                "HTTP connection ended: %r",
                first_of(errors),
                exc_info=errors,
                extra={"event": "http.connection_failed", "code": None},
            )
        finally:
            self._metrics.connections.of(LISTENER).dec()
            self.open.pop(connection, None)

    def _make_room(self) -> bool:
        """End the connection that idles longest; False if there is none."""
        idle = min(
            (one for one in self.open if one.idle_since < math.inf),
            key=lambda one: one.idle_since,
            default=None,
        )
        if idle is not None:
            del self.open[idle]
            idle.end()
        return idle is not None

    def _refuse(self, transport: ServerTransport) -> None:
        self._metrics.connections_refused.of("http").inc()
        body = error_body(texts_http.too_busy("HTTP connections", limit=CONNECTIONS_MAX))
        head = (
            "HTTP/1.1 503 \r\ncontent-type: application/json\r\nretry-after: 1\r\n"
            f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with suppress(OSError):  # it may be gone already
            transport.send_nowait(head.encode() + body)
        transport.close()


def _cancelled() -> bool:
    return trio.current_effective_deadline() == -math.inf


class _Http1(H11Protocol):
    """hypercorn's HTTP/1.1, which becomes neither HTTP/2 nor a WebSocket: who asks for another
    protocol is answered in HTTP/1.1."""

    async def _check_protocol(self, event: Request) -> None:
        return

    async def _create_stream(self, request: Request) -> None:
        # A refused WebSocket of hypercorn's stays open for ever, and nobody's deadline ends it.
        headers = request.headers.raw_items()
        plain = [pair for pair in headers if pair[0].lower() != b"upgrade"]
        if len(plain) < len(headers):
            request = Request(
                method=request.method,
                target=request.target,
                headers=plain,
                http_version=request.http_version,
            )
        await super()._create_stream(request)


class _Connection:
    """Invariant: ``idle_since`` is infinite while a request is in hand."""

    def __init__(
        self, server: HttpServer, transport: ServerTransport, bound: tuple[str, int]
    ) -> None:
        self.idle_since = trio.current_time()
        self._server = server
        self._transport = transport
        self._bound = bound
        self._life = trio.CancelScope()  # of everything that is done for it
        self._reading = trio.CancelScope()
        self._deadline = self.idle_since + KEEP_ALIVE_S  # of the next bytes
        self._head_began = False
        self._ended = False  # by the protocol
        self._sending = trio.Lock()
        self._protocol: H11Protocol | None = None

    @property
    def cut_off(self) -> bool:
        """It was ended here, whatever was under way."""
        return self._life.cancel_called

    def end(self) -> None:
        """At once, with whatever is being done for it."""
        self._life.cancel()

    async def run(self) -> None:
        """Until either side ends it."""
        try:
            with self._life:
                async with TaskGroup() as group:
                    host, _, port = self._transport.peer.rpartition(":")
                    self._protocol = _Http1(
                        *(self._server.app, self._server.settings, self._server.context, group),
                        *(ConnectionState({}), False, (host.strip("[]"), int(port)), self._bound),
                        self._handle,
                    )
                    await self._read(self._protocol)
                await self._linger()
        finally:
            self._transport.close()

    async def _read(self, protocol: H11Protocol) -> None:
        data = b"?"
        while data and not self._ended:
            data = await self._receive()
            if not self._ended:
                await protocol.handle(RawData(data))
        await protocol.handle(Closed())

    async def _linger(self) -> None:
        """Take what has come meanwhile: closed with unread bytes, the peer may lose the answer."""
        for _ in range(LINGER_RECEIVES):
            with trio.move_on_after(LINGER_S), suppress(OSError):
                if await self._transport.receive(RECEIVE_BYTES):
                    continue
            break

    async def _receive(self) -> bytes:
        """The next bytes; none at the end, or when they take too long."""
        data = b""
        with trio.CancelScope(deadline=self._deadline) as self._reading:
            with suppress(OSError):
                data = await self._transport.receive(RECEIVE_BYTES)
        if data and self.idle_since < math.inf and not self._head_began:
            self._head_began = True
            self._set_deadline(trio.current_time() + HEADER_S)
        return data

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = self._reading.deadline = deadline

    async def _handle(self, event: Event) -> None:
        """What the protocol wants done."""
        if isinstance(event, RawData):
            await self._write(event.data)
        elif isinstance(event, Updated):
            now = trio.current_time()
            self._head_began = False
            self.idle_since = now if event.idle else math.inf
            self._set_deadline(now + KEEP_ALIVE_S if event.idle else math.inf)
        elif isinstance(event, Closed) and self._protocol is not None:
            self._ended = True
            self._reading.cancel()
            await self._protocol.handle(Closed())

    async def _write(self, data: bytes) -> None:
        """Cancelled, with all of the connection, if the peer is gone or does not read."""
        view = memoryview(data)
        if not self._sending.locked():
            # Mostly there is room for all of it: a lock and a deadline cost more than that.
            try:
                view = view[self._transport.send_nowait(data) :]
            except OSError:
                self.end()
                await trio.lowlevel.checkpoint_if_cancelled()
            if not view:
                return
        async with self._sending:
            for first in range(0, len(view), WRITE_BYTES):
                with trio.move_on_after(WRITE_STALL_S) as scope:
                    try:
                        await self._transport.send([view[first : first + WRITE_BYTES]])
                        continue
                    except OSError:
                        pass
                if scope.cancelled_caught or not scope.cancel_called:
                    self.end()
                    await trio.lowlevel.checkpoint_if_cancelled()


class _Discarding:
    """An application whose unread bodies are read to their end, or for a while.

    hypercorn hands bodies over through a short queue. Whoever answers without reading must empty
    it, else the connection's reader waits for room in it for ever; and a client that still sends
    when the connection is closed may lose the answer.
    """

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body = _Unread(receive, send)
        app = _refuse_two_lengths if _has_two_lengths(scope) else self._app
        await app(scope, body.receive, body.send)


async def _refuse_two_lengths(scope: Message, receive: Receive, send: Send) -> None:
    """A proxy in front may have taken the other one: what follows could be somebody else's."""
    headers = [(b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _has_two_lengths(scope: Message) -> bool:
    names = {name.lower() for name, _ in scope["headers"]}
    return {b"transfer-encoding", b"content-length"} <= names


def _has_body(scope: Message) -> bool:
    return any(
        name.lower() == b"transfer-encoding"
        or (name.lower() == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


class _Unread:
    """The body of one request."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._complete = True
        return message

    async def send(self, message: Message) -> None:
        if self._complete:
            await self._send(message)
        elif message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"connection", b"close")]
            await self._send({**message, "headers": headers})
        elif message.get("more_body", False):
            await self._send(message)
        else:
            await self._finish(message)

    async def _finish(self, message: Message) -> None:
        if message.get("body", b""):
            await self._send({**message, "more_body": True})
        with trio.move_on_after(DISCARD_S):
            while not self._complete:
                await self.receive()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._discard)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()

    async def _discard(self) -> None:
        while not self._complete:
            await self.receive()
