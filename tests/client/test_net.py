"""Real sockets on loopback: TCP and TLS, under both event loops."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import trio
import trustme

from tailrace.client.net import TcpNet, TcpTransport, TlsTransport, reason_of
from tests.client.world import Run

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

AUTHORITY = trustme.CA()


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    return context


def server_context(host: str = "localhost") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(host).configure_cert(context)
    return context


@contextmanager
def serving(talk: Callable[[socket.socket], None], tls: ssl.SSLContext | None) -> Iterator[int]:
    """The port of a server that has one conversation, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def serve() -> None:
            try:
                sock, _ = listener.accept()
                sock.settimeout(5)
                with tls.wrap_socket(sock, server_side=True) if tls else sock as open_socket:
                    talk(open_socket)
            except OSError:
                pass  # the client refused

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


def echo(sock: socket.socket) -> None:
    while data := sock.recv(1 << 16):
        sock.sendall(data)


@pytest.mark.parametrize("secured", [False, True])
def test_what_is_sent_comes_through_unchanged(run: Run, secured: bool) -> None:
    payload = bytes(range(256)) * 8_000  # more than any socket buffer takes at once

    async def main() -> None:
        with serving(echo, server_context() if secured else None) as port:
            tls = client_context() if secured else None
            transport = await TcpNet().connect("localhost", port, tls)
            assert transport.peer == f"localhost:{port}"
            received = bytearray()

            async def receive() -> None:
                while len(received) < len(payload):
                    received.extend(await transport.receive(1 << 18))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                taken = transport.send_nowait(payload[:10])
                assert taken == (0 if secured else 10)
                await transport.send([payload[taken:1_000], memoryview(payload)[1_000:]])
            assert bytes(received) == payload
            transport.close()
            transport.close()

    run(main)


@pytest.mark.parametrize("secured", [False, True])
def test_a_head_and_its_body_leave_together(run: Run, secured: bool) -> None:
    sent: list[int] = []

    class Counting(socket.socket):
        def sendmsg(self, buffers: "Iterable[ReadableBuffer]", *_: Any) -> int:
            sent.append(super().sendmsg(buffers))
            return sent[-1]

    async def main() -> None:
        with serving(echo, server_context() if secured else None) as port:
            dialled = socket.create_connection(("localhost", port))
            dialled.setblocking(False)
            plain = TcpTransport(Counting(fileno=dialled.detach()), "localhost")
            transport: TcpTransport | TlsTransport = plain
            if secured:
                transport = TlsTransport(plain, client_context(), "localhost")
                await transport.handshake()
            sent.clear()
            await transport.send([b"head", b"." * 40_000])
            assert len(sent) == 1
            assert sent[0] >= 40_004
            transport.close()

    run(main)


@pytest.mark.parametrize("secured", [False, True])
def test_the_peer_s_end_is_no_bytes(run: Run, secured: bool) -> None:
    def bye(sock: socket.socket) -> None:
        sock.sendall(b"bye")

    async def main() -> None:
        with serving(bye, server_context() if secured else None) as port:
            tls = client_context() if secured else None
            transport = await TcpNet().connect("localhost", port, tls)
            assert await transport.receive(100) == b"bye"
            assert await transport.receive(100) == b""
            transport.close()

    run(main)


def test_each_time_that_something_is_there_a_step_is_taken(run: Run) -> None:
    def talk(sock: socket.socket) -> None:
        assert sock.recv(10) == b"go"  # so that the first attempt finds nothing
        sock.sendall(b"hello")
        assert sock.recv(10) == b"on"
        sock.sendall(b" world")

    async def main() -> None:
        with serving(talk, None) as port:
            transport = await TcpNet().connect("localhost", port, None)
            assert isinstance(transport, TcpTransport)
            assert transport.receive_nowait(10) is None
            memory, got = bytearray(b"." * 14), 0

            def step() -> bool:
                nonlocal got
                count = transport.receive_into_nowait(memoryview(memory)[got:])
                got += count or 0
                if got == 5 and count:
                    transport.send_nowait(b"on")
                return count != 0

            transport.send_nowait(b"go")
            await transport.each_readable(step)
            assert memory == b"hello world..."
            assert transport.receive_nowait(10) == b"", "the peer has ended"
            transport.close()

    run(main)


def test_what_a_step_raises_reaches_whoever_waits(run: Run) -> None:
    def talk(sock: socket.socket) -> None:
        sock.sendall(b"hello")
        sock.recv(10)

    def step() -> bool:
        raise LookupError("a step")

    async def main() -> None:
        with serving(talk, None) as port:
            transport = await TcpNet().connect("localhost", port, None)
            assert isinstance(transport, TcpTransport)
            with pytest.raises(LookupError):
                await transport.each_readable(step)
            assert await transport.receive(10) == b"hello", "it may still be read"
            transport.close()

    run(main)


