"""Connections of HTTP: accepted and bounded. What goes over one is in ``http_connection.py``.

- At most ``CONNECTIONS_MAX`` at once; beyond, the one that idles longest makes room, or the new one
  is told 503;
- what goes wrong on one ends there, and never the server (R40).
"""

import logging
import math
import time
from contextlib import suppress

import trio

from tailrace.broker.groups import first_of
from tailrace.broker.http_connection import Asgi, HttpConnection
from tailrace.broker.http_errors import error_body
from tailrace.broker.metrics import Metrics
from tailrace.broker.world import Listener, ServerTransport
from tailrace.protocol import texts_http

log = logging.getLogger("tailrace.broker.http")

CONNECTIONS_MAX = 256
ACCEPT_PAUSE_S = 0.1
SWEEP_S = 1.0
LISTENER = "http"  # in metrics


class HttpServer:
    """Serves an application to whoever connects."""

    def __init__(self, app: Asgi, metrics: Metrics) -> None:
        self.open: dict[HttpConnection, None] = {}
        self._app = app
        self._metrics = metrics

    async def serve(self, listener: Listener) -> None:
        """Until cancelled: then every connection is closed at once."""
        async with trio.open_nursery() as connections:
            connections.start_soon(self._sweep)
            while True:
                try:
                    transport = await listener.accept()
                except OSError:
                    await trio.sleep(ACCEPT_PAUSE_S)
                    continue
                if len(self.open) >= CONNECTIONS_MAX and not self._make_room():
                    self._refuse(transport)
                    continue
                connection = HttpConnection(self._app, transport, (listener.host, listener.port))
                self.open[connection] = None
                connections.start_soon(self._run, connection)

    async def _sweep(self) -> None:
        """End what idles for too long, or takes too long with its head."""
        while True:
            await trio.sleep(SWEEP_S)
            now = time.monotonic()
            for connection in self.open:
                if connection.due_at <= now:
                    connection.end()

    async def _run(self, connection: HttpConnection) -> None:
        self._metrics.connections.of(LISTENER).inc()
        try:
            await connection.run()
        except* Exception as errors:
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
