"""One connection of the heartbeat thread: a non-blocking socket around ``ClientConnection``.

It is driven by whoever waits in ``select``: ``wants_write`` says what for, ``ready`` does what is
possible now. No event loop, no task, no clock. After any error it is only good for ``close``.
"""

import errno
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from tailrace.client.options import Address
from tailrace.protocol.connection import Answer, ClientConnection
from tailrace.protocol.messages import Request
from tailrace.protocol.version import SOFTWARE

_READ_BYTES = 64 << 10

T = TypeVar("T")


class _State(Enum):
    CONNECTING = 1
    SECURING = 2  # TLS
    GREETING = 3
    OPEN = 4


class Line:
    """Dials at once. Raises the OSError of a host that does not resolve or refuses right away."""

    def __init__(
        self, address: Address, tls: ssl.SSLContext | None, client_id: str, cluster_id: str | None
    ) -> None:
        self.address = address
        self._tls = tls
        self._connection = ClientConnection(client_id, SOFTWARE, cluster_id, str(address))
        self._outbox = bytearray()
        self._tls_wants_write = False
        # A look-up blocks this thread; an address in numbers needs none.
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        self._places = deque(found)
        self._state = _State.CONNECTING
        self._sock: socket.socket = self._dial()

    @property
    def open(self) -> bool:
        """Whether requests can be posted."""
        return self._state is _State.OPEN

    @property
    def wants_write(self) -> bool:
        """Whether it waits until the socket takes bytes; it always waits for some to read."""
        return bool(self._outbox) or self._tls_wants_write or self._state is _State.CONNECTING

    def fileno(self) -> int:
        """For ``select``. Another one after a ``ready`` while it is not open."""
        return self._sock.fileno()

    def post(self, message: Request) -> int:
        """Send a request; its correlation id. Raises OSError, ConnectError T122."""
        assert self.open
        correlation_id, data = self._connection.request(message)
        self._outbox += data
        self._write()
        return correlation_id

    def ready(self) -> list[Answer]:
        """The socket can be read or written: the answers that are complete now.

        Raises OSError if the connection broke or could not be made, ConnectError T004, T120 or
        T121 if the other side is no broker for us.
        """
        if self._state is _State.CONNECTING and not self._connected():
            return []
        if self._state is _State.SECURING and not self._secured():
            return []
        self._write()
        return self._read()

    def close(self) -> None:
        """Close at once; safe to call again."""
        self._sock.close()

    # ── opening ──────────────────────────────────────────────────────────────────────────────

    def _dial(self) -> socket.socket:
        """Towards the next address of the host; raises the OSError of the last one."""
        while True:
            if not self._places:
                raise socket.gaierror(socket.EAI_NONAME, "no address")
            family, kind, proto, _, place = self._places.popleft()
            sock = socket.socket(family, kind, proto)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            code = sock.connect_ex(place)
            if code in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
                return sock
            sock.close()
            if not self._places:
                raise OSError(code, os.strerror(code))

    def _connected(self) -> bool:
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._sock.close()
            if not self._places:
                raise OSError(code, os.strerror(code))
            self._sock = self._dial()
            return False
        if self._tls is None:
            self._greet()
        else:
            self._state = _State.SECURING
            self._sock = self._tls.wrap_socket(
                self._sock,
                server_hostname=self.address.host,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=True,  # frames carry their length
            )
        return True

    def _secured(self) -> bool:
        if self._attempt(self._handshake) is None:
            return False
        self._greet()
        return True

    def _handshake(self) -> bool:
        assert isinstance(self._sock, ssl.SSLSocket)
        self._sock.do_handshake()
        return True

    def _greet(self) -> None:
        self._state = _State.GREETING
        self._outbox += self._connection.open()

    # ── bytes ────────────────────────────────────────────────────────────────────────────────

    def _write(self) -> None:
        while self._outbox:
            sent = self._attempt(lambda: self._sock.send(self._outbox))
            if sent is None:
                return
            del self._outbox[:sent]

    def _read(self) -> list[Answer]:
        answers: list[Answer] = []
        while (data := self._attempt(lambda: self._sock.recv(_READ_BYTES))) is not None:
            if not data:
                raise ConnectionResetError("closed by the broker")
            answers += self._connection.feed(data)
            if self._state is _State.GREETING and self._connection.hello is not None:
                self._state = _State.OPEN
                answers.clear()  # Hello's own
        return answers

    def _attempt(self, call: Callable[[], T]) -> T | None:
        """The result of one system call, or None if it would block."""
        self._tls_wants_write = False
        try:
            return call()
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLWantWriteError:
            self._tls_wants_write = True
            return None
