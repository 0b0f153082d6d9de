"""The ASGI application: probes, metrics, and ``/api/v1/`` by its table of endpoints.

One way through for every request of the api: the guard (``http_guard``), parameters and body as
the endpoint describes them, its handler, the answer; whatever is raised on the way becomes an error
document at one place (``_Api._respond``).

Imported only if HTTP is on: it brings starlette.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.responses import Response
from starlette.routing import Route, Router

from tailrace.broker.config import Config
from tailrace.broker.exposition import CONTENT_TYPE, Exposition
from tailrace.broker.gateway import Gateway
from tailrace.broker.health import Health
from tailrace.broker.http_endpoint import JSON, Context, Endpoint, Reply
from tailrace.broker.http_errors import (
    Refused,
    as_request_error,
    error_body,
    headers_of,
    status_of,
)
from tailrace.broker.http_guard import (
    FREE_BYTES,
    Account,
    Budget,
    Gone,
    answers,
    bodies,
    check_token,
    content_type_of,
    is_own_host,
    own_hosts,
    read_body,
)
from tailrace.broker.http_table import ENDPOINTS
from tailrace.broker.metrics import Metrics
from tailrace.protocol import texts_http
from tailrace.protocol.console import compact
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.shapes import to_json
from tailrace.protocol.texts import shown

logger = logging.getLogger("tailrace.broker.http")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
PROBES = ("/livez", "/readyz", "/startupz")
METRICS = ("/metrics", "/metrics/detailed")
API = "/api/"
QUERY_FIELDS_MAX = 100
LAST_BODIES_S = 1.0  # for bodies that are on their way when the broker stops
LATER_PARAMETERS = ("filter",)


class HttpView(Protocol):
    """What HTTP shows of a broker."""

    @property
    def health(self) -> Health: ...

    @property
    def metrics(self) -> Metrics: ...

    @property
    def config(self) -> Config:
        """As it is now."""
        ...

    @property
    def gateway(self) -> Gateway | None:
        """None until the broker serves, and again when it stops."""
        ...


def application(view: HttpView, config: Config, token: str | None) -> Asgi:
    """The whole of HTTP; with a token everything but the probes asks for it."""
    return _Application(view, config, token, ENDPOINTS)


class _Application:
    def __init__(
        self, view: HttpView, config: Config, token: str | None, endpoints: Sequence[Endpoint]
    ) -> None:
        self._view = view
        self._config = config
        self._token = token
        self._own_hosts = own_hosts(config)
        self._bodies = bodies()
        self._answers = answers()
        self._exposition = Exposition(view.metrics)
        by_path: dict[str, dict[str, Endpoint]] = {}
        for endpoint in endpoints:
            by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        self._paths = ("/", *PROBES, *METRICS, *by_path)
        routes = [Route(path, self._api(methods)) for path, methods in by_path.items()]
        # What has no name in its path needs no router: a look-up in its place is what scrapes cost.
        self._fixed: dict[str, Asgi] = {one.path: one.app for one in routes if "{" not in one.path}
        for path, answer in (
            ("/", self._index),
            ("/livez", self._livez),
            ("/readyz", self._readyz),
            ("/startupz", self._startupz),
            *((path, self._metrics) for path in METRICS),
        ):
            self._fixed[path] = self._plain(answer)
        self._router = Router(routes, redirect_slashes=False, default=self._unknown)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._give_way()
        # Names may hold a slash: paths are taken apart first and unquoted then.
        path = scope["path"] = scope["raw_path"].decode("latin-1")
        scope["path_params"] = {}
        await self._fixed.get(path, self._router)(scope, receive, send)

    async def _give_way(self) -> None:
        """Sends that wait for the disk are in more of a hurry."""
        gateway = self._view.gateway
        if gateway is not None:
            await gateway.node.flusher.give_way()

    # ── the border ───────────────────────────────────────────────────────────────────────────

    def _guarded(self, answer: Callable[[Scope, Receive], Awaitable[Response]]) -> "_Border":
        return _Border(answer, self._config.broker.id, self._answers, self._give_way)

    def _plain(self, answer: Callable[[Scope], Awaitable[Response]]) -> "_Border":
        """A path outside of the api: GET only."""

        async def respond(scope: Scope, receive: Receive) -> Response:
            if scope["path"] not in PROBES:
                self._check_token(scope)
            if scope["method"] not in ("GET", "HEAD"):
                raise _not_allowed(scope, ("GET", "HEAD"))
            return await answer(scope)

        return self._guarded(respond)

    def _api(self, methods: Mapping[str, Endpoint]) -> "_Border":
        allowed = sorted({*methods, "HEAD"} if "GET" in methods else methods)

        async def respond(scope: Scope, receive: Receive) -> Response:
            self._check_access(scope)
            method: str = scope["method"]
            endpoint = methods.get("GET" if method == "HEAD" else method)
            if endpoint is None:
                raise _not_allowed(scope, allowed)
            return await self._call(endpoint, scope, receive)

        return self._guarded(respond)

    async def _unknown(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def respond(scope: Scope, receive: Receive) -> Response:
            self._check_access(scope)
            raise Refused(404, texts_http.unknown_path(scope["path"]))

        await self._guarded(respond)(scope, receive, send)

    def _check_token(self, scope: Scope) -> None:
        headers = headers_in(scope)
        check_token(
            self._token, headers.get("authorization", ""), host=headers.get("host", "") or "broker"
        )

    def _check_access(self, scope: Scope) -> None:
        self._check_token(scope)
        if self._token is not None or not scope["path"].startswith(API):
            return
        host = headers_in(scope).get("host", "")
        server: Any = scope.get("server") or ("", 0)
        if not is_own_host(host, self._own_hosts, str(server[0])):
            raise Refused(421, texts_http.foreign_host(host))

    # ── the api ──────────────────────────────────────────────────────────────────────────────

    async def _call(self, endpoint: Endpoint, scope: Scope, receive: Receive) -> Response:
        headers = headers_in(scope)
        gateway = self._view.gateway
        if gateway is None:
            raise texts_http.not_serving(self._config.broker.id, what=self._why())
        content_type = ""
        if endpoint.body is not None:
            known = endpoint.body.content_types
            given = headers.get("content-type", "")
            found = content_type_of(given, known)
            if found is None:
                raise Refused(415, texts_http.wrong_content_type(given, expected=known))
            content_type = found
            encoding = headers.get("content-encoding", "identity")
            if encoding.strip().lower() != "identity":
                raise Refused(415, texts_http.wrong_content_encoding(encoding))
        values = endpoint.read(_path_values(scope), _query_values(scope))
        client: Any = scope.get("client") or ("", 0)
        what = f"http {client[0]}:{client[1]}: {scope['method']} {shown(scope['path'])}"
        with gateway.hand(what), self._bodies.account() as account:
            body, document = b"", None
            if endpoint.body is not None:
                limit = min(endpoint.body.bytes_max, self._config.limits.request_size_bytes)
                with gateway.patience(LAST_BODIES_S) as waiting:
                    body = await read_body(receive, headers, limit, account)
                if waiting.cancelled_caught:
                    raise texts_http.not_serving(self._config.broker.id, what="is stopping")
                if endpoint.body.kind is not None:
                    document = _decode(body, endpoint.body.kind)
            context = Context(
                *(gateway, self._view.config, values, scope["answer"]),
                *(headers, content_type, body, document),
            )
            return _response(await endpoint.handler(context))

    def _why(self) -> str:
        health = self._view.health
        if health.draining:
            return "is stopping"
        if health.recovered:
            return "is starting"
        return f"is recovering: {health.partitions_done} of {health.partitions_total} opened"

    # ── probes and metrics ───────────────────────────────────────────────────────────────────

    async def _index(self, scope: Scope) -> Response:
        return Response("\n".join(self._paths) + "\n", media_type="text/plain")

    async def _livez(self, scope: Scope) -> Response:
        return _json({"status": "ok"})

    async def _readyz(self, scope: Scope) -> Response:
        status, document = self._view.health.readiness()
        return _json(document, status)

    async def _startupz(self, scope: Scope) -> Response:
        status, document = self._view.health.startup()
        return _json(document, status)

    async def _metrics(self, scope: Scope) -> Response:
        detailed = scope["path"].endswith("/detailed")
        text = await self._exposition.scrape(detailed=detailed)
        return Response(text, headers={"content-type": CONTENT_TYPE})


class _Border:
    """An ASGI application whose errors are documents."""

    def __init__(
        self,
        answer: Callable[[Scope, Receive], Awaitable[Response]],
        broker_id: str,
        answers: Budget,
        give_way: Callable[[], Awaitable[None]],
    ) -> None:
        self._give_way = give_way
        self._answer = answer
        self._broker_id = broker_id
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._answers.account() as account:
            scope["answer"] = account
            try:
                response = await self._respond(scope, receive)
                if scope["method"] == "HEAD":
                    response = _head(response)
                response = self._held(scope, response, account)
            except Gone:
                return
            await self._give_way()
            await response(scope, receive, send)

    def _held(self, scope: Scope, response: Response, account: Account) -> Response:
        """The answer, or that there is no room for it; what changed something is answered, and
        the texts of metrics are shared."""
        size_bytes = len(response.body)
        free = size_bytes <= FREE_BYTES or scope["method"] != "GET" or scope["path"] in METRICS
        try:
            if not free:
                account.hold(size_bytes)
        except TailraceError as error:
            return _error(error, status_of(error))
        return response

    async def _respond(self, scope: Scope, receive: Receive) -> Response:
        try:
            return await self._answer(scope, receive)
        except Gone:
            raise
        except Refused as refused:
            return _error(refused.error, refused.status, refused.headers)
        except TailraceError as raised:
            error = as_request_error(raised)
            return _error(error, status_of(error))
        except Exception as error:  # a bug of ours ends this request and nothing else (R40)
            logger.error(
                "%s %s failed: %r",
                *(scope["method"], scope["path"], error),
                exc_info=error,
                extra={"event": "http.request_failed", "code": "T000"},
            )
            unexpected = texts_http.unexpected(self._broker_id)
            return _error(unexpected, status_of(unexpected))


# ── reading ──────────────────────────────────────────────────────────────────────────────────


def headers_in(scope: Scope) -> dict[str, str]:
    """Names in lower case; of one that comes twice the first."""
    found: dict[str, str] | None = scope.get("by_name")
    if found is None:
        found = scope["by_name"] = {}
        for name, value in scope["headers"]:
            found.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
    return found


def _path_values(scope: Scope) -> dict[str, str]:
    try:
        return {name: unquote(text, errors="strict") for name, text in scope["path_params"].items()}
    except UnicodeDecodeError:
        raise texts_http.bad_request("the path is not UTF-8") from None


def _query_values(scope: Scope) -> list[tuple[str, str]]:
    if not scope["query_string"]:
        return []
    try:
        text = scope["query_string"].decode("ascii")
        found = parse_qsl(
            text, keep_blank_values=True, errors="strict", max_num_fields=QUERY_FIELDS_MAX
        )
    except ValueError as error:
        raise texts_http.bad_request(f"the query cannot be read ({error})") from None
    for name, _ in found:
        if name in LATER_PARAMETERS:
            raise Refused(404, texts_http.parameter_later(name))
    return found


def _decode(body: bytes, kind: type) -> Any:
    decode: Any = msgspec.json.decode
    try:
        return decode(body, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise texts_http.bad_request(f"the body cannot be read: {error}") from None


# ── answering ────────────────────────────────────────────────────────────────────────────────


def _not_allowed(scope: Scope, allowed: Sequence[str]) -> Refused:
    error = texts_http.method_not_allowed(scope["method"], scope["path"], allowed=allowed)
    return Refused(405, error, {"allow": ", ".join(allowed)})


def _response(answer: Reply | Response) -> Response:
    if isinstance(answer, Response):
        return answer
    if answer.status == 204:
        return Response(status_code=204)
    return Response(_encode(answer.document), answer.status, media_type=JSON)


def _encode(document: object) -> bytes:
    """A shape as JSON, in a thirtieth of the time that ``to_json`` and ``compact`` take."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:  # the name of a file may be none
        return compact(to_json(document)).encode(errors="replace")


def _head(response: Response) -> Response:
    """Its head: what streams or waits for its reader is not begun."""
    plain = Response(status_code=response.status_code)
    plain.raw_headers = response.raw_headers
    return plain


def _json(document: object, status: int = 200) -> Response:
    return Response(compact(document).encode(errors="replace"), status, media_type=JSON)


def _error(error: TailraceError, status: int, headers: Mapping[str, str] | None = None) -> Response:
    merged = {**headers_of(error, status), **(headers or {})}
    return Response(error_body(error), status, merged, media_type=JSON)
