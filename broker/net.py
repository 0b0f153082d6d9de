"""The production network of a broker, on trio and the system's sockets.

- A plain connection is read into one reused buffer and fed by ``sendmsg`` and ``sendfile``.
- A range of a file that is not in the page cache is first read in a worker thread, so that
  neither a page fault nor a blocking ``sendfile`` stops the event loop (R31).
- A TLS listener looks at the first byte before the handshake: whoever speaks something else is
  named instead of being told "wrong version number".
- Accepted and dialled connections are served alike; who dials asks for a certificate of the name.
- Out of file descriptors: one is kept in reserve, to accept and close at once, so that peers
  see a closed connection and the loop does not spin.
"""

import errno
import logging
import os
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress

import trio

from tailrace.broker.world import ForeignProtocol, Listener, Offload, ServerTransport
from tailrace.protocol import foreign
from tailrace.protocol.seams import Buffer, FileRange

log = logging.getLogger("tailrace.broker.net")

BACKLOG = 1_024
SCRATCH_BYTES = 262_144  # what one receive may bring
GATHER_MAX = 512  # buffers in one sendmsg; the system allows 1,024
FILE_CHUNK_BYTES = 1_048_576  # sent, or read ahead in a thread, at once
TLS_CHUNK_BYTES = 262_144  # encrypted at once: bounds the memory it costs
TLS_HANDSHAKE_BYTE = 0x16
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PEER_GAVE_UP = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM)
# More follows at once: an answer and its range from a file go together, and wake the peer once.
_MORE = getattr(socket, "MSG_MORE", 0)


class TrioNet:
    """Listens on the system's network."""

    def __init__(self, offload: Offload) -> None:
        self._offload = offload
        self._scratch = memoryview(bytearray(SCRATCH_BYTES))

    async def listen(self, host: str, port: int, *, tls: ssl.SSLContext | None) -> Listener:
        [(family, kind, _, _, address), *_] = await trio.socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind)
        try:
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
            return TrioListener(bound, tls, self._offload, self._scratch)
        except OSError:
            bound.close()
            raise

    async def connect(
        self, host: str, port: int, *, tls: ssl.SSLContext | None
    ) -> "PlainTransport | TlsTransport":
        connected = await _connected(host, port)
        if tls is None:
            return PlainTransport(connected, f"{host}:{port}", self._offload, self._scratch)
        transport = TlsTransport(
            connected, f"{host}:{port}", self._offload, tls, dialled=host.removesuffix(".")
        )
        try:
            await transport.handshake()
        except BaseException:
            transport.close()
            raise
        return transport


async def _connected(host: str, port: int) -> socket.socket:
    """A connection to the first address of the host that takes it, or why the first does not."""
    try:
        stream = await trio.open_tcp_stream(host, port)
    except UnicodeError as error:  # "a..b", or a label of more than 63 characters
        raise socket.gaierror(socket.EAI_NONAME, "No host has such a name") from error
    except OSError as error:
        reasons: tuple[Exception, ...] = getattr(error.__cause__, "exceptions", ())
        for reason in reasons:  # one for each address
            if isinstance(reason, OSError) and reason.errno is not None:
                raise OSError(reason.errno, os.strerror(reason.errno)) from error
        raise
    connected = socket.socket(fileno=stream.socket.detach())
    connected.setblocking(False)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


class TrioListener:
    def __init__(
        self,
        bound: socket.socket,
        tls: ssl.SSLContext | None,
        offload: Offload,
        scratch: memoryview,
    ) -> None:
        self._socket = bound
        self._tls = tls
        self._offload = offload
        self._scratch = scratch
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.host, self.port = bound.getsockname()[:2]

    async def accept(self) -> ServerTransport:
        while True:
            try:
                await _wait_readable(self._socket)
                accepted, address = self._socket.accept()
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno in _OUT_OF_FILES:
                    self._shed(error)
                    await trio.sleep(0.1)
                elif error.errno not in _PEER_GAVE_UP or self._socket.fileno() < 0:
                    raise
                continue
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            host, number = address[:2]
            peer = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
            if self._tls is None:
                return PlainTransport(accepted, peer, self._offload, self._scratch)
            return TlsTransport(accepted, peer, self._offload, self._tls)

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            os.close(self._reserve)

    def _shed(self, error: OSError) -> None:
        """Accept and close one connection with the file descriptor kept for this."""
        log.warning(
            "connection refused: %s; raise LimitNOFILE",
            error.strerror,
            extra={"event": "connection.refused", "code": "T123", "reason": "descriptors"},
        )
        os.close(self._reserve)
        with suppress(OSError):  # another may have taken the descriptor or the connection first
            self._socket.accept()[0].close()
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


