"""HTTP: probes, metrics and the api, by starlette and h11.

The port is bound at once, before h11 and starlette are imported (0.2 s, in a thread, while
the broker opens its partitions): a probe that comes in meanwhile waits in the backlog and is
answered with 503 ``recovering`` as soon as there is somebody to answer. So HTTP costs the start of
a broker next to nothing and is there before recovery begins.

HTTP may fail, the broker may not fail with it (R40): a server that broke is logged and started
again, on the same socket. This is the one place that catches every Exception.
"""

import logging
from typing import TYPE_CHECKING

import trio

from tailrace.broker.config import Config
from tailrace.broker.kinds import Address
from tailrace.broker.security import read_token
from tailrace.broker.world import Listener, ServerNet
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
    listener = await bind(net, config.http.bind)
    try:
        task_status.started(f"http://{Address(listener.host, listener.port)}")
        while True:
            try:
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
