"""The network of a real client: TCP and TLS on anyio, behind ``protocol.seams.ClientNet``.

Raw non-blocking sockets and the loop's readiness calls, not anyio's streams: a request leaves at
once, by one ``send`` or, with a large body, by one gathered ``sendmsg``, and both event loops run
the same code (raw sockets moved twice the bytes that streams did).

Does not: retry, time out (callers use cancel scopes), or race several addresses of a host: they
are tried one after the other.
"""

import errno
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from tailrace.client.guard import own_asyncio_loop
from tailrace.protocol.seams import Buffer

_GATHER_MAX = 64  # buffers per sendmsg; the kernel's limit is 1,024
_TLS_BYTES = 256 << 10
# After so many seconds of silence, one each so many, lost so many times.
_PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}

T = TypeVar("T")

_REASONS: dict[int, str] = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.ECONNABORTED: "connection aborted",
    errno.EPIPE: "connection reset",
    errno.ETIMEDOUT: "timed out",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network unreachable",
    errno.EMFILE: "too many open files",
}


def reason_of(error: OSError) -> str:
    """A few words for an error text: "connection refused"."""
    if isinstance(error, socket.gaierror):
        return "does not resolve"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if error.errno is None:
        return str(error) or "connection lost"
    return _REASONS.get(error.errno) or os.strerror(error.errno).lower()


class TcpNet:
    """``ClientNet`` of production."""

    async def connect(
        self, host: str, port: int, tls: ssl.SSLContext | None
    ) -> "TcpTransport | TlsTransport":
        """Open a connection, or raise the OSError of the last address tried.

        Cancelled: nothing stays open.
        """
        found = await _resolve(host, port)
        failure: OSError = socket.gaierror(socket.EAI_NONAME, "no address")
        for family, kind, proto, _, address in found:
            try:
                sock = await _open(family, kind, proto, address)
                break
            except OSError as error:
                failure = error
        else:
            raise failure
        plain = TcpTransport(sock, f"{host}:{port}")
        if tls is None:
            return plain
        secured = TlsTransport(plain, tls, host)
        try:
            await secured.handshake()
        except BaseException:
            secured.close()
            raise
        return secured


async def _resolve(host: str, port: int) -> Sequence[tuple[int, int, int, str, object]]:
    """The addresses of a host; for a numeric one without the thread that a look-up needs."""
    try:
        numeric = socket.AI_NUMERICHOST
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=numeric)
    except socket.gaierror:
        return await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # "a..b", or a label of more than 63 characters
        raise socket.gaierror(socket.EAI_NONAME, "no host has such a name") from error


