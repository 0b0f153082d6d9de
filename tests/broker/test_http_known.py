"""Heads that a connection has seen before."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import h11
import pytest
import trio

from tailrace.broker.http_known import HEAD_BYTES_MAX, HEADS_MAX, KnownHeads, SendWhole
from tailrace.broker.server import Ready, Server
from tests.broker.browsing import Answer, Browser, browse, exchange
from tests.broker.harness import connected

LIST = "/api/v1/topics"


def head(target: str = "/", *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = (f"{method} {target} HTTP/{version}", "Host: localhost", *headers, "", "")
    return "\r\n".join(lines).encode()


async def again(send: SendWhole) -> None:
    pass


def keep(known: KnownHeads, data: bytes) -> bool:
    """Whether it is kept."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    known.keep(data, request, again)
    return known.find(data) is again


def test_a_head_is_known_by_all_of_its_bytes() -> None:
    known = KnownHeads()
    assert keep(known, head("/a", "X: 1"))
    for other in (head("/a"), head("/a", "X: 2"), head("/b", "X: 1"), head("/a", "X: 1")[:-1], b""):
        assert known.find(other) is None


@pytest.mark.parametrize(
    "other",
    [
        head(method="HEAD"),
        head(method="DELETE"),
        head(version="1.0"),
        head("/", "Connection: close"),
        head("/", "Connection: keep-alive"),
        head("/", "Upgrade: h2c"),
        head("/", "Expect: 100-continue"),
        head("/", "Content-Length: 0"),
        head("/", "Transfer-Encoding: chunked"),
        head("/", "X: " + "x" * HEAD_BYTES_MAX),
    ],
)
def test_what_may_mean_something_else_the_next_time_is_not_kept(other: bytes) -> None:
    assert not keep(KnownHeads(), other)


def test_of_many_heads_the_oldest_is_forgotten() -> None:
    known = KnownHeads()
    heads = [head(f"/{number}") for number in range(HEADS_MAX + 1)]
    for one in heads:
        assert keep(known, one)
    assert [known.find(one) is again for one in heads] == [False, *[True] * HEADS_MAX]


# ── over a connection ────────────────────────────────────────────────────────────────────────


class Client:
    """One connection, and a request that may be sent as it was sent before."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def get(self, target: str, **headers: str) -> Answer:
        given = {"host": "localhost", **headers}
        request = h11.Request(method="GET", target=target, headers=list(given.items()))
        with trio.fail_after(20):
            return await exchange(self.stream, request, b"")


def talk(
    tmp_path: Path,
    use: Callable[[Client, Server, Ready], Awaitable[None]],
    token: str | None = None,
) -> None:
    async def go(browser: Browser, server: Server, ready: Ready) -> None:
        async with await trio.open_tcp_stream(browser.host, browser.port) as stream:
            await use(Client(stream), server, ready)

    browse(tmp_path, go, token=token)


def test_who_asks_again_is_told_how_it_is_now(tmp_path: Path) -> None:
    async def use(client: Client, server: Server, ready: Ready) -> None:
        answers = [await client.get(LIST)]
        async with connected(ready) as other:
            for name in "ab":
                topic_id = await other.create(name)
                await other.produce(topic_id, [b"x"])
                answers.append(await client.get(LIST))
            await other.delete("a")
            answers.append(await client.get(LIST))
        names = [[topic["name"] for topic in one.json["topics"]] for one in answers]
        assert names == [[], ["a"], ["a", "b"], ["b"]]
        assert answers[3].json["topics"][0]["records"] == 1
        for one in answers:
            assert one.headers.keys() == {"content-type", "content-length", "date"}
            assert one.headers["content-type"] == "application/json"

    talk(tmp_path, use)


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/startupz", "/metrics"])
def test_an_answer_is_the_same_whether_its_head_is_known_or_not(tmp_path: Path, path: str) -> None:
    async def use(client: Client, server: Server, ready: Ready) -> None:
        first, *more = [await client.get(path) for _ in range(4)]
        assert first.status == 200
        for one in more:
            assert one.status == 200
            assert one.headers.keys() == first.headers.keys()
            assert one.headers["content-type"] == first.headers["content-type"]
            assert int(one.headers["content-length"]) == len(one.body)
            assert one.body.splitlines()[0] == first.body.splitlines()[0]

    talk(tmp_path, use)


def test_a_known_head_opens_no_door_to_another_one(tmp_path: Path) -> None:
    async def use(client: Client, server: Server, ready: Ready) -> None:
        for _ in range(2):
            for path in (LIST, "/metrics"):
                assert (await client.get(path, authorization="Bearer secret")).status == 200
                assert (await client.get(path)).status == 401
                assert (await client.get(path, authorization="Bearer Secret")).status == 401

    talk(tmp_path, use, token="secret")


def test_a_foreign_host_is_refused_each_time(tmp_path: Path) -> None:
    async def use(client: Client, server: Server, ready: Ready) -> None:
        for _ in range(3):
            assert (await client.get(LIST)).status == 200
            assert (await client.get(LIST, host="evil.example")).status == 421

    talk(tmp_path, use)


def test_a_known_head_is_refused_too_once_the_broker_stops(tmp_path: Path) -> None:
    async def use(client: Client, server: Server, ready: Ready) -> None:
        for _ in range(2):
            assert (await client.get(LIST)).status == 200
        gateway, server.gateway = server.gateway, None
        answer = await client.get(LIST)
        server.gateway = gateway
        assert answer.status == 503
        assert answer.error.startswith("T033")
        assert answer.headers["retry-after"] == "1"
        assert (await client.get(LIST)).status == 200

    talk(tmp_path, use)


def test_other_requests_between_known_ones_are_read_as_ever(tmp_path: Path) -> None:
    async def use(client: Client, server: Server, ready: Ready) -> None:
        bare = "host: localhost\r\n\r\n"
        known, other = f"GET {LIST} HTTP/1.1\r\n{bare}", f"GET /nowhere HTTP/1.1\r\n{bare}"
        last = "GET /livez HTTP/1.1\r\nconnection: close\r\n" + bare
        for _ in range(2):
            assert (await client.get(LIST)).status == 200
        await client.stream.send_all((known + other + known * 3).encode())
        for cut in (20, len(known) - 1):  # a known head in two parts is just a head
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.stream.send_all(known[:cut].encode())
            await trio.testing.wait_all_tasks_blocked(0.01)
            await client.stream.send_all(known[cut:].encode())
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.stream.send_all((known + last).encode())
        with trio.fail_after(20):
            answers = b"".join([part async for part in client.stream]).split(b"HTTP/1.1 ")[1:]
        codes = [int(answer[:3]) for answer in answers]
        assert codes == [200, 404, *[200] * 7]

    talk(tmp_path, use)