def test_a_step_may_use_anyio_where_asyncio_itself_was_run() -> None:
    def talk(sock: socket.socket) -> None:
        sock.sendall(b"hello")

    async def main() -> None:
        with serving(talk, None) as port:
            transport = await TcpNet().connect("localhost", port, None)
            assert isinstance(transport, TcpTransport)
            made: list[object] = []

            def step() -> bool:
                made.extend((anyio.Event(), anyio.CancelScope()))
                return False

            await transport.each_readable(step)
            assert len(made) == 2
            transport.close()

    asyncio.run(main())


def test_a_step_may_close_what_it_reads_from(run: Run) -> None:
    def talk(sock: socket.socket) -> None:
        sock.sendall(b"hello")

    async def main() -> None:
        with serving(talk, None) as port:
            transport = await TcpNet().connect("localhost", port, None)
            assert isinstance(transport, TcpTransport)

            def step() -> bool:
                transport.close()
                return True

            with pytest.raises(ConnectionAbortedError):
                await transport.each_readable(step)

    run(main)


def test_one_that_was_closed_before_anybody_came_to_read_says_so(run: Run) -> None:
    async def main() -> None:
        with serving(echo, None) as port:
            transport = await TcpNet().connect("localhost", port, None)
            assert isinstance(transport, TcpTransport)
            transport.close()
            with pytest.raises(ConnectionAbortedError):
                await transport.each_readable(lambda: False)

    run(main)


def test_trio_reads_by_itself_where_asyncio_waits_for_all_of_it() -> None:
    async def read(port: int) -> None:
        transport = await TcpNet().connect("localhost", port, None)
        assert isinstance(transport, TcpTransport)
        transport.send_nowait(b"hello")
        came: list[bytes] = []

        def step() -> bool:
            came.append(transport.receive_nowait(10) or b"")
            return False

        with trio.fail_after(5):
            await transport.each_readable(step)
        assert came == [b"hello"]
        transport.close()

    async def cell(port: int) -> None:  # of a notebook
        trio.run(read, port)

    with serving(echo, None) as port:
        asyncio.run(cell(port))


@pytest.mark.parametrize("way", ["close", "cancel"])
def test_no_step_is_taken_after_the_end(run: Run, way: str) -> None:
    async def main() -> None:
        with serving(echo, None) as port:
            transport = await TcpNet().connect("localhost", port, None)
            assert isinstance(transport, TcpTransport)

            async def wait() -> None:
                with pytest.raises(ConnectionAbortedError):
                    await transport.each_readable(lambda: False)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                if way == "close":
                    transport.close()
                else:
                    tasks.cancel_scope.cancel()
            if way == "cancel":
                transport.send_nowait(b"back")
                assert await transport.receive(10) == b"back", "nobody else is registered"
            transport.close()

    run(main)


def test_closing_wakes_whoever_receives(run: Run) -> None:
    async def main() -> None:
        with serving(echo, None) as port:
            transport = await TcpNet().connect("127.0.0.1", port, None)

            async def receive() -> None:
                with pytest.raises(ConnectionAbortedError):
                    await transport.receive(100)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                transport.close()
            with pytest.raises(ConnectionAbortedError):
                await transport.send([b"x"])

    run(main)


def test_nobody_listening_is_connection_refused(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    async def main() -> None:
        with pytest.raises(OSError) as caught:  # noqa: PT011 the reason is what is tested
            await TcpNet().connect("127.0.0.1", port, None)
        assert reason_of(caught.value) == "connection refused"

    run(main)


@pytest.mark.parametrize("host", ["a..b", "a" * 64 + ".example"])
def test_a_name_no_host_can_have_does_not_resolve(run: Run, host: str) -> None:
    async def main() -> None:
        with pytest.raises(socket.gaierror) as caught:
            await TcpNet().connect(host, 1, None)
        assert reason_of(caught.value) == "does not resolve"

    run(main)


def test_a_certificate_of_another_host_is_refused(run: Run) -> None:
    async def main() -> None:
        with serving(echo, server_context("elsewhere.example")) as port:
            with pytest.raises(ssl.SSLCertVerificationError) as caught:
                await TcpNet().connect("localhost", port, client_context())
            assert reason_of(caught.value).startswith("certificate refused: Hostname mismatch")

    run(main)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(-2, "unknown"), "does not resolve"),
        (TimeoutError(), "timed out"),
        (ConnectionResetError(104, "x"), "connection reset"),
        (OSError(113, "x"), "no route to host"),
        (OSError(28, "x"), "no space left on device"),
        (OSError("odd"), "odd"),
    ],
)
def test_reasons_are_a_few_plain_words(error: OSError, reason: str) -> None:
    assert reason_of(error) == reason