class PlainTransport:
    def __init__(
        self, connected: socket.socket, peer: str, offload: Offload, scratch: memoryview
    ) -> None:
        self._socket = connected
        self._offload = offload
        self._scratch = scratch
        self.peer = peer
        self.sent_bytes = 0

    async def handshake(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive(self, max_bytes: int) -> bytes:
        while True:
            await _wait_readable(self._socket)
            try:
                length = self._socket.recv_into(self._scratch, min(max_bytes, SCRATCH_BYTES))
            except BlockingIOError:
                continue
            return bytes(self._scratch[:length])

    async def receive_into(self, room: memoryview) -> int:
        while True:
            try:
                return self._socket.recv_into(room)
            except BlockingIOError:
                await _wait_readable(self._socket)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        memory: list[memoryview] = []
        for buffer in buffers:
            if isinstance(buffer, bytes | bytearray | memoryview):
                memory.append(memoryview(buffer))
            else:
                await self._send_memory(memory, _MORE)
                memory = []
                await self._send_file(buffer)
        await self._send_memory(memory)

    def send_nowait(self, data: bytes) -> int:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return 0
        self.sent_bytes += sent
        return sent

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    async def _send_memory(self, pending: list[memoryview], flags: int = 0) -> None:
        first = 0
        while first < len(pending):
            try:
                sent = self._socket.sendmsg(pending[first : first + GATHER_MAX], (), flags)
            except BlockingIOError:
                await _wait_writable(self._socket)
                continue
            self.sent_bytes += sent
            while first < len(pending) and sent >= len(pending[first]):
                sent -= len(pending[first])
                first += 1
            if sent:
                pending[first] = pending[first][sent:]

    async def _send_file(self, file_range: FileRange) -> None:
        if file_range.fileno() < 0:
            await self._send_memory([file_range.view()])
            return
        await _make_cached(file_range, self._offload)
        position, end = file_range.offset, file_range.offset + file_range.length
        while position < end:
            count = min(end - position, FILE_CHUNK_BYTES)
            source = file_range.fileno()  # asked each time: retention may have closed the file
            try:
                sent = os.sendfile(self._socket.fileno(), source, position, count)
            except BlockingIOError:
                await _wait_writable(self._socket)
                continue
            if sent == 0:
                raise OSError(errno.EIO, "file ends before the range that was to be sent")
            position += sent
            self.sent_bytes += sent


class TlsTransport:
    """TLS by ``trio.SSLStream``; every send goes through the writer."""

    def __init__(
        self,
        connected: socket.socket,
        peer: str,
        offload: Offload,
        context: ssl.SSLContext,
        *,
        dialled: str | None = None,
    ) -> None:
        """``dialled``: the host whose name the peer must show; None: it has dialled us."""
        self._socket = connected
        self._offload = offload
        self._accepted = dialled is None
        self._stream = trio.SSLStream(
            trio.SocketStream(trio.socket.from_stdlib_socket(connected)),
            context,
            server_hostname=dialled,
            server_side=self._accepted,
            https_compatible=True,  # a peer that just hangs up is no error of ours
        )
        self.peer = peer
        self.sent_bytes = 0

    async def handshake(self) -> None:
        if self._accepted:
            await self._look_at_opening()
        try:
            await self._stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _as_os_error(error) from error

    async def _look_at_opening(self) -> None:
        await _wait_readable(self._socket)
        opening = self._socket.recv(64, socket.MSG_PEEK)
        if not opening:
            raise ConnectionResetError(errno.ECONNRESET, "closed before the TLS handshake")
        if opening[0] != TLS_HANDSHAKE_BYTE:
            raise self._refuse(foreign.identify(opening[:8]) or "something else")

    def _refuse(self, found: str) -> ForeignProtocol:
        """Tell the peer in its own language. One of ours knows a TLS alert when it sees one."""
        ours = found.startswith("tailrace/")
        with suppress(OSError):  # it may be gone already
            self._socket.send(foreign.refusal(foreign.TLS if ours else found))
        return ForeignProtocol(f"plain {found}" if ours else found)

    async def receive(self, max_bytes: int) -> bytes:
        try:
            return bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _as_os_error(error) from error

    async def receive_into(self, room: memoryview) -> int:
        data = await self.receive(len(room))
        room[: len(data)] = data
        return len(data)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        try:
            for buffer in buffers:
                if not isinstance(buffer, bytes | bytearray | memoryview):
                    await _make_cached(buffer, self._offload)
                    buffer = buffer.view()
                view = memoryview(buffer)
                for position in range(0, len(view), TLS_CHUNK_BYTES):
                    chunk = view[position : position + TLS_CHUNK_BYTES]
                    await self._stream.send_all(chunk)
                    self.sent_bytes += len(chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _as_os_error(error) from error

    def send_nowait(self, data: bytes) -> int:
        return 0

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


async def _make_cached(file_range: FileRange, offload: Offload) -> None:
    """Have the range in the page cache, reading it in a worker thread if it is not."""
    if not file_range.cached():
        await offload.run(_read_through, file_range)


def _read_through(file_range: FileRange) -> None:
    position, end = file_range.offset, file_range.offset + file_range.length
    while position < end:
        descriptor = file_range.fileno()
        if descriptor < 0:
            return
        data = os.pread(descriptor, min(end - position, FILE_CHUNK_BYTES), position)
        if not data:
            return
        position += len(data)


async def _wait_readable(waiting: socket.socket) -> None:
    if waiting.fileno() < 0:
        raise ConnectionAbortedError(errno.ECONNABORTED, "closed here")
    try:
        await trio.lowlevel.wait_readable(waiting)
    except trio.ClosedResourceError:
        raise ConnectionAbortedError(errno.ECONNABORTED, "closed here") from None


async def _wait_writable(waiting: socket.socket) -> None:
    if waiting.fileno() < 0:
        raise ConnectionAbortedError(errno.ECONNABORTED, "closed here")
    try:
        await trio.lowlevel.wait_writable(waiting)
    except trio.ClosedResourceError:
        raise ConnectionAbortedError(errno.ECONNABORTED, "closed here") from None


def _as_os_error(error: trio.BrokenResourceError | trio.ClosedResourceError) -> OSError:
    if isinstance(error, trio.ClosedResourceError):
        return ConnectionAbortedError(errno.ECONNABORTED, "closed here")
    cause = error.__cause__
    return (
        cause if isinstance(cause, OSError) else ConnectionResetError(errno.ECONNRESET, str(cause))
    )
