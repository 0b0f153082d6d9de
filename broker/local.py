"""Requests from the broker's own rooms (HTTP): by the handlers that serve connections.

What a client may not do, they may not do either; requests are counted like a client's. The answer
is that of the wire, so whoever asks need not know whether this broker or another one gave it.
"""

from collections.abc import Awaitable, Callable, Sequence

import trio

from tailrace.broker import handlers
from tailrace.broker.call import Call, Standing
from tailrace.broker.node import Node
from tailrace.protocol.connection import Incoming
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import PROTOCOL, REQUESTS, HelloRequest, Request, Response
from tailrace.protocol.seams import FileRange

APIS = {kind: api for api, kind in REQUESTS.items()}
COPY_BYTES_MAX = 65_536  # of an answer, copied in the loop if the page cache has them
VERSION = 1


class LocalCaller:
    """One request; ``Caller`` for its call."""

    def __init__(self, node: Node, who: str) -> None:
        self.who = who
        self.standing: Standing | None = None
        self._node = node
        self._outcome: Response | TailraceError | None = None
        self._ranges: Sequence[FileRange] = ()
        self._work: list[Callable[[], Awaitable[None]]] = []
        self._news = trio.Event()

    async def ask(self, request: Request, body: bytearray) -> tuple[Response, bytes]:
        """The answer, and the bytes behind it. Raises the error that a client would get.

        Cancelled: as if the connection had ended; a change may still take effect.
        """
        incoming = Incoming(APIS[type(request)], VERSION, 0, request, memoryview(body))
        call = Call(self, incoming, len(body))
        self._node.memory.charge(call.held_bytes)
        self._node.metrics.requests_in_flight.inc()
        try:
            handlers.take_up(self._node, call)
            outcome = await self._finished(call)
        finally:
            if self._outcome is None:
                call.abandon()
            self._node.metrics.requests_in_flight.dec()
            self._node.memory.give(call.held_bytes)
            self._node.outbox.flush()
        if isinstance(outcome, TailraceError):
            raise outcome
        return outcome, await self._bytes()

    async def _finished(self, call: Call) -> Response | TailraceError:
        """What the handler goes on with is done here, in the task of whoever asked."""
        while True:
            while self._work:
                await self._go_on(call, self._work.pop(0))
            if self._outcome is not None:
                return self._outcome
            await self._news.wait()
            self._news = trio.Event()

    async def _go_on(self, call: Call, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except TailraceError as error:
            if self._outcome is None:
                call.fail(error)

    async def _bytes(self) -> bytes:
        ranges = self._ranges
        size_bytes = sum(one.length for one in ranges)
        if size_bytes <= COPY_BYTES_MAX and all(one.cached() for one in ranges):
            return _join(ranges)
        return await self._node.world.offload.run(_join, ranges)

    # ── Caller ───────────────────────────────────────────────────────────────────────────────

    @property
    def hello(self) -> HelloRequest:
        """This broker itself."""
        return HelloRequest(PROTOCOL, PROTOCOL, self._node.broker_id, self._node.software, None)

    @property
    def host(self) -> str:
        return "local"

    @property
    def listener(self) -> str:
        """That by which other brokers come."""
        return self._node.config.cluster.peer_listener

    def greeted(self, client_id: str) -> None:
        raise AssertionError("a broker does not greet itself")

    def answer(
        self,
        call: Call,
        outcome: Response | TailraceError,
        ranges: Sequence[FileRange],
        length: int,
        code: str,
    ) -> None:
        assert self._outcome is None, "answered twice"
        self._outcome, self._ranges = outcome, ranges
        self._node.count(call.incoming.api, code, trio.current_time() - call.began)
        self._news.set()

    def spawn(self, call: Call, work: Callable[[], Awaitable[None]]) -> None:
        self._work.append(work)
        self._news.set()


def _join(ranges: Sequence[FileRange]) -> bytes:
    return b"".join(bytes(one.view()) for one in ranges)
