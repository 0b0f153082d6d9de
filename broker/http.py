"""HTTP: probes, metrics and the api, by starlette and h11.

The port is bound at once; h11 and starlette are imported (0.2 s, in a thread; 6 MB) when the first
connection is there, which waits for them: a probe that comes while the broker opens its partitions
is answered with 503 ``recovering``. So HTTP costs a broker next to nothing until it is used.

HTTP may fail, the broker may not fail with it (R40): a server that broke is logged and started
again, on the same socket. This is the one place that catches every Exception.
"""

import logging
from typing import TYPE_CHECKING

import trio

from tailrace.broker.config import Config
from tailrace.broker.kinds import Address
from tailrace.broker.security import read_token
from tailrace.broker.world import Listener, ServerNet, ServerTransport
from tailrace.protocol import texts_config

if TYPE_CHECKING:
    from tailrace.broker.http_app import HttpView
    from tailrace.broker.http_server import HttpServer

logger = logging.getLogger("tailrace.broker.http")

RESTART_PAUSE_S = 1.0


async def serve_http(
    view: "HttpView",
    config: Config,
    net: ServerNet,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; ``task_status`` gets the URL, with the real port, once it is bound.

    ConfigError T082 if the address cannot be bound or the token file is of no use.
    """
    assert config.http.bind is not None, "HTTP is off"
    token = read_token(config.http.token_file) if config.http.token_file else None
    listener = Doorway(await bind(net, config.http.bind))
    try:
        task_status.started(f"http://{Address(listener.host, listener.port)}")
        while True:
            try:
                await listener.knocked()
                server = await trio.to_thread.run_sync(assemble, view, config, token)
                await server.serve(listener)
            except Exception as error:
                logger.error(
                    "HTTP server failed, starting it again: %r",
                    error,
                    exc_info=error,
                    extra={"event": "http.failed"},
                )
            await trio.sleep(RESTART_PAUSE_S)
    finally:
        listener.close()


class Doorway:
    """A listener that can be watched until somebody comes, who is still there to be accepted."""

    def __init__(self, inner: Listener) -> None:
        self.host = inner.host
        self.port = inner.port
        self._inner = inner
        self._first: ServerTransport | None = None

    async def knocked(self) -> None:
        """Return once a connection can be accepted. Raises what ``accept`` does."""
        if self._first is None:
            self._first = await self._inner.accept()

    async def accept(self) -> ServerTransport:
        """As ``Listener.accept``."""
        if self._first is None:
            return await self._inner.accept()
        await trio.lowlevel.checkpoint()
        first, self._first = self._first, None
        return first

    def close(self) -> None:
        """Whoever came and was not accepted is gone, too."""
        self._inner.close()
        if self._first is not None:
            self._first.close()


async def bind(net: ServerNet, address: Address) -> Listener:
    """A listener; ConfigError T082 if the address is taken or not ours."""
    try:
        return await net.listen(*address, tls=None)
    except OSError as error:
        raise texts_config.settings_contradict(
            "http.bind",
            origin="http.bind",
            problem=f"{address} cannot be bound: {error.strerror or error}",
            hint="Stop what listens there, or set http.bind (tailrace dev: --http-port).",
        ) from error


def assemble(view: "HttpView", config: Config, token: str | None) -> "HttpServer":
    """What serves the application: all the imports of HTTP."""
    from tailrace.broker.http_app import application
    from tailrace.broker.http_server import HttpServer

    return HttpServer(application(view, config, token), view.metrics)
