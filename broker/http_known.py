"""Heads of requests that came before on the same connection: nobody takes them apart again.

A scraper sends the same bytes each time. Where they lead, and whether they may go there (token,
host, method, parameters), is decided by these bytes and by what is fixed as long as the connection
lives. So whoever sends them again goes straight to what answered the first time, ``Again``. Of an
answer nothing is kept; with h11, the guard and the router left out, it costs a third.

What may be kept: a GET of HTTP/1.1 without a body that came alone and complete in one receive, and
whose connection went on behind it.
"""

from collections.abc import Awaitable, Callable

import h11

HEADS_MAX = 4  # of one connection
HEAD_BYTES_MAX = 1_024
# Headers that say something about the connection or a body, which is h11's to judge.
NOT_ALONE = frozenset(
    (b"connection", b"content-length", b"expect", b"transfer-encoding", b"upgrade")
)

Headers = list[tuple[bytes, bytes]]
# Status, headers (the content's length among them) and body of a whole answer, to be sent at once.
SendWhole = Callable[[int, Headers, bytes], Awaitable[None]]
Again = Callable[[SendWhole], Awaitable[None]]


class KnownHeads:
    """Those of one connection; of more than ``HEADS_MAX`` the oldest is forgotten."""

    def __init__(self) -> None:
        self._again: dict[bytes, Again] = {}

    def find(self, data: bytes) -> Again | None:
        """What answers this head, if these are exactly its bytes."""
        return self._again.get(data)

    def keep(self, data: bytes, request: h11.Request, again: Again) -> None:
        """``data`` was all that came, and ``request`` was made of it; unless it may not be kept."""
        if request.method != b"GET" or request.http_version != b"1.1":
            return
        if len(data) > HEAD_BYTES_MAX or any(name in NOT_ALONE for name, _ in request.headers):
            return
        if len(self._again) >= HEADS_MAX:
            del self._again[next(iter(self._again))]
        self._again[data] = again
