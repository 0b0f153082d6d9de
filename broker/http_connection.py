"""One connection of HTTP/1.1: requests to an ASGI application, its answers to bytes.

The protocol is h11's; sockets and deadlines are ours. Everything happens in the connection's own
task: a request is taken apart, answered by the application, which is called and not started, and
most answers leave in one send that does not wait. An application server with a task, queues and a
reader for each request cost the event loop five times that. Whoever sends the same head again is
answered without all that (``http_known.py``).

What the application finds in its scope beside ASGI's: ``keep``, to be told what answers the same
head again, and ``push``, which sends a part of a body that has begun from any task.

- A connection idles for ``KEEP_ALIVE_S``; a head that began is complete within ``HEADER_S``;
- whoever does not take ``WRITE_BYTES`` within ``WRITE_STALL_S`` is cut off, and with it whatever
  is being done for it;
- nothing is read ahead of the application but what one receive brings; "100 Continue" is sent when
  it wants the body, so that whoever is refused need not send it;
- a body that nobody wants is read and thrown away for ``DISCARD_S``, so that the answer arrives;
- no upgrade to another protocol: one protocol, one set of limits.
"""

import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from email.utils import formatdate
from typing import Any

import h11
import trio

from tailrace.broker.http_known import Again, Headers, KnownHeads
from tailrace.broker.limits import WRITE_STALL_S
from tailrace.broker.world import ServerTransport

RECEIVE_BYTES = 16_384  # at once; so much may wait here, beside a head that is not complete
HEAD_BYTES_MAX = 16_384
KEEP_ALIVE_S = 60.0
HEADER_S = 10.0  # from its first byte
DISCARD_S, DISCARD_BYTES_MAX = 2.0, 128 << 20  # who sends all first still reads its answer
LINGER_S, LINGER_RECEIVES = 0.01, 16
WRITE_BYTES = 65_536

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]

ASGI = {"version": "3.0", "spec_version": "2.1"}
CLOSE = (b"connection", b"close")
END = h11.EndOfMessage()
WITHOUT_BODY = (204, 304)


