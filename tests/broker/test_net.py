"""The production network: gathered sends, ranges of files, and no descriptors left."""

import os
import resource
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from tailrace.broker.net import TrioNet
from tailrace.broker.threads import ThreadOffload
from tailrace.broker.world import BrokerTransport, ServerTransport
from tailrace.protocol.seams import Buffer

DATA_SEGS_IN_AT = 152  # in the kernel's tcp_info


class Range:
    """Bytes of a file that may be cold."""

    def __init__(self, path: Path, offset: int, length: int, *, cold: bool = False) -> None:
        self._file = path.open("rb")
        self.offset = offset
        self.length = length
        self.cold = cold
        self.closed = False

    def fileno(self) -> int:
        return -1 if self.closed else self._file.fileno()

    def view(self) -> memoryview:
        return memoryview(os.pread(self._file.fileno(), self.length, self.offset))

    def cached(self) -> bool:
        return not self.cold

    def close(self) -> None:
        self._file.close()


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[ServerTransport, trio.SocketStream]]:
    """A transport of ours and the other end."""
    listener = await TrioNet(ThreadOffload()).listen("127.0.0.1", 0, tls=None)
    stream = await trio.open_tcp_stream(listener.host, listener.port)
    transport = await listener.accept()
    await transport.handshake()
    try:
        yield transport, stream
    finally:
        transport.close()
        transport.close()
        listener.close()
        listener.close()
        await stream.aclose()


@asynccontextmanager
async def both_ends(*, tls: bool) -> AsyncIterator[tuple[BrokerTransport, BrokerTransport]]:
    """Who dialled, and who was dialled, both of ours."""
    net, authority = TrioNet(ThreadOffload()), trustme.CA()
    shown, trusting = server_side(authority), ssl.create_default_context()
    authority.configure_trust(trusting)
    listener = await net.listen("127.0.0.1", 0, tls=shown if tls else None)
    accepted: list[ServerTransport] = []

    async def accept() -> None:
        accepted.append(await listener.accept())
        await accepted[0].handshake()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        dialled = await net.connect(listener.host, listener.port, tls=trusting if tls else None)
    try:
        yield dialled, accepted[0]
    finally:
        dialled.close()
        dialled.close()
        accepted[0].close()
        listener.close()


def server_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


async def fill(transport: BrokerTransport, room: memoryview) -> None:
    """As ``Arrivals`` receives a large body."""
    with trio.fail_after(5):
        while room:
            count = await transport.receive_into(room)
            assert count, "the peer ended"
            room = room[count:]


async def read(stream: trio.SocketStream, length: int) -> bytes:
    data = b""
    with trio.fail_after(5):
        while len(data) < length:
            data += await stream.receive_some()
    return data


@pytest.mark.parametrize("cold", [False, True])
def test_memory_and_ranges_of_files_arrive_in_order(tmp_path: Path, cold: bool) -> None:
    content = os.urandom(3_000_000)
    path = tmp_path / "file"
    path.write_bytes(content)

    async def main() -> None:
        part = Range(path, 1_000, 2_900_000, cold=cold)
        async with pair() as (transport, stream), trio.open_nursery() as nursery:
            buffers: list[Buffer] = [
                b"head",
                bytearray(b"more"),
                memoryview(b"and more"),
                part,
                b"tail",
            ]
            nursery.start_soon(transport.send, buffers)
            expected = b"headmoreand more" + content[1_000:2_901_000] + b"tail"
            assert await read(stream, len(expected)) == expected
            assert transport.sent_bytes == len(expected)
            part.closed = True  # retention let the file go: the bytes come from memory
            part.length = 1_000
            nursery.start_soon(transport.send, [part])
            assert await read(stream, 1_000) == content[1_000:2_000]
        part.close()

    trio.run(main)


@pytest.mark.parametrize("tls", [False, True])
def test_brokers_send_each_other_memory_and_ranges_of_files_at_once(
    tmp_path: Path, tls: bool
) -> None:
    content = os.urandom(2_000_000)
    (tmp_path / "file").write_bytes(content)

    async def main() -> None:
        part = Range(tmp_path / "file", 500, 1_900_000, cold=True)
        expected = b"head" + content[500:1_900_500] + content
        sent: list[Buffer] = [b"head", part, content]
        rooms = [bytearray(len(expected)) for _ in range(2)]
        async with both_ends(tls=tls) as ends, trio.open_nursery() as nursery:
            for transport, room in zip(ends, rooms, strict=True):
                nursery.start_soon(transport.send, sent)
                nursery.start_soon(fill, transport, memoryview(room))
        assert [bytes(room) == expected for room in rooms] == [True, True]
        part.close()

    trio.run(main)


