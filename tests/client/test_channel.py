"""What a channel writes to its transport, and when: real sockets, and no broker."""

import socket
from collections.abc import Awaitable, Callable
from random import Random
from typing import Self

import anyio
import pytest
from anyio.abc import TaskGroup

from tailrace.client.channel import JOIN_BYTES_MAX, WRITTEN, Channel, Lost, Outcome
from tailrace.client.events import Events
from tailrace.client.net import TcpNet, TcpTransport
from tailrace.client.options import Address, resolve
from tailrace.client.runtime import Runtime, SystemClock
from tailrace.protocol.connection import (
    IN_FLIGHT_MAX,
    PRODUCE_BYTES_MAX,
    SERVED,
    ClientConnection,
    ServerConnection,
)
from tailrace.protocol.messages import PROTOCOL, HelloResponse, ProducePartition, ProduceRequest
from tests.client.world import Run

OPTIONS = resolve(
    "tailrace://broker:7400",
    client_id="test",
    tls=None,
    connect_timeout=1.0,
    request_timeout=1.0,
    max_outage=None,
    close_timeout=1.0,
)
TOPIC_ID = bytes(range(16))
HELLO = HelloResponse(
    *(PROTOCOL, "n1", "cluster", "test", SERVED, PRODUCE_BYTES_MAX, 1 << 20),
    *(IN_FLIGHT_MAX, 60_000),
)


class Talk:
    """A channel, and the broker's end of it."""

    def __init__(self, tasks: TaskGroup) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.setblocking(False)
        self.started = 0  # tasks
        self.outcomes: list[Outcome] = []
        self.then: Callable[[Outcome], None] = self.outcomes.append
        self._tasks = tasks
        self._server = ServerConnection("test")
        client = ClientConnection("test", "test")
        (hello,) = self._server.feed(client.open())
        list(client.feed(self._server.answer(hello, HELLO)))
        clock = SystemClock()
        runtime = Runtime(
            net=TcpNet(),
            clock=clock,
            random=Random(1),
            options=OPTIONS,
            events=Events(clock, self._start),
            start_soon=self._start,
            alive=lambda: True,
        )
        transport = TcpTransport(ours, "broker:7400")
        self.channel = Channel(runtime, Address("broker", 7400), client, HELLO, transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()
        self.theirs.close()

    def post(self, body: list[bytes], *, acks: int = -1) -> None:
        parts = tuple(ProducePartition(TOPIC_ID, n, len(one)) for n, one in enumerate(body))
        request = ProduceRequest(acks, 30_000, parts)
        self.channel.post(request, body, lambda outcome, _: self.then(outcome))

    def came(self) -> list[bytes]:
        """The bodies of the requests that are complete at the broker, without waiting."""
        found: list[bytes] = []
        try:
            while data := self.theirs.recv(1 << 20):
                found += [bytes(one.body) for one in self._server.feed(data)]
        except BlockingIOError:
            pass
        return found

    async def comes(self, count: int) -> list[bytes]:
        """So many of them."""
        found: list[bytes] = []
        while len(found) < count:
            found += self.came()
            await anyio.lowlevel.checkpoint()
        return found

    def _start(self, fn: Callable[..., Awaitable[object]], *args: object) -> None:
        self.started += 1

        async def one() -> None:
            await fn(*args)

        self._tasks.start_soon(one)


@pytest.mark.parametrize("size_bytes", [10, JOIN_BYTES_MAX + 1])
@pytest.mark.parametrize("pieces", [1, 100])
def test_a_request_leaves_whole_and_at_once(run: Run, size_bytes: int, pieces: int) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            with Talk(tasks) as talk:
                body = [b"%03d" % n + b"." * (size_bytes // pieces) for n in range(pieces)]
                talk.post(body)
                assert talk.came() == [b"".join(body)], "nobody else has run"
                assert talk.started == 0

    run(main)


def test_what_a_full_socket_does_not_take_follows_in_order(run: Run) -> None:
    bodies = [[b"%d" % n * (300_000 * n), b"end"] for n in (1, 2, 3)] + [[b"small"]]

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            with Talk(tasks) as talk:
                for body in bodies:
                    talk.post(body)
                assert talk.started == 1, "one task for all that is left"
                assert await talk.comes(4) == [b"".join(body) for body in bodies]
                talk.post([b"later"])
                assert talk.came() == [b"later"]

    run(main)


def test_a_request_without_an_answer_is_written_when_the_socket_has_all_of_it(run: Run) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            with Talk(tasks) as talk:
                talk.post([b"." * (JOIN_BYTES_MAX + 1)], acks=0)
                assert talk.outcomes == [WRITTEN]
                talk.came()
                talk.post([b"." * 3_000_000], acks=0)
                await anyio.wait_all_tasks_blocked()
                assert talk.outcomes == [WRITTEN], "the socket is full"
                await talk.comes(1)
                await anyio.wait_all_tasks_blocked()
                assert talk.outcomes == [WRITTEN, WRITTEN]

    run(main)


def test_who_writes_more_when_told_that_all_is_written_is_kept_in_order(run: Run) -> None:
    large = [[b"%d" % n * 3_000_000] for n in range(2)]

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            with Talk(tasks) as talk:

                def again(_: Outcome) -> None:
                    talk.post(large[1])

                talk.then = again
                talk.post(large[0], acks=0)
                found = await talk.comes(1)
                await anyio.wait_all_tasks_blocked()
                talk.then = talk.outcomes.append
                found += talk.came()  # there is room again, and nobody has run
                talk.post([b"after it"])
                assert found + await talk.comes(2) == [large[0][0], large[1][0], b"after it"]

    run(main)


def test_a_connection_that_broke_before_a_large_request_loses_it_once(run: Run) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            with Talk(tasks) as talk:
                talk.theirs.close()
                talk.post([b"." * (JOIN_BYTES_MAX + 1)])
                await anyio.wait_all_tasks_blocked()
                assert talk.outcomes == [Lost(talk.channel.address, "connection reset")]

    run(main)
