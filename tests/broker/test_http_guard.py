"""Who may ask what: token, host, method, content type, body."""

from pathlib import Path

import pytest
import trio
import trio.testing

from tailrace.broker import http_app
from tailrace.broker.config import from_mapping
from tailrace.broker.http_errors import Refused
from tailrace.broker.http_guard import (
    Budget,
    Gone,
    bodies,
    host_name,
    is_own_host,
    own_hosts,
    read_body,
)
from tailrace.broker.server import Ready, Server
from tailrace.protocol.errors import ConnectError, RequestTimeout
from tests.broker.browsing import Browser, browse
from tests.broker.harness import connected

TOPICS = "/api/v1/topics"


# ── hosts ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("127.0.0.1:7480", "127.0.0.1"),
        ("LOCALHOST", "localhost"),
        ("[::1]:7480", "::1"),
        ("[::1]", "::1"),
        ("Broker.Example:80", "broker.example"),
        ("", ""),
        ("[", ""),
    ],
)
def test_a_host_header_without_its_port(header: str, name: str) -> None:
    assert host_name(header) == name


def test_own_hosts_are_bound_loopback_or_advertised() -> None:
    config = from_mapping(
        {
            "http.bind": "10.0.0.5:7480",
            "listeners.client.bind": "0.0.0.0:7400",
            "listeners.client.advertise": "broker.example:7400",
            "security.allow_insecure": True,
        }
    )
    own = own_hosts(config)
    for host in ("10.0.0.5:7480", "localhost:1", "127.0.0.1", "127.9.9.9", "[::1]:7480"):
        assert is_own_host(host, own, "10.0.0.5"), host
    assert is_own_host("BROKER.example:7480", own, "10.0.0.5")
    for host in ("", "evil.example", "10.0.0.6", "0.0.0.0", "localhost.evil.example", "[", ":80"):
        assert not is_own_host(host, own, "10.0.0.5"), host
    # Bound to every address, any address will do, but no name.
    assert is_own_host("192.168.1.7:7480", own, "0.0.0.0")
    assert not is_own_host("evil.example", own, "0.0.0.0")


# ── bodies ───────────────────────────────────────────────────────────────────────────────────


class Sender:
    """Parts of a body, one after the other; then it hangs, or is gone."""

    def __init__(self, *parts: bytes, complete: bool = True, gone: bool = False) -> None:
        self.messages: list[dict[str, object]] = [
            {"type": "http.request", "body": part, "more_body": True} for part in parts
        ]
        if complete:
            self.messages.append({"type": "http.request", "body": b"", "more_body": False})
        if gone:
            self.messages.append({"type": "http.disconnect"})

    async def __call__(self) -> dict[str, object]:
        if not self.messages:
            await trio.sleep_forever()
        return self.messages.pop(0)


def read(budget: Budget, sender: Sender, limit: int, **headers: str) -> bytes:
    async def main() -> bytes:
        with budget.account() as account:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            return await read_body(sender, given, limit, account)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_body_is_joined_and_its_bytes_are_given_back() -> None:
    budget = bodies()
    assert read(budget, Sender(b"ab", b"", b"c"), 3) == b"abc"
    assert budget.held_bytes == 0


def test_a_body_is_too_large_by_what_it_says_or_by_what_comes() -> None:
    budget = bodies()
    with pytest.raises(Refused, match=r"a body of 4 bytes exceeds the limit of 3 bytes") as said:
        read(budget, Sender(complete=False), 3, content_length="4")
    with pytest.raises(Refused, match=r"the body exceeds the limit of 3 bytes"):
        read(budget, Sender(b"ab", b"cd", complete=False), 3)
    assert said.value.status == 413
    assert budget.held_bytes == 0


def test_a_body_that_does_not_come_is_given_up() -> None:
    with pytest.raises(RequestTimeout, match="did not arrive in 10 s"):
        read(bodies(), Sender(b"a", complete=False), 3)
    with pytest.raises(Gone):
        read(bodies(), Sender(b"a", complete=False, gone=True), 3)


