"""Requests that mean harm: each gets what the contract says, and costs the broker next to nothing.

The broker is a process of its own, so that what it costs can be measured: the peak of its resident
memory during an attack, over what it had before.
"""

import base64
import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tailrace.bench.processes import BrokerProcess
from tailrace.broker.http_server import CONNECTIONS_MAX

MIB = 1 << 20
GROWTH_BYTES_MAX = 32 * MIB
TIMEOUT_S = 60
TOPICS = "/api/v1/topics"
JSON_BYTES_MAX = 65_536

pytestmark = pytest.mark.slow


class Target:
    """The broker under attack."""

    def __init__(self, broker: BrokerProcess) -> None:
        host, _, port = broker.http_url.removeprefix("http://").rpartition(":")
        self.address = host, int(port)
        self._proc = Path(f"/proc/{broker.pid}")

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, TIMEOUT_S)

    def head(self, method: str, path: str, *headers: str) -> bytes:
        host, port = self.address
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}:{port}", *headers, "", ""]
        return "\r\n".join(lines).encode()

    def post(self, body: bytes, path: str = TOPICS) -> tuple[int, str]:
        """Status and error of a JSON body."""
        length = f"Content-Length: {len(body)}"
        head = self.head("POST", path, "Content-Type: application/json", length)
        with self.connect() as stream:
            send(stream, head + body)
            return answer(stream)

    def healthy(self) -> bool:
        with self.connect() as stream:
            stream.sendall(self.head("GET", "/livez", "Connection: close"))
            return answer(stream)[0] == 200

    @property
    def descriptors(self) -> int:
        return len(list((self._proc / "fd").iterdir()))

    @property
    def resident_bytes(self) -> int:
        return self._status("VmRSS")

    @property
    def peak_bytes(self) -> int:
        return self._status("VmHWM")

    def begin(self) -> int:
        """The peak counts from here."""
        (self._proc / "clear_refs").write_text("5")
        return self.resident_bytes

    def _status(self, name: str) -> int:
        text = (self._proc / "status").read_text()
        return int(text.split(f"{name}:")[1].split()[0]) * 1024


def send(stream: socket.socket, data: bytes) -> None:
    """As far as the broker takes it."""
    with suppress(BrokenPipeError, ConnectionResetError):
        stream.sendall(data)


def flood(stream: socket.socket, part: bytes) -> None:
    """More than anybody takes."""
    for _ in range(20_000):
        stream.sendall(part)


def answer(stream: socket.socket) -> tuple[int, str]:
    """Status, and the error's code if it is one."""
    data = b""
    while b"\r\n\r\n" not in data or len(data) < whole(data):
        part = stream.recv(65_536)
        if not part:
            break
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    document: Any = json.loads(body) if body.startswith(b"{") else {}
    return status, document.get("error", {}).get("code", "")


def whole(data: bytes) -> int:
    head, _, _ = data.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return len(head) + 4 + int(line.split(b":")[1])
    return len(head) + 4


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with BrokerProcess(tmp_path_factory.mktemp("attacked") / "data") as broker:
        found = Target(broker)
        with found.connect() as stream:  # what is imported and built once is no cost of an attack
            stream.sendall(found.head("GET", "/api/v1/openapi.json", "Connection: close"))
            answer(stream)
        assert found.post(b'{"name":"orders"}')[0] == 201
        yield found
        assert found.healthy()


@pytest.fixture
def cheap(target: Target) -> Iterator[Target]:
    """What happens in the test costs less than the bound, and the broker lives."""
    before = target.begin()
    yield target
    assert target.healthy()
    grown = target.peak_bytes - before
    print(f"grown by {grown / MIB:.1f} MiB")
    assert grown <= GROWTH_BYTES_MAX, f"{grown / MIB:.1f} MiB"


