"""T001-T006 and T120-T124: nobody there, somebody else there, or bytes that make no sense."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

import tailrace.sync
from tailrace.protocol.codec import encode_message
from tailrace.protocol.connection import ADMIN_BYTES_MAX
from tailrace.protocol.errors import AuthError, ConnectError, TailraceError, VersionMismatch
from tailrace.protocol.frame import PREAMBLE, encode_frame
from tailrace.protocol.messages import Api, HelloRequest, MetadataRequest, MetadataResponse
from tailrace.testing import Broker
from tests.broker.harness import Client
from tests.errors.provoking import told, told_by, with_raw_client


def fails(url: str, connect_timeout: float = 5.0) -> TailraceError:
    """The error that connecting ends with."""
    with pytest.raises(TailraceError) as caught:
        tailrace.sync.connect(url, connect_timeout=connect_timeout).__enter__()
    return caught.value


@pytest.mark.provokes("T001")
def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    error = fails(f"tailrace://{address}")
    told(
        error,
        "T001",
        rf"no broker reachable in [\d.]+ s: {address} \(connection refused\)",
        attempts=[(address, "connection refused")],
    )
    assert error.hint == "Nothing listens there. Start one: tailrace dev"
    assert isinstance(error, ConnectError)
    assert error.elapsed > 0


@pytest.mark.provokes("T002")
@pytest.mark.parametrize("host", ["nobody.invalid", "a..b"])
def test_a_host_without_an_address(host: str) -> None:
    error = fails(f"tailrace://{host}")
    message = rf"no broker reachable in [\d.]+ s: {host} does not resolve"
    told(error, "T002", message, attempts=[(f"{host}:7400", "does not resolve")])
    assert error.hint == "Check the host name."


@pytest.mark.provokes("T003")
def test_a_broker_that_advertises_what_does_not_work_from_here() -> None:
    with Broker(config={"listeners.client.advertise": "n1.invalid:7400"}) as broker:
        error = fails(broker.url.replace("n1.invalid:7400", bound_address(broker)))
    told(
        error,
        "T003",
        r"bootstrap 127\.0\.0\.1:\d+ works, but broker n1 advertises n1\.invalid:7400, which "
        "does not resolve from here",
        attempts=[("n1.invalid:7400", "does not resolve")],
    )
    assert error.hint == (
        "Set listeners.client.advertise on n1, or connect from inside its network."
    )


def bound_address(broker: Broker) -> str:
    """Where it really listens."""
    gate = broker._machine.gate
    assert gate is not None
    return f"127.0.0.1:{gate.listeners[0].port}"


@pytest.mark.provokes("T004")
@pytest.mark.slow
def test_somebody_else_there() -> None:
    with Broker(http=True) as broker:
        assert broker.http_url is not None
        # The first connection of HTTP imports what it needs, which may take long.
        urllib.request.urlopen(f"{broker.http_url}/livez").close()
        address = broker.http_url.removeprefix("http://")
        error = fails(f"tailrace://{address}", connect_timeout=1.0)  # HTTP would wait for more
        told(error, "T004", rf"{address} speaks HTTP, not tailrace/1")
        assert error.hint == "That is the HTTP port; clients use 7400."
        error = fails(broker.url.replace("tailrace:", "tailraces:"))
        told(error, "T004", r"127\.0\.0\.1:\d+ speaks plain tailrace/1, not TLS")


@pytest.mark.provokes("T005")
def test_an_outage_that_lasts_too_long() -> None:
    with Broker() as broker:
        with tailrace.sync.connect(broker.url, max_outage=0.1) as client:
            client.admin.list_topics()
            broker.stop()
            with pytest.raises(ConnectError) as caught:
                client.admin.list_topics()
            address = client.health().address
    told(
        caught.value,
        "T005",
        rf"no broker reachable for 0\.\d+ s, max_outage is 0\.1 s; last: {address} \(.+\)",
    )
    assert caught.value.attempts[0][0] == address
    assert caught.value.elapsed >= 0.1


@pytest.mark.provokes("T006")
@pytest.mark.parametrize(
    ("headers", "reason"),
    [({}, "no token given"), ({"Authorization": "Bearer wrong"}, "wrong token")],
)
def test_http_without_the_token(tmp_path: Path, headers: dict[str, str], reason: str) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    with Broker(http=True, config={"http.token_file": str(file)}) as broker:
        request = urllib.request.Request(f"{broker.http_url}/metrics", headers=headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as answer:
            document = json.load(answer)["error"]
    assert caught.value.code == 401
    assert document["class"] == AuthError.__name__
    told_by(document, "T006", rf"127\.0\.0\.1:\d+ refused the request: {reason}")


# ── the bytes ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.provokes("T120")
def test_no_version_in_common(broker: Broker) -> None:
    host, port = broker.url.removeprefix("tailrace://").split(":")
    hello = HelloRequest(2, 3, "newer", "tailrace/1.2.0", None)

    async def main() -> None:
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            client = Client(stream)
            client.protocol.open()
            frame = encode_frame(Api.HELLO, 1, 0, encode_message(hello), 0)
            await stream.send_all(PREAMBLE + frame)
            with trio.fail_after(20), pytest.raises(VersionMismatch) as caught:
                await client.receive()
        told(
            caught.value,
            "T120",
            r"client 1\.2\.0 speaks protocol 2-3, broker 0\.1\.0 speaks 1-1",
            client_range=(2, 3),
            broker_range=(1, 1),
        )
        assert caught.value.hint == "pip install 'tailrace~=0.1.0', or upgrade the broker."

    trio.run(main)


BAD_FRAMES: dict[str, Callable[[], bytes]] = {
    "T121": lambda: b"\0" * 64,
    "T122": lambda: encode_frame(99, 1, 7, encode_message(MetadataRequest(None, False)), 0),
    "T124": lambda: encode_frame(Api.CREATE_TOPIC, 1, 7, b"", ADMIN_BYTES_MAX),
}
SAYS = {
    "T121": "malformed frame: .+",
    "T122": "api 99 version 1 is not served here",
    "T124": r"frame of api \d+ of [\d,]+ bytes exceeds the limit of [\d,]+ bytes",
}


@pytest.mark.provokes("T121", "T122", "T124")
@pytest.mark.parametrize("code", SAYS)
def test_frames_that_are_not_taken(broker: Broker, code: str) -> None:
    async def talk(client: Client) -> None:
        await client.ask(MetadataRequest((), False), MetadataResponse)
        await client.stream.send_all(BAD_FRAMES[code]())
        with pytest.raises(ConnectError) as caught:
            await until_refused(client)
        told(caught.value, code, SAYS[code])

    with_raw_client(broker.url, talk)


async def until_refused(client: Client) -> None:
    while not any(isinstance(one.message, TailraceError) for one in client.answers.values()):
        await client.receive()
    (answer,) = client.answers.values()
    assert isinstance(answer.message, TailraceError)
    raise answer.message


@pytest.mark.provokes("T123")
def test_one_connection_too_many() -> None:
    with Broker(config={"limits.connections": 1}) as broker:

        async def second(_: Client) -> None:
            host, port = broker.url.removeprefix("tailrace://").split(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                client = Client(stream)
                client.protocol.open()
                with pytest.raises(ConnectError) as caught:
                    await client.receive()
            told(
                caught.value,
                "T123",
                r"connection refused: limits\.connections of 1 is reached",
            )

        with_raw_client(broker.url, second)