def test_a_dialled_tls_connection_that_ends_is_told_from_one_that_is_closed_here() -> None:
    async def main() -> None:
        async with both_ends(tls=True) as (dialled, accepted):
            await accepted.send([b"last"])
            accepted.close()
            assert await dialled.receive(100) == b"last"
            assert await dialled.receive(100) == b""
        async with both_ends(tls=True) as (dialled, _), trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(ConnectionAbortedError):
                    await dialled.receive_into(memoryview(bytearray(10)))
                with pytest.raises(ConnectionAbortedError):
                    await dialled.send([b"late"])

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            dialled.close()

    trio.run(main)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_tls_handshake_that_does_not_come_to_its_end_leaves_nothing_open(cancelled: bool) -> None:
    async def main() -> None:
        net = TrioNet(ThreadOffload())
        shown, trusting = server_side(trustme.CA()), ssl.create_default_context()
        listener = await net.listen("127.0.0.1", 0, tls=shown)
        before = len(os.listdir("/proc/self/fd"))
        async with trio.open_nursery() as nursery:

            async def refuse() -> None:
                accepted = await listener.accept()
                if cancelled:
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
                try:
                    with suppress(OSError):
                        await accepted.handshake()
                finally:
                    accepted.close()

            nursery.start_soon(refuse)
            with suppress(ssl.SSLCertVerificationError):
                await net.connect(listener.host, listener.port, tls=trusting)
                raise AssertionError("nobody has signed it")
        assert len(os.listdir("/proc/self/fd")) == before
        listener.close()

    trio.run(main)


def test_an_answer_and_its_range_of_a_file_arrive_together(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(10_000))

    async def main() -> None:
        part = Range(path, 0, 10_000)
        async with pair() as (transport, stream):
            await transport.send([b"head", part])
            await read(stream, 10_004)
            info = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
            (packets,) = struct.unpack_from("I", info, DATA_SEGS_IN_AT)
            assert packets == 1
        part.close()

    trio.run(main)


def test_a_thousand_small_buffers_are_gathered() -> None:
    async def main() -> None:
        async with pair() as (transport, stream), trio.open_nursery() as nursery:
            buffers = [b"%04d" % number for number in range(2_000)]
            nursery.start_soon(transport.send, buffers)
            assert await read(stream, 8_000) == b"".join(buffers)

    trio.run(main)


def test_send_nowait_takes_what_fits_and_never_waits() -> None:
    async def main() -> None:
        async with pair() as (transport, stream):
            data = bytes(1 << 20)
            taken = 0
            while (sent := transport.send_nowait(data)) > 0:
                taken += sent
            assert taken == transport.sent_bytes > 0
            assert len(await read(stream, taken)) == taken
            assert transport.send_nowait(b"again") == 5

    trio.run(main)


def test_the_end_and_the_close_are_told_apart() -> None:
    async def main() -> None:
        async with pair() as (transport, stream):
            await stream.send_all(b"last")
            await stream.send_eof()
            assert await transport.receive(100) == b"last"
            assert await transport.receive(100) == b""
        async with pair() as (transport, stream), trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(ConnectionAbortedError):
                    await transport.receive(100)
                with pytest.raises(ConnectionAbortedError):
                    await transport.receive(100)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            transport.close()

    trio.run(main)


def test_without_descriptors_connections_are_closed_and_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        listener = await TrioNet(ThreadOffload()).listen("127.0.0.1", 0, tls=None)
        client = socket.create_connection((listener.host, listener.port))
        spare = socket.socket()
        used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        taken: list[int] = []
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (used, hard))
            with suppress(OSError):
                while True:
                    taken.append(os.dup(client.fileno()))
            with trio.move_on_after(0.05):
                await listener.accept()
            assert client.recv(10) == b""  # closed, not left hanging
            os.close(taken.pop())
            spare.connect((listener.host, listener.port))
            with trio.fail_after(5):
                (await listener.accept()).close()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for descriptor in taken:
                os.close(descriptor)
            client.close()
            spare.close()
            listener.close()

    trio.run(main)
    assert "connection refused: Too many open files" in caplog.text


def test_a_closed_listener_accepts_no_more() -> None:
    async def main() -> None:
        listener = await TrioNet(ThreadOffload()).listen("localhost", 0, tls=None)
        async with trio.open_nursery() as nursery:

            async def accept() -> None:
                with pytest.raises(ConnectionAbortedError):
                    await listener.accept()

            nursery.start_soon(accept)
            await trio.testing.wait_all_tasks_blocked()
            listener.close()

    trio.run(main)


def test_a_listener_that_finds_no_descriptor_to_spare_frees_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        monkeypatch.setattr(os, "devnull", "/nowhere/null")  # any reason will do
        with pytest.raises(FileNotFoundError) as raised:
            await TrioNet(ThreadOffload()).listen("127.0.0.1", port, tls=None)
        socket.create_server(("127.0.0.1", port)).close()
        assert raised.traceback, "which kept every local alive until here"

    trio.run(main)
