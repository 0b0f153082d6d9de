"""Who gets in, who is turned away and how, and which deadlines a connection has."""

import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trustme

from tailrace.broker.server import Ready
from tailrace.protocol.errors import ConnectError
from tailrace.protocol.frame import PREAMBLE
from tailrace.protocol.messages import HelloRequest
from tests.broker.certified import certified
from tests.broker.harness import (
    Client,
    batch,
    connected,
    fetch_request,
    produce_request,
    request_memory,
    run,
    serving,
)


async def raw(ready: Ready, data: bytes = b"") -> trio.SocketStream:
    """A connection that sent so much."""
    stream = await trio.open_tcp_stream(*ready.addresses["client"])
    if data:
        await stream.send_all(data)
    return stream


async def rest(stream: trio.SocketStream) -> bytes:
    """All until the broker closes."""
    data = b""
    with trio.fail_after(10):
        try:
            while more := await stream.receive_some():
                data += more
        except trio.BrokenResourceError:
            pass
        finally:
            await stream.aclose()
    return data


async def refusal(stream: trio.SocketStream) -> ConnectError:
    """The error a client that has said hello is closed with."""
    client = Client(stream)
    client.protocol.open()
    with pytest.raises(ConnectError) as raised:
        list(client.protocol.feed(await rest(stream)))
    return raised.value


@pytest.mark.parametrize(
    ("opening", "answer", "found"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400", "HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", b"\x15\x03", "TLS"),
        (b"\x00\x00\x00\x20\x00\x12\x00\x03", b"", "Kafka"),
        (b"hello?", b"", "something else"),
        (PREAMBLE[:-1] + b"\x09", b"", "tailrace/9"),
    ],
)
def test_other_protocols_are_named_and_told_off_in_their_own_language(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    opening: bytes,
    answer: bytes,
    found: str,
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            assert (await rest(await raw(ready, opening))).startswith(answer)

    run(main)
    [record] = [r for r in caplog.records if getattr(r, "event", "") == "client.protocol_mismatch"]
    assert getattr(record, "code", "") == "T004"
    assert found in record.getMessage()


def test_too_many_connections_are_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(tmp_path, {"limits.connections": 2}) as (server, ready):
            async with connected(ready), connected(ready):
                error = await refusal(await raw(ready))
                assert error.code == "T123"
                assert "limits.connections of 2" in str(error)
            while server.metrics.connections.of("client").value:
                await trio.lowlevel.checkpoint()
            async with connected(ready):
                pass
            assert server.metrics.connections_refused.of("connections").value == 1

    run(main)
    assert "connection.refused" in {getattr(record, "event", "") for record in caplog.records}


@pytest.mark.parametrize("client_id", ["no\ntab", "", "ü" * 128])
def test_a_client_must_present_itself(tmp_path: Path, client_id: str) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            client = Client(await raw(ready))
            client.protocol._hello_request = HelloRequest(1, 1, client_id, "x/1", None)
            with pytest.raises(Exception, match="T013"):
                await client.hello()
            await client.stream.aclose()

    run(main)


def quick(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    monkeypatch.setattr("tailrace.broker.listener.SWEEP_S", 0.002)
    for name, value in limits.items():
        monkeypatch.setattr(f"tailrace.broker.limits.{name}", value)


@pytest.mark.parametrize("sent", [b"", PREAMBLE[:3], PREAMBLE, PREAMBLE + b"\0\0"])
def test_hello_must_come_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    quick(monkeypatch, HELLO_S=0.02)

    async def main() -> None:
        async with serving(tmp_path) as (_, ready):
            await rest(await raw(ready, sent))

    run(main)


async def half_a_header(client: Client, topic_id: bytes) -> None:
    await client.stream.send_all(b"\0\0\1")


async def half_a_body(client: Client, topic_id: bytes) -> None:
    entry = batch(topic_id, [bytes(100_000)])
    _, head = client.protocol.request(produce_request(topic_id, [entry]), len(entry))
    await client.stream.send_all(head + entry[:1_000])


async def silence(client: Client, topic_id: bytes) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("behaviour", [half_a_header, half_a_body, silence])
def test_slow_and_silent_connections_are_closed_but_not_one_that_waits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: Callable[[Client, bytes], Awaitable[None]],
) -> None:
    quick(monkeypatch, HEADER_S=0.03, BODY_S=0.03, BODY_BYTES_PER_S=1e9)

    async def main() -> None:
        async with (
            serving(tmp_path, {"limits.idle_connection": "1s"}) as (_, ready),
            connected(ready, "waiting") as waiting,
            connected(ready, "bad") as client,
        ):
            topic_id = await client.create("orders")
            poll = await waiting.send(fetch_request(topic_id, wait_ms=20_000))
            await behaviour(client, topic_id)
            with trio.fail_after(5), pytest.raises(trio.EndOfChannel):
                await client.receive()
            async with connected(ready) as other:
                await other.produce(topic_id, [b"a"])
            assert len((await waiting.wait(poll)).body) > 0

    run(main)


def test_a_peer_that_takes_no_answers_is_closed_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, WRITE_STALL_S=0.05)

    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            for _ in range(20):
                await client.produce(topic_id, [bytes(500_000)])
            async with connected(ready, "stalled") as stalled:
                for number in range(40):  # far more than the system's buffers take
                    await stalled.send(fetch_request(topic_id, offset=number % 20))
                    if server.metrics.connections.of("client").value < 2:
                        break
                with trio.fail_after(5):
                    while server.metrics.connections.of("client").value == 2:
                        assert (await client.produce(topic_id, [b"a"])).error is None
            assert request_memory(server) == 0

    run(main)


