"""A reader of server-sent events, as a browser's EventSource reads them, that may be cut off."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11
import trio

EVENT_SECONDS_MAX = 30


@dataclass(frozen=True)
class Event:
    kind: str
    data: Any


@dataclass
class Reader:
    """The events of one tail, over as many connections as it takes."""

    last_id: str = ""
    status: int = 0
    body: bytes = b""  # of an answer that is no stream
    comments: int = 0
    received_bytes: int = 0
    _kind: str = ""
    _data: list[str] = field(default_factory=list[str])
    _id: str | None = None
    _rest: bytes = b""

    def begin(self) -> None:
        """A new connection: what was not complete is forgotten."""
        self._kind, self._data, self._id, self._rest = "", [], None, b""

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that these bytes complete."""
        self.received_bytes += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not line:
                yield from self._dispatch()
                continue
            name, _, value = line.decode().partition(":")
            value = value.removeprefix(" ")
            if name == "id":
                self._id = value
            elif name == "event":
                self._kind = value
            elif name == "data":
                self._data.append(value)
            else:
                assert name == "", f"no field of an event: {line!r}"
                self.comments += 1

    def _dispatch(self) -> Iterator[Event]:
        if self._id is not None:
            self.last_id = self._id
        kind, data = self._kind, self._data
        self._kind, self._data, self._id = "", [], None
        if data:
            yield Event(kind, json.loads("\n".join(data)))


class Tail:
    """One connection of a reader."""

    def __init__(self, reader: Reader, stream: trio.SocketStream) -> None:
        self.reader = reader
        self.stream = stream
        self.ended = False
        self._protocol = h11.Connection(h11.CLIENT)
        self._events: list[Event] = []

    async def ask(self, path: str) -> None:
        headers = [("host", "localhost"), ("accept", "text/event-stream")]
        if self.reader.last_id:
            headers.append(("last-event-id", self.reader.last_id))
        out = self._protocol.send(h11.Request(method="GET", target=path, headers=headers)) or b""
        await self.stream.send_all(out + (self._protocol.send(h11.EndOfMessage()) or b""))
        self.reader.begin()

    async def next(self) -> Event | None:
        """The next event; None at the end."""
        with trio.fail_after(EVENT_SECONDS_MAX):
            while not self._events and not self.ended:
                await self.receive(65_536)
        return self._events.pop(0) if self._events else None

    async def receive(self, bytes_max: int) -> None:
        """What has come, up to so many bytes."""
        try:
            self._protocol.receive_data(await self.stream.receive_some(bytes_max))
            self._take()
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            self.ended = True

    def _take(self) -> None:
        reader = self.reader
        while (event := self._protocol.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                reader.status = event.status_code
            elif isinstance(event, h11.Data) and reader.status == 200:
                self._events += reader.feed(bytes(event.data))
            elif isinstance(event, h11.Data):
                reader.body += event.data
            else:
                self.ended = True
                return

    def events(self) -> list[Event]:
        """Those that are there."""
        found, self._events = self._events, []
        return found


@asynccontextmanager
async def tailing(
    host: str, port: int, path: str, reader: Reader | None = None, *, buffer_bytes: int = 0
) -> AsyncIterator[Tail]:
    """A connection whose answer has begun. ``buffer_bytes``: of the socket, 0 for the default."""
    sock = trio.socket.socket()
    if buffer_bytes:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, buffer_bytes)
    await sock.connect((host, port))
    stream = trio.SocketStream(sock)
    tail = Tail(reader or Reader(), stream)
    try:
        await tail.ask(path)
        with trio.fail_after(EVENT_SECONDS_MAX):
            while not tail.reader.status and not tail.ended:
                await tail.receive(256)
        yield tail
    finally:
        await trio.aclose_forcefully(stream)
