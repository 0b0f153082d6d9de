"""The border of HTTP: whatever a request raises becomes a document, at one place.

What is decided by a request's head alone comes first (``Taken``): a connection that gets the same
head again goes on behind it.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.responses import Response

from tailrace.broker.http_endpoint import JSON, Reply
from tailrace.broker.http_errors import (
    Refused,
    as_request_error,
    error_body,
    headers_of,
    status_of,
)
from tailrace.broker.http_guard import FREE_BYTES, Account, Budget, Gone
from tailrace.broker.http_known import Again, SendWhole
from tailrace.broker.spell import SPELL_S
from tailrace.protocol import texts_http
from tailrace.protocol.console import compact
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.shapes import to_json

logger = logging.getLogger("tailrace.broker.http")

JSON_TYPE = JSON.encode()

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Whole:
    """An answer that is there, all of it. A ``Response`` in a third of the time, and no headers
    but the type of its content and the length."""

    __slots__ = ("body", "raw_headers", "status_code")

    def __init__(self, content_type: bytes, body: bytes, status: int = 200) -> None:
        self.status_code = status
        self.body = body
        self.raw_headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


Answer = Response | Whole


@dataclass(frozen=True, slots=True)
class Taken:
    """A request whose head passed every check. ``repeatable``: what they said holds for whoever
    sends the same head over the same connection, and the answer is a whole one."""

    answer: Callable[[Receive, Account], Awaitable[Answer]]
    repeatable: bool = False


class Border:
    """An ASGI application whose errors are documents.

    ``take``: the checks of a head. ``shared``: paths whose answers are held once for all who ask.
    ``give_way``: to sends, which are ``in_hurry`` when one waits.
    """

    def __init__(
        self,
        take: Callable[[Scope], Taken],
        broker_id: str,
        answers: Budget,
        shared: Collection[str],
        give_way: Callable[[], Awaitable[None]],
        in_hurry: Callable[[], bool],
    ) -> None:
        self._take = take
        self._broker_id = broker_id
        self._answers = answers
        self._shared = shared
        self._give_way = give_way
        self._in_hurry = in_hurry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]

        async def answer() -> Answer:
            taken = self._take(scope)
            keep: Callable[[Again], None] | None = scope.get("extensions", {}).get("keep")
            if taken.repeatable and keep is not None:
                keep(partial(self._again, method, path, partial(taken.answer, _no_body)))
            return await taken.answer(receive, account)

        with self._answers.account() as account:
            try:
                response = await self._respond(method, path, answer)
                if method == "HEAD":
                    response = _head(response)
                response = self._held(method, path, response, account)
            except Gone:
                return
            await self._give_way()
            await response(scope, receive, send)

    async def _again(
        self,
        method: str,
        path: str,
        answer: Callable[[Account], Awaitable[Answer]],
        send: SendWhole,
    ) -> None:
        """Answer a head that came before. In as few calls as can be: after a pause in which
        nothing of it stayed in the processor's caches each takes some 5 us."""
        if self._in_hurry():
            await self._give_way()
        account = Account(self._answers)
        began = time.monotonic()
        try:
            response = await self._respond(method, path, partial(answer, account))
            response = self._held(method, path, response, account)
            if time.monotonic() - began > SPELL_S:
                await self._give_way()
            await send(response.status_code, response.raw_headers, bytes(response.body))
        finally:
            if account.held_bytes:
                account.hold(0)

    async def _respond(
        self, method: str, path: str, answer: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        try:
            return await answer()
        except Gone:
            raise
        except Refused as refused:
            return _error(refused.error, refused.status, refused.headers)
        except TailraceError as raised:
            return _refusal(raised)
        except Exception as error:  # a bug of ours ends this request and nothing else (R40)
            logger.error(
                "%s %s failed: %r",
                *(method, path, error),
                exc_info=error,
                extra={"event": "http.request_failed", "code": "T000"},
            )
            unexpected = texts_http.unexpected(self._broker_id)
            return _error(unexpected, status_of(unexpected))

    def _held(self, method: str, path: str, response: Answer, account: Account) -> Answer:
        """The answer, or that there is no room for it; what changed something is answered."""
        size_bytes = len(response.body)
        try:
            if size_bytes > FREE_BYTES and method == "GET" and path not in self._shared:
                account.hold(size_bytes)
        except TailraceError as error:
            return _error(error, status_of(error))
        return response


async def _no_body() -> MutableMapping[str, Any]:
    raise AssertionError("a head that is known has no body")


# ── answering ────────────────────────────────────────────────────────────────────────────────


def answer_of(said: Reply | Response) -> Answer:
    """What a handler said."""
    if isinstance(said, Response):
        return said
    if said.status == 204:
        return Response(status_code=204)
    return Whole(JSON_TYPE, _encode(said.document), said.status)


def _encode(document: object) -> bytes:
    """A shape as JSON, in a thirtieth of the time that ``to_json`` and ``compact`` take."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:  # the name of a file may be none
        return compact(to_json(document)).encode(errors="replace")


def _head(response: Answer) -> Response:
    """Its head: what streams or waits for its reader is not begun."""
    plain = Response(status_code=response.status_code)
    plain.raw_headers = list(response.raw_headers)
    return plain


def json_answer(document: object, status: int = 200) -> Whole:
    """A plain document."""
    return Whole(JSON_TYPE, compact(document).encode(errors="replace"), status)


def _refusal(raised: TailraceError) -> Answer:
    """In a call of its own: a frame of the traceback that kept the error would keep all of them,
    with what they read, until the garbage collector comes."""
    error = as_request_error(raised)
    return _error(error, status_of(error))


def _error(error: TailraceError, status: int, headers: Mapping[str, str] | None = None) -> Response:
    merged = {**headers_of(error, status), **(headers or {})}
    return Response(error_body(error), status, merged, media_type=JSON)
