"""The ASGI application: probes, metrics, and ``/api/v1/`` by its table of endpoints.

One way through for every request of the api: the guard (``http_guard``), parameters and body as
the endpoint describes them, its handler, the answer; whatever is raised on the way becomes an error
document at one place (``http_border``).

Imported only if HTTP is on: it brings starlette.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.routing import Route, Router

from tailrace.broker.config import Config
from tailrace.broker.exposition import CONTENT_TYPE, Exposition
from tailrace.broker.gateway import Gateway
from tailrace.broker.health import Health
from tailrace.broker.http_border import (
    JSON_TYPE,
    Answer,
    Border,
    Receive,
    Scope,
    Send,
    Taken,
    Whole,
    answer_of,
    json_answer,
)
from tailrace.broker.http_endpoint import Body, Context, Endpoint
from tailrace.broker.http_errors import Refused
from tailrace.broker.http_guard import (
    Account,
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
from tailrace.protocol.texts import shown

Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
PROBES = ("/livez", "/readyz", "/startupz")
METRICS = ("/metrics", "/metrics/detailed")
API = "/api/"
LIVE = b'{"status":"ok"}'
TEXT_TYPE = b"text/plain; charset=utf-8"
METRICS_TYPE = CONTENT_TYPE.encode()
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
        self._exposition = Exposition(view.metrics, rest=self._give_way)
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
            ("/metrics", self._metrics),
            ("/metrics/detailed", self._detailed_metrics),
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

    def _in_hurry(self) -> bool:
        gateway = self._view.gateway
        return gateway is not None and gateway.node.appender.in_hurry

    # ── the border ───────────────────────────────────────────────────────────────────────────

    def _guarded(self, take: Callable[[Scope], Taken]) -> Border:
        sends = self._give_way, self._in_hurry
        return Border(take, self._config.broker.id, self._answers, METRICS, *sends)

    def _plain(self, answer: Callable[[], Awaitable[Answer]]) -> Border:
        """A path outside of the api: GET only."""

        def take(scope: Scope) -> Taken:
            path: str = scope["path"]
            if path not in PROBES:
                self._check_token(scope)
            if scope["method"] not in ("GET", "HEAD"):
                raise _not_allowed(scope, ("GET", "HEAD"))
            return Taken(lambda receive, account: answer(), repeatable=True)

        return self._guarded(take)

    def _api(self, methods: Mapping[str, Endpoint]) -> Border:
        allowed = sorted({*methods, "HEAD"} if "GET" in methods else methods)

        def take(scope: Scope) -> Taken:
            self._check_access(scope)
            method: str = scope["method"]
            endpoint = methods.get("GET" if method == "HEAD" else method)
            if endpoint is None:
                raise _not_allowed(scope, allowed)
            return self._take(endpoint, scope)

        return self._guarded(take)

    async def _unknown(self, scope: Scope, receive: Receive, send: Send) -> None:
        def take(scope: Scope) -> Taken:
            self._check_access(scope)
            raise Refused(404, texts_http.unknown_path(scope["path"]))

        await self._guarded(take)(scope, receive, send)

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

    def _take(self, endpoint: Endpoint, scope: Scope) -> Taken:
        headers = headers_in(scope)
        self._gateway()
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

        async def answer(receive: Receive, account: Account) -> Answer:
            gateway = self._gateway()
            context = Context(gateway, self._view.config, values, account, headers, content_type)
            with gateway.hand(what):
                if endpoint.body is None:
                    return answer_of(await endpoint.handler(context))
                with self._bodies.account() as held:
                    context = await self._with_body(context, endpoint.body, receive, held)
                    return answer_of(await endpoint.handler(context))

        return Taken(answer, endpoint.repeatable)

    async def _with_body(
        self, context: Context, wanted: Body, receive: Receive, account: Account
    ) -> Context:
        limit = min(wanted.bytes_max, self._config.limits.request_size_bytes)
        with context.gateway.patience(LAST_BODIES_S) as waiting:
            body = await read_body(receive, context.headers, limit, account)
        if waiting.cancelled_caught:
            raise texts_http.not_serving(self._config.broker.id, what="is stopping")
        document = None if wanted.kind is None else _decode(body, wanted.kind)
        return replace(context, body=body, document=document)

    def _gateway(self) -> Gateway:
        """T033 before the broker serves, and when it stops."""
        gateway = self._view.gateway
        if gateway is None:
            raise texts_http.not_serving(self._config.broker.id, what=self._why())
        return gateway

    def _why(self) -> str:
        health = self._view.health
        if health.draining:
            return "is stopping"
        if health.recovered:
            return "is starting"
        return f"is recovering: {health.partitions_done} of {health.partitions_total} opened"

    # ── probes and metrics ───────────────────────────────────────────────────────────────────

    async def _index(self) -> Whole:
        return Whole(TEXT_TYPE, ("\n".join(self._paths) + "\n").encode())

    async def _livez(self) -> Whole:
        return Whole(JSON_TYPE, LIVE)

    async def _readyz(self) -> Whole:
        status, document = self._view.health.readiness()
        return json_answer(document, status)

    async def _startupz(self) -> Whole:
        status, document = self._view.health.startup()
        return json_answer(document, status)

    async def _metrics(self) -> Whole:
        return Whole(METRICS_TYPE, await self._exposition.scrape(detailed=False))

    async def _detailed_metrics(self) -> Whole:
        return Whole(METRICS_TYPE, await self._exposition.scrape(detailed=True))


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


def _not_allowed(scope: Scope, allowed: Sequence[str]) -> Refused:
    error = texts_http.method_not_allowed(scope["method"], scope["path"], allowed=allowed)
    return Refused(405, error, {"allow": ", ".join(allowed)})
