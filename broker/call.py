"""One request in hand: what was asked, and how to answer it, once."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import trio

from tailrace.protocol.bodies import KEPT_BYTES_MIN, NO_BODY
from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import HelloRequest, Response
from tailrace.protocol.seams import FileRange

Later = Callable[[], Awaitable[Response]]  # work for a task of its own, and its answer


class Standing(Protocol):
    """What a connection asked for once and still stands."""

    def close(self) -> None:
        """Nobody wants it any more."""
        ...


class Caller(Protocol):
    """Who asked: a connection, or a room of the broker's own (``local.py``)."""

    who: str
    standing: Standing | None

    @property
    def hello(self) -> HelloRequest: ...

    @property
    def host(self) -> str: ...

    @property
    def listener(self) -> str: ...

    def greeted(self, client_id: str) -> None: ...

    def answer(
        self,
        call: "Call",
        outcome: Response | TailraceError,
        ranges: Sequence[FileRange],
        length: int,
        code: str,
    ) -> None: ...

    def spawn(self, call: "Call", work: Callable[[], Awaitable[None]]) -> None: ...


class Call:
    """Invariant: open until ``answer`` or ``fail`` was called, or the connection is gone."""

    __slots__ = ("_caller", "abandoned", "began", "held_bytes", "incoming", "silent")

    def __init__(self, caller: Caller, incoming: Incoming, held_bytes: int) -> None:
        self._caller = caller
        self.incoming = incoming
        self.held_bytes = held_bytes  # of the memory budget, until it is answered
        self.began = trio.current_time()
        self.silent = False  # no answer is sent, however it ends (acks=0)
        self.abandoned: Callable[[], None] | None = None  # called if the connection ends first

    def take_body(self) -> memoryview:
        """The bytes behind the request. It is without them from now on if they are many: their
        memory is used again as soon as nobody has a view of it, before the answer."""
        body = self.incoming.body
        if len(body) >= KEPT_BYTES_MIN:
            self.incoming = self.incoming._replace(body=NO_BODY)
        return body

    @property
    def who(self) -> str:
        """Client id and address, for logs."""
        return self._caller.who

    @property
    def hello(self) -> HelloRequest:
        """What the client said of itself."""
        return self._caller.hello

    @property
    def host(self) -> str:
        """The client's address, without its port."""
        return self._caller.host

    @property
    def listener(self) -> str:
        """The name of the listener that the client came in by."""
        return self._caller.listener

    def greeted(self, client_id: str) -> None:
        """The client said hello, and who it is."""
        self._caller.greeted(client_id)

    @property
    def standing(self) -> Standing | None:
        """What its connection asked for before."""
        return self._caller.standing

    def stand(self, standing: Standing) -> None:
        """Let this stand from now on, until the connection ends, instead of what did."""
        if self._caller.standing is not None:
            self._caller.standing.close()
        self._caller.standing = standing

    def answer(
        self,
        response: Response,
        ranges: Sequence[FileRange] = (),
        length: int = 0,
        code: str = "ok",
    ) -> None:
        """Queue the answer and ``length`` bytes of ranges behind it; ``code`` is for metrics."""
        self.abandoned = None  # of its handler, which refers to this call: the two go at once
        self._caller.answer(self, response, ranges, length, code)

    def fail(self, error: TailraceError) -> None:
        """The request as a whole failed."""
        self.abandoned = None
        self._caller.answer(self, error, (), 0, error.code)

    def abandon(self) -> None:
        """Nobody waits for the answer any more: its handler, if it still waits, lets go."""
        if self.abandoned is not None:
            self.abandoned()
            self.abandoned = None

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Go on in a task of the connection; a TailraceError from it fails the call."""
        self._caller.spawn(self, work)
