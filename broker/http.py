"""HTTP: probes, metrics and the api, by starlette on hypercorn's trio worker.

The port is bound at once, before hypercorn and starlette are imported (0.2 s, in a thread, while
the broker opens its partitions): a probe that comes in meanwhile waits in the backlog and is
answered with 503 ``recovering`` as soon as there is somebody to answer. So HTTP costs the start of
a broker next to nothing and is there before recovery begins.

HTTP may fail, the broker may not fail with it (R40): a server that broke is logged and started
again, on the same socket. This is the one place that catches every Exception.
"""

import logging
import os
import socket
from typing import TYPE_CHECKING, Any

import trio

from tailrace.broker.config import Config
from tailrace.broker.kinds import Address
from tailrace.broker.security import read_token
from tailrace.protocol import texts_config

if TYPE_CHECKING:
    from tailrace.broker.http_app import HttpView

logger = logging.getLogger("tailrace.broker.http")

BACKLOG = 128
READ_TIMEOUT_S = 10  # for the rest of a request that has begun
KEEP_ALIVE_S = 60.0
DRAIN_S = 1.0  # for answers under way when HTTP stops
RESTART_PAUSE_S = 1.0


async def serve_http(
    view: "HttpView",
    config: Config,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; ``task_status`` gets the URL, with the real port, once it is bound.

    ConfigError T082 if the address cannot be bound or the token file is of no use.
    """
    assert config.http.bind is not None, "HTTP is off"
    token = read_token(config.http.token_file) if config.http.token_file else None
    listener = await bind(config.http.bind)
    with listener:
        task_status.started(f"http://{Address(*listener.getsockname()[:2])}")
        while True:
            try:
                await _serve_once(view, config, token, listener)
            except Exception as error:
                logger.error(
                    "HTTP server failed, starting it again: %r",
                    error,
                    exc_info=error,
                    extra={"event": "http.failed"},
                )
            await trio.sleep(RESTART_PAUSE_S)


async def bind(address: Address) -> socket.socket:
    """A listening socket; ConfigError T082 if the address is taken or not ours."""
    try:
        found = await trio.socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
        family, kind, protocol, _, target = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            listener.bind(target)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise texts_config.settings_contradict(
            "http.bind",
            origin="http.bind",
            problem=f"{address} cannot be bound: {error.strerror or error}",
            hint="Stop what listens there, or set http.bind.",
        ) from error
    return listener


async def _serve_once(
    view: "HttpView", config: Config, token: str | None, listener: socket.socket
) -> None:
    serve, app, settings = await trio.to_thread.run_sync(_assemble, view, config, token)
    # hypercorn closes what it is given: a duplicate leaves ours for another round.
    settings.bind = [f"fd://{os.dup(listener.fileno())}"]
    await serve(app, settings)


def _assemble(view: "HttpView", config: Config, token: str | None) -> tuple[Any, Any, Any]:
    """hypercorn's serve, the application, and hypercorn's settings: all the imports of HTTP."""
    import hypercorn.trio
    from hypercorn.config import Config as Settings

    from tailrace.broker.http_app import application

    settings = Settings()
    settings.errorlog = logging.getLogger("tailrace.broker.http.hypercorn")
    settings.errorlog.setLevel(logging.WARNING)  # below, it tells how to quit it
    settings.accesslog = None
    settings.include_server_header = False
    settings.read_timeout = READ_TIMEOUT_S
    settings.keep_alive_timeout = KEEP_ALIVE_S
    settings.graceful_timeout = DRAIN_S
    worker: Any = hypercorn.trio  # its own annotations are incomplete
    return worker.serve, application(view, config, token), settings
