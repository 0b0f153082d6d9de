"""A coordinator on a real socket that a test drives turn by turn, and a seat driven beside it."""

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from random import Random

from tailrace.client.heart_seat import Seat, Surroundings
from tailrace.client.heart_told import Told
from tailrace.client.membership import Membership
from tailrace.client.options import Address, ClientOptions
from tailrace.client.pulse import Pulse
from tailrace.protocol.connection import SERVED, Incoming, ServerConnection
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import (
    BrokerAddress,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    HeartbeatRequest,
    HelloRequest,
    HelloResponse,
    MetadataRequest,
    MetadataResponse,
    Response,
)
from tests.client.group_messages import answer, identity

TURN_S = 0.005
TURNS_MAX = 400
Step = Response | TailraceError | None  # None: held back


class _Guest:
    """One connection."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        sock.setblocking(False)
        self.sock = sock
        if tls is not None:
            self.sock = tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.protocol = ServerConnection("server/1")


class Server:
    """Answers what is asked by ``coordinator`` and ``script``; without a script: partition 0."""

    def __init__(self, broker_id: str = "n1", tls: ssl.SSLContext | None = None) -> None:
        self.broker_id = broker_id
        self.coordinator = broker_id
        self.others: list[Server] = []
        self.script: deque[Step] = deque()
        self.silent = False  # accepts, never answers
        self.beats: list[HeartbeatRequest] = []
        self.held: list[tuple[_Guest, Incoming]] = []
        self.guests: list[_Guest] = []
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.address = Address("localhost" if tls else "127.0.0.1", self.port)

    def turn(self) -> None:
        """Take what has come and answer it."""
        if self._listener.fileno() < 0:
            return
        try:
            while True:
                sock, _ = self._listener.accept()
                self.guests.append(_Guest(sock, self._tls))
        except BlockingIOError:
            pass
        for guest in list(self.guests):
            self._serve(guest)

    def drop(self) -> None:
        """Break every connection."""
        for guest in self.guests:
            guest.sock.close()
        self.guests.clear()
        self.held.clear()

    def close(self) -> None:
        self.drop()
        self._listener.close()

    def _serve(self, guest: _Guest) -> None:
        try:
            data = guest.sock.recv(1 << 16)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        if not data:
            guest.sock.close()
            self.guests.remove(guest)
            return
        if self.silent:
            return
        for request in guest.protocol.feed(data):
            self._answer(guest, request)

    def _answer(self, guest: _Guest, request: Incoming) -> None:
        step = self._respond(request.message)
        if step is None:
            self.held.append((guest, request))
        elif isinstance(step, TailraceError):
            guest.sock.send(guest.protocol.refuse(request, step))
        else:
            guest.sock.send(guest.protocol.answer(request, step))

    def _respond(self, message: object) -> Step:
        if isinstance(message, HelloRequest):
            return HelloResponse(
                1, self.broker_id, "cluster", "server/1", SERVED, 16 << 20, 8 << 20, 16, 600_000
            )
        if isinstance(message, MetadataRequest):
            known = tuple(
                BrokerAddress(one.broker_id, one.address.host, one.port, None)
                for one in (self, *self.others)
            )
            return MetadataResponse("cluster", self.broker_id, known, ())
        if isinstance(message, FindCoordinatorRequest):
            return FindCoordinatorResponse(self.coordinator, 0)
        assert isinstance(message, HeartbeatRequest)
        self.beats.append(message)
        if self.script:
            return self.script.popleft()
        return answer(1, [0]) if message.member_epoch == 0 or not message.wait_ms else None


class Stage:
    """One seat, its servers, and what it tells."""

    def __init__(self, *servers: Server, tls: ssl.SSLContext | None = None) -> None:
        self.servers = servers
        self.told: list[Told] = []
        options = ClientOptions((servers[0].address,), "test", tls, connect_timeout=1.0)
        around = Surroundings(
            options, "cluster", lambda: [server.address for server in self.servers]
        )
        self.pulse = Pulse(Membership(identity()), Random(1))
        self.seat = Seat(around, self.pulse, servers[0].address, self.told.append)
        self.late_s = 0.0  # how far the seat's clock is ahead

    def until(self, condition: Callable[[], bool]) -> None:
        """Let everybody work until something is so."""
        for _ in range(TURNS_MAX):
            if condition():
                return
            self.turn()
        raise AssertionError(f"it never came; told: {self.told}")

    def turn(self) -> None:
        """One turn of the thread, and one of each server."""
        now = time.monotonic() + self.late_s
        self.seat.step(now)
        line = self.seat.line
        read = [] if line is None else [line]
        write = [] if line is None or not line.wants_write else [line]
        if any(select.select(read, write, [], TURN_S)):
            self.seat.ready(now)
        for server in self.servers:
            server.turn()

    def close(self) -> None:
        self.seat.close()
        for server in self.servers:
            server.close()