def test_a_body_of_100_mb_is_refused(cheap: Target) -> None:
    length = 100_000_000
    for headers in (("Content-Type: application/json",), ("Content-Type: text/plain",), ()):
        with cheap.connect() as stream:
            send(stream, cheap.head("POST", TOPICS, f"Content-Length: {length}", *headers))
            part = b"x" * MIB
            for _ in range(length // MIB + 1):
                send(stream, part)
            assert answer(stream) == ((413 if "json" in "".join(headers) else 415), "T062")


def test_a_body_without_end_is_cut_off(cheap: Target) -> None:
    part = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    for path, content_type in (
        (TOPICS, "application/json"),
        (f"{TOPICS}/orders/records", "application/x-ndjson"),
        ("/livez", "application/json"),
    ):
        with cheap.connect() as stream:
            head = cheap.head(
                "POST", path, "Transfer-Encoding: chunked", f"Content-Type: {content_type}"
            )
            stream.sendall(head)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                flood(stream, part)


def test_clients_that_never_read_hold_next_to_nothing(cheap: Target) -> None:
    asked = cheap.head("GET", "/api/v1/openapi.json") * 200
    with ExitStack() as streams:
        for _ in range(50):
            stream = streams.enter_context(cheap.connect())
            stream.settimeout(0.2)
            with suppress(TimeoutError):
                send(stream, asked)
        assert cheap.healthy()


@pytest.mark.parametrize(
    ("topic", "byte"),
    [("letters", b"x"), ("nuls", b"\0")],  # as JSON a NUL takes six bytes
)
def test_clients_that_never_read_large_records_hold_next_to_nothing(
    cheap: Target, topic: str, byte: bytes
) -> None:
    assert cheap.post(b'{"name":"%b"}' % topic.encode())[0] == 201
    records = f"{TOPICS}/{topic}/records"
    value = base64.b64encode(byte * 1_000_000)
    for _ in range(6):
        body = b'{"records":[{"value":"%b","value_encoding":"base64"}]}' % value
        assert cheap.post(body, records)[0] == 200
    for path, clients in (
        (f"{records}?partition=0", 200),
        (f"{records}?partition=0&limit=1", 200),
        (f"{TOPICS}/{topic}/tail?from=start", 80),
    ):
        with ExitStack() as streams:
            opened: list[socket.socket] = []
            for _ in range(clients):
                stream = streams.enter_context(socket.socket())
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
                stream.settimeout(TIMEOUT_S)
                stream.connect(cheap.address)
                send(stream, cheap.head("GET", path))
                opened.append(stream)
            for stream in opened:
                assert stream.recv(13) in (b"HTTP/1.1 200 ", b"HTTP/1.1 503 ")
            assert cheap.healthy()


def test_json_bombs_are_refused(cheap: Target) -> None:
    deep, many = JSON_BYTES_MAX // 2, JSON_BYTES_MAX // 3
    for body in (
        b"[" * JSON_BYTES_MAX,
        b"[" * deep + b"]" * deep,
        b'{"a":' * (JSON_BYTES_MAX // 6),
        b'{"name":' + b"[" * (deep - 10) + b"]" * (deep - 10) + b"}",
        b"[" + b"{}," * (many - 2) + b"{}]",
        b'{"name":"a","config":{"x":[' + b"{}," * (many - 20) + b"{}]}}",
        b'{"name":' + b"9" * 60_000 + b"}",
    ):
        for _ in range(20):
            assert cheap.post(body) == (400, "T062")


def test_bombs_among_records_are_refused(cheap: Target) -> None:
    records = f"{TOPICS}/orders/records"
    for body in (
        b"[" * 1_000_000,
        b'{"records":[' + b"{}," * 330_000 + b"{}]}",
        b'{"records":[{"value":' + b"[" * 400_000 + b"]" * 400_000 + b"}]}",
    ):
        for _ in range(5):
            assert cheap.post(body, records)[0] in (400, 413)


def test_idle_connections_make_room_for_others(cheap: Target) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2_048), hard), hard))
    before = cheap.descriptors
    with ExitStack() as streams:
        for number in range(500):
            stream = streams.enter_context(cheap.connect())
            if number % 2:  # it has begun to ask
                stream.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        assert cheap.healthy()
        assert cheap.descriptors <= before + CONNECTIONS_MAX + 2


def test_heads_without_end_are_refused(cheap: Target) -> None:
    for _ in range(20):
        with cheap.connect() as stream:
            send(stream, b"GET /livez HTTP/1.1\r\n" + b"X-Many: 1\r\n" * 200_000)
            with suppress(OSError):
                assert answer(stream)[0] in (400, 431)