async def _open(family: int, kind: int, proto: int, address: object) -> socket.socket:
    sock = socket.socket(family, kind, proto)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(sock)
        code = sock.connect_ex(address)  # type: ignore[arg-type]
        if code == errno.EINPROGRESS:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _keep_alive(sock: socket.socket) -> None:
    """Let the system find out in half a minute that a silent peer's machine is gone, or was."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):  # not everywhere
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TcpTransport:
    """A plain connection."""

    def __init__(self, sock: socket.socket, peer: str) -> None:
        self._sock = sock
        self._peer = peer
        self._closed = False
        self._ended: anyio.Event  # for whoever waits in ``each_readable``
        self._unregister: Callable[[], object] | None = None

    @property
    def peer(self) -> str:
        """``host:port`` as it was dialled."""
        return self._peer

    async def receive(self, max_bytes: int) -> bytes:
        """See ``protocol.seams.Transport``."""
        data = self.receive_nowait(max_bytes)
        if data is not None:
            # Others must run between two reads of a busy peer; the data may not be lost for it.
            await anyio.lowlevel.cancel_shielded_checkpoint()
        while data is None:
            await self._wait(anyio.wait_readable)
            data = self.receive_nowait(max_bytes)
        return data

    async def each_readable(self, step: Callable[[], bool]) -> None:
        """Call ``step`` each time that something can be read, until it says False.

        Under asyncio it is called by the loop itself: no task wakes up for it, and the socket is
        registered once, which makes half of what a small answer costs. Raises what ``step``
        raises, and as ``receive`` once the transport is closed. Cancelled: it is not called again.
        """
        if self._closed:  # before anybody came to read: it may be no socket any more
            raise _closed_here()
        loop = own_asyncio_loop()
        if loop is None:  # trio
            await self._wait(anyio.wait_readable)
            while step():
                await self._wait(anyio.wait_readable)  # unless the step has closed it
            return
        failures: list[BaseException] = []

        def ready() -> None:
            try:
                if step():
                    return
            except BaseException as error:  # raised by the task that waits
                failures.append(error)
            self._stop_reading()

        _name_the_library()
        self._ended = anyio.Event()
        self._unregister = partial(loop.remove_reader, self._sock.fileno())
        loop.add_reader(self._sock.fileno(), ready)
        try:
            await self._ended.wait()
        finally:
            self._stop_reading()
        if failures:
            raise failures[0]
        if self._closed:
            raise _closed_here()

    def _stop_reading(self) -> None:
        if self._unregister is not None:
            self._unregister()
            self._ended.set()
            self._unregister = None

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """As ``receive``; None if nothing is there."""
        return self._attempt(lambda: self._sock.recv(max_bytes))

    def receive_into_nowait(self, room: memoryview) -> int | None:
        """How many bytes were written to the beginning of ``room``: 0 when the peer ended, None if
        nothing is there."""
        return self._attempt(lambda: self._sock.recv_into(room))

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """See ``protocol.seams.Transport``."""
        await anyio.lowlevel.checkpoint()
        left: list[bytes | bytearray | memoryview] = [*map(_view, buffers)]
        self.gather_nowait(left)
        while left:
            await self._wait(anyio.wait_writable)
            self.gather_nowait(left)

    def gather_nowait(self, left: list[bytes | bytearray | memoryview]) -> None:
        """Drop from the front of ``left`` what the socket takes at once.

        Raises as ``send``; what went before that is dropped all the same. Never called while a
        ``send`` is under way.
        """
        while left:
            sent = self._attempt(lambda: self._sock.sendmsg(left[:_GATHER_MAX]))
            if sent is None:
                return
            gone = 0
            while gone < len(left) and sent >= len(left[gone]):
                sent -= len(left[gone])
                gone += 1
            del left[:gone]
            if sent:
                left[0] = memoryview(left[0])[sent:]

    def send_nowait(self, data: bytes) -> int:
        """See ``protocol.seams.Transport``."""
        return self._attempt(lambda: self._sock.send(data)) or 0

    def close(self) -> None:
        """See ``protocol.seams.Transport``."""
        if not self._closed:
            self._closed = True
            self._stop_reading()
            anyio.notify_closing(self._sock)
            self._sock.close()

    def _attempt(self, call: Callable[[], T]) -> T | None:
        """The result of one system call, or None if it would block."""
        if self._closed:
            raise _closed_here()
        try:
            return call()
        except BlockingIOError:
            return None

    async def _wait(self, ready: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self._closed:
            raise _closed_here()
        try:
            await ready(self._sock)
        except anyio.ClosedResourceError:
            raise _closed_here() from None


class TlsTransport:
    """TLS over a plain connection, by ``ssl.SSLObject`` and two memory buffers.

    Only ``send`` writes to the socket: what a read makes TLS want to say (the answer to a key
    update) leaves with the next ``send``. ``send_nowait`` takes nothing, so that the order of the
    encrypted bytes is always that of one task.
    """

    def __init__(self, plain: TcpTransport, context: ssl.SSLContext, host: str) -> None:
        self._plain = plain
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    @property
    def peer(self) -> str:
        """``host:port`` as it was dialled."""
        return self._plain.peer

    async def handshake(self) -> None:
        """Agree on keys and check the certificate; ``ssl.SSLError`` (an OSError) if that fails."""
        while True:
            try:
                self._tls.do_handshake()
                await self._flush()
                return
            except ssl.SSLWantReadError:
                await self._flush()
                await self._feed()
            except ssl.SSLError:
                self._plain.send_nowait(self._outgoing.read())  # the alert, so that they know
                raise

    async def receive(self, max_bytes: int) -> bytes:
        """See ``protocol.seams.Transport``."""
        parts: list[bytes] = []
        size = 0
        while size < max_bytes:
            try:
                part = self._tls.read(max_bytes - size)
            except ssl.SSLWantReadError:
                if parts:
                    break
                await self._feed()
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                break  # frames carry their length: a cut stream is noticed without TLS's help
            if not part:
                break
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    async def send(self, buffers: Sequence[Buffer]) -> None:
        """See ``protocol.seams.Transport``."""
        for view in map(_view, buffers):
            for start in range(0, len(view), _TLS_BYTES):
                self._tls.write(view[start : start + _TLS_BYTES])
                if self._outgoing.pending >= _TLS_BYTES:  # a head goes together with its body
                    await self._flush()
        await self._flush()

    def send_nowait(self, data: bytes) -> int:
        """Nothing is ever taken: see the class."""
        return 0

    def close(self) -> None:
        """See ``protocol.seams.Transport``."""
        self._plain.close()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._plain.send([self._outgoing.read()])

    async def _feed(self) -> None:
        data = await self._plain.receive(_TLS_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


def _name_the_library() -> None:
    """Have anyio work in callbacks that are registered from here on.

    It asks sniffio, where that is installed, which finds asyncio by its current task. A callback
    has none; ``anyio.run`` says it for all that runs in it, ``asyncio.run`` does not.
    """
    sniffio: Any = sys.modules.get("sniffio")
    if sniffio is not None:
        sniffio.current_async_library_cvar.set("asyncio")


def _view(buffer: Buffer) -> memoryview:
    if isinstance(buffer, bytes | bytearray | memoryview):
        return memoryview(buffer)
    return buffer.view()


def _closed_here() -> ConnectionAbortedError:
    return ConnectionAbortedError(errno.ECONNABORTED, "closed here")