class HttpConnection:
    """Invariant: ``idle_since`` and ``due_at`` are infinite while a request is in hand.

    Who runs it ends it when it is past ``due_at``, a moment late: a deadline of trio's for each
    request costs more than it should."""

    def __init__(self, app: Asgi, transport: ServerTransport, bound: tuple[str, int]) -> None:
        self.idle_since = time.monotonic()
        self.due_at = self.idle_since + KEEP_ALIVE_S
        self._app = app
        self._transport = transport
        self._bound = bound
        host, _, port = transport.peer.rpartition(":")
        self._client = (host.strip("[]"), int(port))
        self._http = h11.Connection(h11.SERVER, HEAD_BYTES_MAX)
        self._life = trio.CancelScope()  # of everything that is done for it
        self._ended = False
        self._sending = trio.Lock()
        self._unsent = memoryview(b"")  # of what was pushed
        self._known = KnownHeads()
        # Of the request in hand:
        self._head = b""  # all that came, where its head came alone and at once
        self._chunked = False  # the body of its answer is
        self._again: Again | None = None  # what answers it, or will the next time
        self._ahead = False  # some of what comes behind it is there
        self._head_only = False  # its answer has no body, whatever the application says
        self._complete = True  # all of its body has come
        self._told = False  # the application knows that
        self._malformed = 0  # what it is answered with, if its body is none
        self._start: Message | None = None  # of the answer, until its first part comes

    @property
    def cut_off(self) -> bool:
        """It was ended here, whatever was under way."""
        return self._ended

    def end(self) -> None:
        """At once, with whatever is being done for it."""
        self._ended = True
        self._life.cancel()

    async def run(self) -> None:
        """Until either side ends it."""
        try:
            with self._life:
                while await self._exchange():
                    pass
                await self._linger()
        finally:
            self._transport.close()

    async def _linger(self) -> None:
        """Take what has come meanwhile: closed with unread bytes, the peer may lose the answer."""
        for _ in range(LINGER_RECEIVES):
            with trio.move_on_after(LINGER_S):
                if await self._more():
                    continue
            break

    # ── one request ──────────────────────────────────────────────────────────────────────────

    async def _exchange(self) -> bool:
        """One request and its answer; whether there may be another one."""
        try:
            request = await self._request()
        except h11.RemoteProtocolError as error:
            await self._answer(error.error_status_hint)
            return False
        if request is None:
            return False
        self.idle_since = self.due_at = math.inf
        if self._again is not None:
            await self._again(self._send_whole)
            self.idle_since = time.monotonic()
            return True
        assert isinstance(request, h11.Request)
        self._begin(request)
        if _has_two_lengths(request):
            # A proxy in front may have taken the other one: what follows could be somebody else's.
            await self._answer(400)
        else:
            await self._app(self._scope(request), self._receive, self._send)
            if self._malformed:
                await self._answer(self._malformed)
        await self._discard()
        return self._recycle(request)

    async def _request(self) -> h11.Request | Again | None:
        """The next head, or what answers it if it is known; None at the end."""
        http = self._http
        self._head, self._again = b"", None
        if began := self._ahead:
            event = http.next_event()
            if isinstance(event, h11.Request):  # it came with the one before
                await trio.lowlevel.checkpoint()  # others have their turn
                return event
        self.due_at = self.idle_since + (HEADER_S if began else KEEP_ALIVE_S)
        while True:
            data = await self._more()
            if not began:
                self._again = self._known.find(data)
                if self._again is not None:
                    return self._again
                self._head = data
                self.due_at = time.monotonic() + HEADER_S
            else:
                self._head = b""
            began = True
            http.receive_data(data)
            event = http.next_event()
            if event is not h11.NEED_DATA:
                return event if isinstance(event, h11.Request) else None

    def _begin(self, request: h11.Request) -> None:
        self._head_only = request.method == b"HEAD"
        self._complete = self._told = False
        self._malformed = 0
        self._start = None
        if not _has_body(request):
            self._complete = isinstance(self._http.next_event(), h11.EndOfMessage)

    def _scope(self, request: h11.Request) -> Message:
        path, _, query = request.target.partition(b"?")
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": request.http_version.decode(),
            "method": request.method.decode(),
            "scheme": "http",
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": self._client,
            "server": self._bound,
            "extensions": {"keep": self._keep, "push": self.push},
        }

    def _keep(self, again: Again) -> None:
        self._again = again

    def _recycle(self, request: h11.Request) -> bool:
        """Be ready for another request; False if there cannot be one."""
        http = self._http
        if not (http.our_state is h11.DONE and http.their_state is h11.DONE):
            return False
        http.start_next_cycle()
        self._ahead = bool(http.trailing_data[0])
        if self._again is not None and self._head and not self._ahead:
            self._known.keep(self._head, request, self._again)
        self.idle_since = time.monotonic()
        return True

    # ── in ───────────────────────────────────────────────────────────────────────────────────

    async def _more(self) -> bytes:
        """What has come; nothing at the end."""
        try:
            return await self._transport.receive(RECEIVE_BYTES)
        except OSError:
            return b""

    async def _receive(self) -> Message:
        """For the application: a part of the body; behind its end, that the peer is gone."""
        part = b"" if self._complete else await self._part()
        if self._malformed or (self._complete and self._told):
            if not self._malformed:
                await self._gone()
            return {"type": "http.disconnect"}
        self._told = self._complete
        return {"type": "http.request", "body": part, "more_body": not self._complete}

    async def _part(self) -> bytes:
        """Some of the body; nothing at its end."""
        http = self._http
        if http.they_are_waiting_for_100_continue:
            await self._write(http.send(h11.InformationalResponse(status_code=100, headers=[])))
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                http.receive_data(await self._more())
        except h11.RemoteProtocolError as error:
            self._malformed = error.error_status_hint
            return b""
        if isinstance(event, h11.Data):
            return bytes(event.data)
        self._complete = True
        return b""

    async def _gone(self) -> None:
        """Until the peer is. What it asks meanwhile waits; beyond that it is not read."""
        waiting_bytes = len(self._http.trailing_data[0])
        while waiting_bytes <= RECEIVE_BYTES:
            data = await self._more()
            if not data:
                return
            self._http.receive_data(data)
            waiting_bytes += len(data)
        await trio.sleep_forever()

    async def _discard(self) -> None:
        """The rest of a body that nobody wanted, up to a bound: it may be without end."""
        discarded_bytes = 0
        with trio.move_on_after(DISCARD_S):
            while not self._complete and not self._malformed:
                discarded_bytes += len(await self._part())
                if discarded_bytes > DISCARD_BYTES_MAX:
                    return

    # ── out ──────────────────────────────────────────────────────────────────────────────────

    async def _send(self, message: Message) -> None:
        """For the application. The head goes with the first part of the body."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        http = self._http
        pieces: list[bytes] = []
        start, self._start = self._start, None
        if start is not None:
            status: int = start["status"]
            headers: Headers = [*start["headers"], (b"date", _date())]
            self._head_only |= status in WITHOUT_BODY
            if not self._complete:
                headers.append(CLOSE)
            pieces.append(http.send(h11.Response(status_code=status, headers=headers)))
            self._chunked = b"\r\ntransfer-encoding: chunked\r\n" in pieces[0].lower()
        body = message.get("body")
        if body and not self._head_only:
            pieces += http.send_with_data_passthrough(h11.Data(data=body)) or ()
        if not message.get("more_body", False):
            pieces.append(http.send(END))
        await self._write(b"".join(pieces))

    async def _send_whole(self, status: int, headers: Headers, body: bytes) -> None:
        """For the application: an answer to a known head, as h11 would write it."""
        lines = [b"%b: %b\r\n" % header for header in headers]
        head = b"HTTP/1.1 %d \r\n%bdate: %b\r\n\r\n" % (status, b"".join(lines), _date())
        await self._write(head + body)

    def push(self, data: bytes) -> bool:
        """Send a part of the body, without waiting; whether all of it went.

        What did not goes before whatever is sent next. Nothing may be being sent, nor be left.
        """
        assert not self._sending.locked(), "one part after the other"
        assert not self._unsent, "one part after the other"
        assert data, "an empty part would end the body"
        self._unsent = self._try(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return not self._unsent

    async def _answer(self, status: int) -> None:
        """An answer without a body, and the last one; nothing if one has begun."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [(b"content-length", b"0"), (b"date", _date()), CLOSE]
            head = self._http.send(h11.Response(status_code=status, headers=headers))
            await self._write(head + self._http.send(END))

    async def _write(self, data: bytes) -> None:
        """Cancelled, with all of the connection, if the peer is gone or does not read."""
        if self._unsent:
            data, self._unsent = bytes(self._unsent) + data, memoryview(b"")
        view = memoryview(data)
        if not self._sending.locked():
            # Mostly there is room for all of it: a lock and a deadline cost more than that.
            view = self._try(data)
            if self._ended:
                await trio.lowlevel.checkpoint_if_cancelled()
            if not view:
                return
        async with self._sending:
            for first in range(0, len(view), WRITE_BYTES):
                with trio.move_on_after(WRITE_STALL_S) as scope:
                    try:
                        await self._transport.send([view[first : first + WRITE_BYTES]])
                        continue
                    except OSError:
                        pass
                if scope.cancelled_caught or not scope.cancel_called:
                    self.end()
                    await trio.lowlevel.checkpoint_if_cancelled()

    def _try(self, data: bytes) -> memoryview:
        """Send what the system takes at once; the rest. Nothing is left if the peer is gone."""
        try:
            return memoryview(data)[self._transport.send_nowait(data) :]
        except OSError:
            self.end()
            return memoryview(b"")


def _has_body(request: h11.Request) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in request.headers
    )


def _has_two_lengths(request: h11.Request) -> bool:
    names = [name for name, _ in request.headers]
    return b"transfer-encoding" in names and b"content-length" in names


_dated_s, _dated = 0, b""


def _date() -> bytes:
    """Now, for the Date header: written once a second."""
    global _dated_s, _dated
    now_s = int(time.time())
    if now_s != _dated_s:
        _dated_s, _dated = now_s, formatdate(now_s, usegmt=True).encode()
    return _dated
