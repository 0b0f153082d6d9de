"""HTTP: the three probes and the metrics, by starlette on hypercorn's trio worker.

The port is bound at once, before hypercorn and starlette are imported (0.2 s, in a thread, while
the broker opens its partitions): a probe that comes in meanwhile waits in the backlog and is
answered with 503 ``recovering`` as soon as there is somebody to answer. So HTTP costs the start of
a broker next to nothing and is there before recovery begins.

HTTP may fail, the broker may not fail with it (R40): a server that broke is logged and started
again, on the same socket. This is the one place that catches every Exception.
"""

import hmac
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import trio

from tailrace.broker.config import HttpConfig
from tailrace.broker.health import Health
from tailrace.broker.kinds import Address
from tailrace.broker.metrics import Metrics
from tailrace.broker.security import read_token
from tailrace.protocol import texts_config
from tailrace.protocol.console import error_document
from tailrace.protocol.texts_client import not_authorised

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

logger = logging.getLogger("tailrace.broker.http")

BACKLOG = 128
READ_TIMEOUT_S = 10  # for the rest of a request that has begun
KEEP_ALIVE_S = 60.0
DRAIN_S = 1.0  # for answers under way when HTTP stops
RESTART_PAUSE_S = 1.0
PATHS = ("/livez", "/readyz", "/startupz", "/metrics", "/metrics/detailed")


class HttpView(Protocol):
    """What HTTP shows of a broker."""

    @property
    def health(self) -> Health: ...

    @property
    def metrics(self) -> Metrics: ...


async def serve_http(
    view: HttpView,
    config: HttpConfig,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; ``task_status`` gets the URL, with the real port, once it is bound.

    ConfigError T082 if the address cannot be bound or the token file is of no use.
    """
    assert config.bind is not None, "HTTP is off"
    token = read_token(config.token_file) if config.token_file else None
    listener = await bind(config.bind)
    with listener:
        task_status.started(f"http://{Address(*listener.getsockname()[:2])}")
        while True:
            try:
                await _serve_once(view, token, listener)
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


async def _serve_once(view: HttpView, token: str | None, listener: socket.socket) -> None:
    serve, app, settings = await trio.to_thread.run_sync(_assemble, view, token)
    # hypercorn closes what it is given: a duplicate leaves ours for another round.
    settings.bind = [f"fd://{os.dup(listener.fileno())}"]
    await serve(app, settings)


def _assemble(view: HttpView, token: str | None) -> tuple[Any, Any, Any]:
    """hypercorn's serve, the application, and hypercorn's settings: all the imports of HTTP."""
    import hypercorn.trio
    from hypercorn.config import Config

    settings = Config()
    settings.errorlog = logging.getLogger("tailrace.broker.http.hypercorn")
    settings.errorlog.setLevel(logging.WARNING)  # below, it tells how to quit it
    settings.accesslog = None
    settings.include_server_header = False
    settings.read_timeout = READ_TIMEOUT_S
    settings.keep_alive_timeout = KEEP_ALIVE_S
    settings.graceful_timeout = DRAIN_S
    worker: Any = hypercorn.trio  # its own annotations are incomplete
    return worker.serve, application(view, token), settings


def application(view: HttpView, token: str | None) -> "Starlette":
    """The ASGI application; with a token everything but the probes asks for it."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    from tailrace.broker.exposition import CONTENT_TYPE, Exposition

    exposition = Exposition(view.metrics)

    def guarded(request: "Request", answer: Callable[[], Response]) -> Response:
        given = request.headers.get("authorization", "")
        if token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return answer()
        error = not_authorised(request.url.netloc, reason=_reason(given))
        return JSONResponse({"error": error_document(error)}, 401)

    async def livez(request: "Request") -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: "Request") -> Response:
        code, document = view.health.readiness()
        return JSONResponse(document, code)

    async def startupz(request: "Request") -> Response:
        code, document = view.health.startup()
        return JSONResponse(document, code)

    async def metrics(request: "Request") -> Response:
        await view.metrics.prepare()
        detailed = request.url.path.endswith("/detailed")
        return guarded(
            request,
            lambda: Response(
                exposition.text(detailed=detailed), headers={"content-type": CONTENT_TYPE}
            ),
        )

    async def index(request: "Request") -> Response:
        return guarded(request, lambda: PlainTextResponse("\n".join(PATHS) + "\n"))

    answers = (livez, readyz, startupz, metrics, metrics)
    routes = [Route(path, answer) for path, answer in zip(PATHS, answers, strict=True)]
    return Starlette(routes=[Route("/", index), *routes])


def _reason(given: str) -> str:
    return "wrong token" if given.startswith("Bearer ") else "no token given"
