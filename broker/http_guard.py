"""Who may ask what: the checks before any handler, and the one reader of bodies.

In this order: token (401), host (421), path (404), method (405), content type (415), parameters
(400), body (413, 400). What they decide is pure; only ``read_body`` waits.

Without a token ``/api/`` answers only to a ``Host`` that is this broker: a web page somewhere can
make a browser send requests to 127.0.0.1, but not with such a host (DNS rebinding).
"""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import trio

from tailrace.broker.config import Config
from tailrace.broker.http_errors import Refused
from tailrace.broker.limits import BODY_BYTES_PER_S, BODY_S, is_loopback
from tailrace.protocol import texts_http
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.texts_client import not_authorised

Receive = Callable[[], Awaitable[Any]]
BODIES_BYTES_MAX = 16 * 1024 * 1024  # of all requests at once; one alone always fits
ANSWERS_BYTES_MAX = 8 * 1024 * 1024  # the same of what is to be sent and larger than FREE_BYTES
FREE_BYTES = 65_536
ANYWHERE = ("0.0.0.0", "::", "")


class Gone(Exception):
    """Whoever asked is not there any more: nobody needs an answer."""


# ── token and host ───────────────────────────────────────────────────────────────────────────


def check_token(token: str | None, given: str, *, host: str) -> None:
    """AuthError T006 unless ``given``, the Authorization header, has the token."""
    if token is None:
        return
    scheme, _, offered = given.partition(" ")
    if scheme.lower() != "bearer":  # of any case (RFC 9110, 11.1)
        raise not_authorised(host, reason="no token given")
    if not hmac.compare_digest(offered.strip().encode(), token.encode()):
        raise not_authorised(host, reason="wrong token")


def own_hosts(config: Config) -> frozenset[str]:
    """The names under which this broker was bound or is advertised."""
    addresses = [config.http.bind, *(one.bind for one in config.listeners)]
    addresses += [one.advertise for one in config.listeners]
    return frozenset(one.host.lower() for one in addresses if one and one.host not in ANYWHERE)


def is_own_host(header: str, own: Collection[str], bound: str) -> bool:
    """Whether a Host header means this broker. ``bound``: the address that HTTP listens on.

    Bound to every address of the machine, any address will do: a name is what an attacker can bend.
    """
    name = host_name(header)
    if not name:
        return False
    if name == "localhost" or name in own or is_loopback(name):
        return True
    return name == bound or (bound in ANYWHERE and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def host_name(header: str) -> str:
    """A Host header without its port, in lower case."""
    name = header.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


# ── bodies ───────────────────────────────────────────────────────────────────────────────────


def content_type_of(header: str, known: Collection[str]) -> str | None:
    """The content type, without parameters, if it is one of ``known``."""
    name = header.partition(";")[0].strip().lower()
    return name if name in known else None


class Budget:
    """Bytes that requests hold. Invariant: ``held_bytes`` is the sum of all accounts."""

    def __init__(self, limit_bytes: int, what: str) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._what = what
        self._given = trio.Event()

    @contextmanager
    def account(self) -> Generator["Account"]:
        """What one request holds; given back at its end."""
        account = Account(self)
        try:
            yield account
        finally:
            account.hold(0)

    def has_room(self, size_bytes: int, *, of_others: int) -> bool:
        """One alone always may."""
        return of_others == 0 or of_others + size_bytes <= self.limit_bytes

    def refuse(self) -> TailraceError:
        return texts_http.too_busy(self._what, limit=self.limit_bytes)

    def given(self) -> None:
        """There is more room than before."""
        self._given.set()
        self._given = trio.Event()

    async def wait(self) -> None:
        """Until there is."""
        await self._given.wait()


def bodies() -> Budget:
    """Of the requests' bodies."""
    return Budget(BODIES_BYTES_MAX, "bytes of HTTP bodies")


def answers() -> Budget:
    """Of what goes out: whoever does not read would hold it for a while."""
    return Budget(ANSWERS_BYTES_MAX, "bytes of HTTP answers")


class Account:
    """One request's share of a budget."""

    def __init__(self, budget: Budget) -> None:
        self.held_bytes = 0
        self._budget = budget

    def hold(self, size_bytes: int) -> None:
        """So much from now on. ConnectError T123 if all of them together would hold too much."""
        budget, more_bytes = self._budget, size_bytes - self.held_bytes
        others_bytes = budget.held_bytes - self.held_bytes
        if more_bytes > 0 and not budget.has_room(size_bytes, of_others=others_bytes):
            raise budget.refuse()
        self.held_bytes = size_bytes
        budget.held_bytes += more_bytes
        if more_bytes < 0:
            budget.given()

    async def wait_for(self, size_bytes: int) -> None:
        """The same, when there is room."""
        while True:
            try:
                self.hold(size_bytes)
                return
            except ConnectError:
                await self._budget.wait()


async def read_body(
    receive: Receive, headers: Mapping[str, str], limit_bytes: int, account: Account
) -> bytes:
    """The whole body. ``Refused`` (413) if it is larger than ``limit_bytes``, T123 if there are too
    many at once, T034 if it does not come; ``Gone`` if the peer is."""
    declared = headers.get("content-length", "")
    length = int(declared) if declared.isascii() and declared.isdigit() else None
    if length is not None and length > limit_bytes:
        raise _too_large(length, limit_bytes)
    seconds = max(BODY_S, (limit_bytes if length is None else length) / BODY_BYTES_PER_S)
    parts = bytearray()
    with trio.move_on_after(seconds):
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise Gone
            part = message.get("body", b"")
            if len(parts) + len(part) > limit_bytes:
                raise _too_large(length, limit_bytes)
            account.hold(len(parts) + len(part))
            parts += part
            if not message.get("more_body", False):
                return bytes(parts)
    raise texts_http.body_too_slow(seconds)


def _too_large(size_bytes: int | None, limit_bytes: int) -> Refused:
    return Refused(413, texts_http.body_too_large(size_bytes, limit_bytes=limit_bytes))