def test_all_bodies_together_are_bounded() -> None:
    budget = Budget(10, "bytes of HTTP bodies")
    with budget.account() as other:
        other.hold(8)
        assert read(budget, Sender(b"ab"), 20) == b"ab"
        with pytest.raises(ConnectError, match=r"T123: .* 10 bytes of HTTP bodies"):
            read(budget, Sender(b"abc"), 20)
    assert read(budget, Sender(b"x" * 20), 20) == b"x" * 20  # one alone always fits


def test_who_waits_for_room_gets_it_when_others_give_it_back() -> None:
    budget = Budget(10, "bytes of HTTP answers")

    async def main() -> None:
        with budget.account() as other, budget.account() as waiting:
            other.hold(8)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(waiting.wait_for, 5)
                await trio.testing.wait_all_tasks_blocked()
                assert waiting.held_bytes == 0
                other.hold(6)
                await trio.testing.wait_all_tasks_blocked()
                assert waiting.held_bytes == 0
                other.hold(5)
            assert (waiting.held_bytes, budget.held_bytes) == (5, 10)
            with pytest.raises(ConnectError):
                waiting.hold(6)
        assert budget.held_bytes == 0

    trio.run(main)


# ── over a socket ────────────────────────────────────────────────────────────────────────────


def test_without_a_token_a_foreign_host_is_misdirected(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        for path in (TOPICS, "/api/v1/nothing", "/api/"):
            answer = await browser.get(path, host="evil.example:7480")
            assert (answer.status, answer.json["error"]["code"]) == (421, "T062")
        assert (await browser.get(TOPICS, host="localhost")).status == 200
        assert (await browser.get("/livez", host="evil.example")).status == 200
        assert (await browser.get("/metrics", host="evil.example")).status == 200

    browse(tmp_path, use)


def test_with_a_token_the_host_does_not_matter_but_the_token_does(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        assert (await browser.get(TOPICS, host="broker.example")).status == 200
        stranger = Browser(ready.http or "")
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert (await stranger.get(TOPICS, authorization=f"{scheme} s3cret")).status == 200
        wrong = ("", "Bearer", "Bearer wrong", "Basic s3cret", "Bearer s3cret2", "s3cret")
        for authorization in (*wrong, "Bearer S3CRET"):
            answer = await stranger.get(TOPICS, authorization=authorization)
            assert (answer.status, answer.json["error"]["code"]) == (401, "T006"), authorization
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await stranger.get("/api/v1/nothing")).status == 401

    browse(tmp_path, use, token="s3cret")


def test_a_head_is_that_of_get_and_begins_nothing(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        async with connected(ready) as client:
            await client.create("t")
        for path in (TOPICS, f"{TOPICS}/t", f"{TOPICS}/t/records?partition=0", f"{TOPICS}/none"):
            told, shown = await browser.ask("HEAD", path), await browser.get(path)
            assert (told.status, told.body) == (shown.status, b""), path
            for name in ("content-type", "content-length"):
                assert told.headers[name] == shown.headers[name]
        told = await browser.ask("HEAD", f"{TOPICS}/t/tail")
        assert (told.status, told.body) == (200, b"")
        assert told.headers["content-type"].startswith("text/event-stream")

    browse(tmp_path, use)


def test_what_a_path_does_not_take_is_named(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        answer = await browser.ask("PUT", TOPICS)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST")
        assert answer.error == "T062: /api/v1/topics does not take PUT"
        assert (await browser.ask("POST", "/livez")).status == 405
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "", "json"):
            answer = await browser.ask("POST", TOPICS, b"{}", **{"content-type": content_type})
            assert (answer.status, answer.json["error"]["code"]) == (415, "T062"), content_type
        plain = {"content-type": "Application/JSON; charset=utf-8"}
        packed = {**plain, "content-encoding": "gzip"}
        answer = await browser.ask("POST", TOPICS, b"\x1f\x8b", **packed)
        assert answer.status == 415
        assert answer.error == "T062: the body is encoded as gzip, which is not supported"
        assert (await browser.ask("POST", TOPICS, b'{"name":"a"}', **plain)).status == 201
        for body in (b"", b"{", b"[]", b'{"name":"\\ud800"}', b'{"name":"\xff"}', b"[" * 60_000):
            answer = await browser.ask("POST", TOPICS, body, **plain)
            assert (answer.status, answer.json["error"]["code"]) == (400, "T062"), body[:20]

    browse(tmp_path, use)


def test_queries_are_taken_literally(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        for query, status in (
            ("limit=1", 200),
            ("limit=0", 400),
            ("limit=1001", 400),
            ("limit=one", 400),
            ("limit=%ff", 400),
            ("limit=1&limit=2", 400),
            ("colour=red", 400),
            ("filter=a", 404),  # a later release's
            ("internal=yes", 400),
            ("&".join(f"a{n}=1" for n in range(200)), 400),
        ):
            assert (await browser.get(f"{TOPICS}?{query}")).status == status, query
        assert (await browser.get(f"{TOPICS}/%ff")).status == 400

    browse(tmp_path, use)


def test_the_api_answers_503_until_the_broker_serves(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        gateway, server.gateway = server.gateway, None
        answer = await browser.get(TOPICS)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert answer.json["error"]["code"] == "T033"
        server.gateway = gateway
        assert (await browser.get(TOPICS)).status == 200

    browse(tmp_path, use)


def test_a_request_in_hand_is_answered_before_the_broker_stops(tmp_path: Path) -> None:
    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        gateway = server.gateway
        assert gateway is not None
        host, port = browser.host, browser.port
        body = b'{"name":"orders"}'
        head = f"POST {TOPICS} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        async with await trio.open_tcp_stream(host, port) as stream:
            await stream.send_all(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
            while not gateway.in_hand:  # noqa: ASYNC110 there is no event for it
                await trio.sleep(0.001)
            server.stop()
            assert (await browser.get(TOPICS)).status == 503
            await stream.send_all(body[5:])
            assert bytes(await stream.receive_some(100)).startswith(b"HTTP/1.1 201")

    browse(tmp_path, use)


def test_a_stop_waits_for_no_body_and_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_app, "LAST_BODIES_S", 0.01)

    async def use(browser: Browser, server: Server, ready: Ready) -> None:
        gateway = server.gateway
        assert gateway is not None
        await browser.send("POST", TOPICS, {"name": "orders"})
        host = f"Host: {browser.host}\r\n"
        lines = "Content-Type: application/json\r\nContent-Length: 9\r\n"
        body = f"POST {TOPICS} HTTP/1.1\r\n{host}{lines}\r\n{{"
        path = f"{TOPICS}/orders/records?partition=0&offset=end&wait=30s"
        poll = f"GET {path} HTTP/1.1\r\n{host}\r\n"
        answers: list[bytes] = []
        async with (
            await trio.open_tcp_stream(browser.host, browser.port) as sending,
            await trio.open_tcp_stream(browser.host, browser.port) as waiting,
        ):
            await sending.send_all(body.encode())
            await waiting.send_all(poll.encode())
            while gateway.in_hand < 2:  # noqa: ASYNC110 there is no event for it
                await trio.sleep(0.001)
            opened = sorted(line.partition(": ")[2] for line in server.open_requests())
            assert opened[0].startswith("GET /api/v1/topics/orders/records for ")
            assert opened[1].startswith("POST /api/v1/topics for ")
            server.stop()
            assert len(server.open_requests()) == 2
            with trio.fail_after(5):
                for stream in (sending, waiting):
                    answers.append(bytes(await stream.receive_some(1_000)))
        assert answers[0].startswith(b"HTTP/1.1 503"), answers[0]
        assert answers[1].endswith(
            b'{"records":[],"next_offset":0,"log_start":0,"high_watermark":0}'
        )

    browse(tmp_path, use)