def test_a_peer_that_takes_no_answers_does_not_keep_the_broker_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch, LEAVE_STALL_S=0.05)

    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as stalled:
            topic_id = await stalled.create("orders")
            await stalled.produce(topic_id, [bytes(900_000)])
            for _ in range(16):  # far more than the system's buffers take
                await stalled.send(fetch_request(topic_id))
            while server.metrics.requests.of("fetch", "ok").value < 5:
                await trio.lowlevel.checkpoint()
            server.stop()
            with trio.fail_after(5):
                while server.metrics.connections.of("client").value:
                    await trio.lowlevel.checkpoint()
        assert (tmp_path / "data" / "clean").exists()

    run(main)


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_settings(tmp_path: Path, authority: trustme.CA) -> dict[str, str | int | float | bool]:
    return {"listeners.client.tls": True, **certified(tmp_path, authority, "127.0.0.1")}


def test_records_go_in_and_out_over_tls(tmp_path: Path, authority: trustme.CA) -> None:
    async def main() -> None:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        async with serving(tmp_path, tls_settings(tmp_path, authority)) as (_, ready):
            assert ready.url.startswith("tailraces://127.0.0.1:")
            plain = await raw(ready)
            stream = trio.SSLStream(plain, context, server_hostname="127.0.0.1")
            client = Client(stream)
            await client.hello()
            topic_id = await client.create("orders")
            for _ in range(4):
                await client.produce(topic_id, [bytes(250_000)])
            answer, body = await client.fetch(topic_id)
            assert answer.results[0].length == len(body) > 750_000
            await trio.aclose_forcefully(stream)

    run(main)


@pytest.mark.parametrize(
    ("opening", "found", "answer"),
    [
        (PREAMBLE, "plain tailrace/1, not TLS", b"\x15\x03"),
        (b"GET / HTTP/1.1\r\n", "HTTP, not TLS", b"HTTP/1.1 400"),
    ],
)
def test_a_tls_listener_names_who_speaks_plain(
    tmp_path: Path,
    authority: trustme.CA,
    caplog: pytest.LogCaptureFixture,
    opening: bytes,
    found: str,
    answer: bytes,
) -> None:
    async def main() -> None:
        async with serving(tmp_path, tls_settings(tmp_path, authority)) as (server, ready):
            assert (await rest(await raw(ready, opening))).startswith(answer)
            for closed_early in (b"", b"\x16\x03\x01\x00\x05hello"):
                stream = await raw(ready, closed_early)
                await stream.send_eof()
                await rest(stream)
            while server.metrics.connections.of("client").value:
                await trio.lowlevel.checkpoint()

    run(main)
    assert found in caplog.text
    assert "T004" in caplog.text
