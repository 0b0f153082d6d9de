"""Requests to etcd's HTTP gateway: which member is asked, for how long, with which token.

- One call takes at most ``CALL_S``. What may be repeated is asked of the next member when one does
  not answer, or cannot; a change is sent once (R16): only if it was certainly not done, because
  nobody was reached or the token was refused, is it sent again.
- The member that answered last is asked first. One that failed is left by the watch as well.
- Password and token are in no error, no log line and no ``repr``.
"""

import logging
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import httpx2
import trio

from tailrace.broker import etcd_messages
from tailrace.broker.etcd_messages import A, LoginAnswer, NotEtcd, Question, Refused
from tailrace.broker.groups import first_of
from tailrace.protocol import texts_etcd
from tailrace.protocol.units import format_seconds

logger = logging.getLogger("tailrace.broker.etcd")

CALL_S = 4.0  # below the shortest sensible session: an election of etcd takes 1-2 s
CONNECT_S = 1.0
CONNECTIONS_MAX = 32
IDLE_S = 60.0  # an open connection is kept for so long
_NOBODY = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
_WATCH_HEADERS = {"Grpc-Metadata-hasleader": "true"}  # end the stream where there is no leader


@dataclass(frozen=True, slots=True)
class Login:
    """Who we are for etcd."""

    user: str
    password: str

    def __repr__(self) -> str:
        return f"Login(user={self.user!r})"


class _NoAnswer(Exception):
    """An attempt that came to nothing. ``sent``: etcd may have done what was asked."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent


class Gateway:
    """Several members of one etcd. ``failed`` is called with the address of one that failed."""

    def __init__(
        self,
        urls: Sequence[str],
        client: httpx2.AsyncClient,
        login: Login | None,
        *,
        call_s: float = CALL_S,
    ) -> None:
        self._urls = list(urls)
        self._client = client
        self._login = login
        self._call_s = call_s
        self._token = ""  # empty: none
        self._logging_in = trio.Lock()
        self._cluster_id = 0
        self.failed: Callable[[str], None] = lambda url: None

    @property
    def url(self) -> str:
        """Whom the next call asks first."""
        return self._urls[0]

    async def call(self, path: str, question: Question, kind: type[A], *, repeat: bool) -> A:
        """Ask, and return the answer.

        Raises ``Refused`` if etcd says no for a reason that is the question's, and T100 otherwise;
        without ``repeat`` the change may have been made then. Cancelled: likewise.
        """
        body = etcd_messages.encode(question)
        deadline = trio.current_time() + self._call_s
        tried: list[tuple[str, str]] = []
        for left in range(len(self._urls), 0, -1):
            url = self.url
            seconds = deadline - trio.current_time()
            if seconds <= 0:
                break
            try:
                return await self._ask(url, path, body, kind, seconds / left if repeat else seconds)
            except _NoAnswer as error:
                tried.append((url, error.reason))
                self.leave(url)
                if error.sent and not repeat:
                    raise texts_etcd.failed(tried, unknown=True) from error
        raise texts_etcd.failed(tried)

    @asynccontextmanager
    async def watch(self, question: Question) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """A stream's bytes as they come; ``httpx2.TransportError``, ``NotEtcd``, ``Refused``, T100.

        Bounded by the caller. To be left by its end, an error of it, or a cancellation.
        """
        url = self.url
        try:
            await self._have_token(url, stale="")
        except _NoAnswer as error:
            raise texts_etcd.failed([(url, error.reason)]) from error
        async with self._client.stream(
            "POST",
            f"{url}/v3/watch",
            content=etcd_messages.encode(question),
            headers={**self._headers(), **_WATCH_HEADERS},
            timeout=httpx2.Timeout(None, connect=CONNECT_S, pool=CONNECT_S),
        ) as response:
            if response.status_code != 200:
                body = await response.aread()
                etcd_messages.decode(response.status_code, body, etcd_messages.WatchAnswer)
            yield response.aiter_raw()

    def leave(self, url: str) -> None:
        """It failed: ask another one first from now on."""
        if self._urls[0] == url:
            self._urls = [*self._urls[1:], url]
        self.failed(url)

    def forget_token(self) -> None:
        """It may be the reason for what was refused: get another before the next request."""
        self._token = ""

    async def aclose(self) -> None:
        await self._client.aclose()

    # ── one member ───────────────────────────────────────────────────────────────────────────

    async def _ask(self, url: str, path: str, body: bytes, kind: type[A], seconds: float) -> A:
        """One attempt, with one new token if the old one is refused."""
        with trio.move_on_after(seconds):
            await self._have_token(url, stale="")
            token = self._token
            try:
                return await self._post(url, path, body, kind)
            except Refused as error:
                if self._login is None or not error.login_again:
                    raise
            await self._have_token(url, stale=token)
            return await self._post(url, path, body, kind)
        raise _NoAnswer(f"no answer within {format_seconds(seconds)} s", sent=True)

    async def _post(self, url: str, path: str, body: bytes, kind: type[A]) -> A:
        """Raises ``Refused`` and ``_NoAnswer``."""
        try:
            response = await self._client.post(
                f"{url}/v3/{path}", content=body, headers=self._headers()
            )
            if path.endswith("/keepalive") and response.status_code == 200:
                answer = etcd_messages.decode_line(response.content, kind)
            else:
                answer = etcd_messages.decode(response.status_code, response.content, kind)
            self._check_cluster(answer.header.cluster_id)
        except httpx2.TransportError as error:
            raise _NoAnswer(reason_of(error), sent=not isinstance(error, _NOBODY)) from error
        except NotEtcd as error:
            raise _NoAnswer(str(error), sent=True) from error
        except Refused as error:
            if error.passing:
                raise _NoAnswer(error.message, sent=True) from error
            raise
        return answer

    def _check_cluster(self, cluster_id: int) -> None:
        """Members of two clusters in one list would be two truths."""
        if cluster_id and self._cluster_id not in (0, cluster_id):
            raise NotEtcd("it belongs to another etcd cluster than the others")
        self._cluster_id = cluster_id or self._cluster_id

    def _headers(self) -> dict[str, str]:
        head = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        return {**head, "Authorization": self._token} if self._token else head

    # ── the token ────────────────────────────────────────────────────────────────────────────

    async def _have_token(self, url: str, *, stale: str) -> None:
        """Have another one than ``stale``; whoever comes second finds it there."""
        if self._login is None or self._token != stale:
            return
        async with self._logging_in:
            if self._token == stale:
                self._token = ""
                try:
                    self._token = await self._authenticate(url, self._login)
                except _NoAnswer as error:  # what the token is for was not yet sent
                    raise _NoAnswer(error.reason, sent=False) from error

    async def _authenticate(self, url: str, login: Login) -> str:
        question = {"name": login.user, "password": login.password}
        body = etcd_messages.encode(question)
        try:
            return (await self._post(url, "auth/authenticate", body, LoginAnswer)).token
        except Refused as error:
            if error.code == etcd_messages.FAILED_PRECONDITION:
                raise texts_etcd.refused_user(
                    url, user=login.user, reason="authentication is not enabled there"
                ) from error
            raise texts_etcd.refused_user(url, user=login.user, reason=error.message) from error


def reason_of(error: httpx2.TransportError) -> str:
    """What the system said, where the library only says that it failed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is refused: {cause.verify_message}"
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and cause.errno:
            return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)
        if isinstance(cause, BaseExceptionGroup):  # one per address of the host
            cause = first_of(cast(BaseExceptionGroup[BaseException], cause))
        else:
            cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__
