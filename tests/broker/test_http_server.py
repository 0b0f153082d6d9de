"""Connections of HTTP: how many, how long, and what becomes of whoever does not read."""

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import h11
import pytest
import trio

from tailrace.broker import http_connection, http_server
from tailrace.broker.http_server import HttpServer
from tailrace.broker.metrics import Metrics
from tailrace.broker.system import system_world
from tests.broker.harness import run

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
BIG = b"x" * (1 << 20)


pushed: list[bytes] = []  # by ``/pushed``


async def application(scope: Any, receive: Any, send: Any) -> None:
    """``/big`` answers without end, ``/read`` with the length of its body, ``/pushed`` with more
    than the system takes at once."""
    length = 0
    if scope["path"] == "/read":
        while (message := await receive()).get("more_body"):
            length += len(message["body"])
        if message["type"] == "http.disconnect":
            return
    headers = [] if scope["path"] in ("/big", "/pushed") else [(b"content-length", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["path"] == "/pushed":
        await send({"type": "http.response.body", "body": b"<", "more_body": True})
        pushed[:] = [b"%09d" % 0 * 4_000]
        while scope["extensions"]["push"](pushed[-1]):
            pushed.append(b"%09d" % len(pushed) * 4_000)
        await send({"type": "http.response.body", "body": b">"})
        return
    while scope["path"] == "/big":
        await send({"type": "http.response.body", "body": BIG, "more_body": True})
    if scope["path"] == "/broken":
        raise RuntimeError("boom")
    await send({"type": "http.response.body", "body": b"%d" % min(length, 9)})


def serve(
    use: Callable[[HttpServer, int], Awaitable[None]], left: Sequence[trio.SocketStream] = ()
) -> None:
    """``left``: what is closed only after the server."""

    async def main() -> None:
        metrics = Metrics(version="0", topics_max=1, clock=trio.current_time)
        server = HttpServer(application, metrics)
        listener = await system_world().net.listen("127.0.0.1", 0, tls=None)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.serve, listener)
                await use(server, listener.port)
                nursery.cancel_scope.cancel()
        finally:
            listener.close()
        assert not server.open
        for stream in left:
            stream.socket.close()

    run(main)


async def connect(port: int) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", port)


async def rest(stream: trio.SocketStream) -> bytes:
    """Until the broker ends it."""
    with trio.fail_after(20):
        return b"".join([part async for part in stream])


async def first(stream: trio.SocketStream) -> bytes:
    """A head and one more byte."""
    found = b""
    with trio.fail_after(20):
        while not found.partition(b"\r\n\r\n")[2]:
            found += await stream.receive_some(65_536)
    return found


async def until(true: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not true():  # noqa: ASYNC110 the broker has no event for it
            await trio.sleep(0.001)


def test_one_connection_serves_many_requests() -> None:
    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as stream:
            for _ in range(3):
                await stream.send_all(GET)
                assert (await first(stream)).startswith(b"HTTP/1.1 200")
            assert len(server.open) == 1

    serve(use)


def test_beyond_the_limit_the_longest_idle_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CONNECTIONS_MAX", 2)

    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as one, await connect(port) as two:
            for stream in (two, one):
                await stream.send_all(GET)
                await first(stream)
            async with await connect(port) as three:
                await three.send_all(GET)
                assert (await first(three)).startswith(b"HTTP/1.1 200")
                assert await rest(two) == b""
                await one.send_all(GET)
                assert (await first(one)).startswith(b"HTTP/1.1 200")

    serve(use)


def test_with_none_idle_the_new_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CONNECTIONS_MAX", 1)

    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as busy:
            await busy.send_all(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            await until(lambda: any(one.idle_since == math.inf for one in server.open))
            async with await connect(port) as other:
                told = await rest(other)
                assert told.startswith(b"HTTP/1.1 503 ")
                assert b"retry-after: 1\r\n" in told
                assert b'"code":"T123"' in told

    serve(use)


def test_who_is_silent_or_slow_with_its_head_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(http_server, "SWEEP_S", 0.01)

    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as silent:
            assert await rest(silent) == b""
        monkeypatch.setattr(http_connection, "KEEP_ALIVE_S", 1_000.0)
        monkeypatch.setattr(http_connection, "HEADER_S", 0.05)
        async with await connect(port) as slow:
            await slow.send_all(b"GET / HTTP/1.1\r\nX-")
            assert b"200" not in await rest(slow)

    serve(use)


def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "WRITE_STALL_S", 0.05)

    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as stream:
            await stream.send_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: bool(server.open))
            await until(lambda: not server.open)

    serve(use)


def test_a_stop_does_not_wait_for_who_does_not_read() -> None:
    streams: list[trio.SocketStream] = []

    async def use(server: HttpServer, port: int) -> None:
        streams.append(await connect(port))
        await streams[0].send_all(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        await first(streams[0])

    serve(use, streams)  # which sees that the server has none left


def test_an_unread_body_does_not_cost_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "DISCARD_S", 1_000.0)

    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as stream:
            length = 2 << 20
            head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            await stream.send_all(head.encode() + b"x" * length)
            assert (await rest(stream)).startswith(b"HTTP/1.1 200")
        monkeypatch.setattr(http_connection, "DISCARD_S", 0.05)
        async with await connect(port) as stream:
            await stream.send_all(head.encode() + b"x" * 10_000)
            assert (await rest(stream)).startswith(b"HTTP/1.1 200")

    serve(use)


def test_who_waits_to_send_a_body_is_told_to_or_refused() -> None:
    async def use(server: HttpServer, port: int) -> None:
        expecting = b"Host: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        async with await connect(port) as stream:
            await stream.send_all(b"POST /read HTTP/1.1\r\n" + expecting)
            with trio.fail_after(20):
                told = await stream.receive_some(65_536)
            assert told.startswith(b"HTTP/1.1 100 ")
            assert told.endswith(b"\r\n\r\n")
            await stream.send_all(b"12345")
            assert (await first(stream)).endswith(b"\r\n\r\n5")
            await stream.send_all(GET)  # the connection goes on
            assert (await first(stream)).startswith(b"HTTP/1.1 200")
        async with await connect(port) as stream:
            await stream.send_all(b"POST / HTTP/1.1\r\n" + expecting)
            answer = await first(stream)  # of an application that does not want it
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer.lower()

    serve(use)


def test_requests_that_come_together_are_answered_in_turn() -> None:
    async def use(server: HttpServer, port: int) -> None:
        post = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n123"
        async with await connect(port) as stream:
            last = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            await stream.send_all((GET + post) * 50 + last)
            answers = (await rest(stream)).split(b"HTTP/1.1 ")
            bodies = [one.partition(b"\r\n\r\n")[2] for one in answers]
            assert bodies == [b"", *[b"0", b"3"] * 50, b"0"]

    serve(use)


def test_a_head_is_answered_without_a_body() -> None:
    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as stream:
            await stream.send_all(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
            with trio.fail_after(20):
                head = await stream.receive_some(65_536)
            assert b"content-length: 1\r\n" in head
            assert head.endswith(b"\r\n\r\n")
            await stream.send_all(GET)
            assert (await first(stream)).startswith(b"HTTP/1.1 200")

    serve(use)


def test_a_body_that_is_none_is_refused() -> None:
    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as stream:
            head = b"POST /read HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            await stream.send_all(head + b"3\r\nabc\r\nxyz\r\n")
            assert (await rest(stream)).startswith(b"HTTP/1.1 400")

    serve(use)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_what_is_pushed_arrives_whole_and_in_order(version: str) -> None:
    """Also what the system did not take when it was."""

    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as stream:
            head = f"GET /pushed HTTP/{version}\r\nHost: x\r\nConnection: close\r\n\r\n"
            await stream.send_all(head.encode())
            client = h11.Connection(h11.CLIENT)
            client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
            client.send(h11.EndOfMessage())
            body = bytearray()
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    with trio.fail_after(20):
                        client.receive_data(await stream.receive_some(1 << 20))
                elif isinstance(event, h11.Data):
                    body += event.data
            assert body == b"<" + b"".join(pushed) + b">"

    serve(use)


def test_http_2_is_not_offered() -> None:
    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as stream:
            upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
            assert (await first(stream)).startswith(b"HTTP/1.1 200")

    serve(use)


def test_who_asks_for_a_websocket_is_answered_in_http() -> None:
    async def use(server: HttpServer, port: int) -> None:
        for key in (b"", b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: YQ==\r\n"):
            async with await connect(port) as stream:
                upgrade = b"Connection: Upgrade\r\nUpgrade: WebSocket\r\n" + key
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
                assert (await first(stream)).startswith(b"HTTP/1.1 200")
                await until(lambda: all(one.idle_since < math.inf for one in server.open))
                await stream.send_all(GET)
                assert (await first(stream)).startswith(b"HTTP/1.1 200")

    serve(use)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_body_of_two_lengths_is_refused_and_nothing_behind_it_is_read(version: str) -> None:
    """Where a proxy and the broker disagree, what follows would be somebody else's request."""

    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as stream:
            head = f"POST /read HTTP/{version}\r\nHost: x\r\nContent-Length: 5\r\n"
            both = f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            await stream.send_all(both.encode() + GET)
            answers = await rest(stream)
            assert answers.startswith(b"HTTP/1.1 400")
            assert answers.count(b"HTTP/1.1 ") == 1

    serve(use)


def test_what_goes_wrong_on_one_connection_ends_there() -> None:
    async def use(server: HttpServer, port: int) -> None:
        async with await connect(port) as stream:
            await stream.send_all(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
            await rest(stream)
        async with await connect(port) as stream:
            await stream.send_all(GET)
            assert (await first(stream)).startswith(b"HTTP/1.1 200")

    serve(use)
