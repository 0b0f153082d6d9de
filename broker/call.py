"""One request in hand: what was asked, and how to answer it, once."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import HelloRequest, Response
from tailrace.protocol.seams import FileRange

if TYPE_CHECKING:
    from tailrace.broker.connection import Connection

Later = Callable[[], Awaitable[Response]]  # work for a task of its own, and its answer


class Call:
    """Invariant: open until ``answer`` or ``fail`` was called, or the connection is gone."""

    __slots__ = ("_connection", "abandoned", "began", "held_bytes", "incoming", "silent")

    def __init__(self, connection: "Connection", incoming: Incoming, held_bytes: int) -> None:
        self._connection = connection
        self.incoming = incoming
        self.held_bytes = held_bytes  # of the memory budget, until it is answered
        self.began = trio.current_time()
        self.silent = False  # no answer is sent, however it ends (acks=0)
        self.abandoned: Callable[[], None] | None = None  # called if the connection ends first

    @property
    def who(self) -> str:
        """Client id and address, for logs."""
        return self._connection.who

    @property
    def hello(self) -> HelloRequest:
        """What the client said of itself."""
        return self._connection.hello

    @property
    def host(self) -> str:
        """The client's address, without its port."""
        return self._connection.host

    @property
    def advertised(self) -> tuple[str, int]:
        """The address of the listener that the client came in by."""
        return self._connection.advertised

    def greeted(self, client_id: str) -> None:
        """The client said hello, and who it is."""
        self._connection.greeted(client_id)

    def answer(
        self,
        response: Response,
        ranges: Sequence[FileRange] = (),
        length: int = 0,
        code: str = "ok",
    ) -> None:
        """Queue the answer and ``length`` bytes of ranges behind it; ``code`` is for metrics."""
        self._connection.answer(self, response, ranges, length, code)

    def fail(self, error: TailraceError) -> None:
        """The request as a whole failed."""
        self._connection.answer(self, error, (), 0, error.code)

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Go on in a task of the connection; a TailraceError from it fails the call."""
        self._connection.spawn(self, work)
