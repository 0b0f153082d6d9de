"""A tail over HTTP: server-sent events of a topic's records, as they come.

A tail first reads by itself what lies behind, at its reader's pace and without leaving anything
out. At the end of the log it joins the shared followers (``feeds.py``); what comes from there is
sent when it is its turn (``http_turns.py``): each ``FLUSH_S`` at the most, or all tails together
``FLUSHES_PER_S`` times per second, so that many of them take longer, not more of the event loop.
"""

from typing import Any

import trio
from starlette.responses import Response

from tailrace.broker.feeds import Feeds, Session, Source
from tailrace.broker.http_endpoint import PARTITION_MAX, Context, Endpoint, Parameter
from tailrace.broker.http_errors import error_body
from tailrace.broker.http_guard import Account
from tailrace.broker.http_records import (
    DECODE,
    POSITION_PATTERN,
    TOPIC,
    place_of,
    read_position,
    send_part,
)
from tailrace.broker.record_reading import Place
from tailrace.broker.tail import Tail, parse_last_id
from tailrace.protocol import texts_http
from tailrace.protocol.errors import OffsetOutOfRange, TailraceError
from tailrace.protocol.positions import FORMS, Position
from tailrace.protocol.record_json import Decode

TAIL = "/api/v1/topics/{topic}/tail"
TAILS_MAX = 100
PARTITIONS_MAX = 256  # of one tail: each of its ids names them all
PIECE_BYTES = 32_768  # sent at once
FILL_BYTES = 65_536  # read ahead of what is sent
FREE_BYTES = 196_608  # of one tail, to be sent; what large records make more is bounded together
RATE_MAX = 1_000_000
KEEP_ALIVE_S = 15.0
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep events back
]


async def tail_records(context: Context) -> Response:
    """Everything that can be wrong with what is asked for is said before the stream begins."""
    feeds = context.gateway.records
    if len(feeds.sessions) >= TAILS_MAX:
        raise texts_http.too_busy("tails", limit=TAILS_MAX)
    values = context.values
    topic = await context.gateway.topic(values["topic"])
    number: int | None = values["partition"]
    numbers = range(len(topic.partitions)) if number is None else (number,)
    if len(numbers) > PARTITIONS_MAX:
        reason = f"a tail has {PARTITIONS_MAX} partitions at most, {topic.name} has {len(numbers)}"
        raise texts_http.bad_request(reason, hint="Name one: ?partition=0")
    places = {one: place_of(topic, one) for one in numbers}
    wanted = await _positions(context, places)
    tail = Tail(wanted, rate=values["rate"], now=trio.current_time())
    return TailResponse(feeds, tail, places, values["decode"], context.answer)


async def _positions(context: Context, places: dict[int, Place]) -> dict[int, int]:
    """Where to begin: behind the last event that was seen, else where ``from`` says."""
    last_id = context.headers.get("last-event-id", "")
    begin: Position = context.values["from"]
    wanted = dict.fromkeys(places, begin)
    if last_id:
        try:
            seen = parse_last_id(last_id, places)
        except ValueError as error:
            raise texts_http.bad_request(f"Last-Event-ID: {error}") from None
        # A partition that is not named there was not there yet.
        wanted = {
            one: Position("offset", seen[one]) if one in seen else Position("start")
            for one in places
        }
    reader = context.gateway.records.reader
    try:
        return {one: await reader.resolve(place, wanted[one]) for one, place in places.items()}
    except OffsetOutOfRange as error:
        raise texts_http.out_of_range(error) from error


class TailResponse(Response):
    """The stream. Ends when the reader goes, or does not read, or with ``event: error``."""

    def __init__(
        self,
        feeds: Feeds,
        tail: Tail,
        places: dict[int, Place],
        decode: Decode,
        account: Account,
    ) -> None:
        super().__init__()
        self.raw_headers = list(HEADERS)
        self._account = account
        self._feeds = feeds
        self._session = Session(tail, feeds.turns)
        self._places = places
        self._decode: Decode = decode

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._session.push = scope.get("extensions", {}).get("push")
        self._feeds.sessions[self._session] = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
                await send(
                    {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                )
                stream = _Stream(send)
                try:
                    await self._tail(stream)
                except TailraceError as error:
                    await stream.write(b"event: error\ndata: " + error_body(error) + b"\n\n")
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                nursery.cancel_scope.cancel()
        finally:
            self._feeds.leave(self._session)

    async def _tail(self, stream: "_Stream") -> None:
        session = self._session
        await stream.write(session.tail.opening())
        while not (await self._read_on(stream)) or not self._join():
            pass
        while True:
            session.begin()
            await self._send_all(stream)
            session.sent()
            if await self._silent():
                await stream.write(b": keep-alive\n\n")

    async def _silent(self) -> bool:
        """Wait for the bell; whether nothing was sent for ``KEEP_ALIVE_S`` instead."""
        session, sent_at = self._session, trio.current_time()
        while True:
            with trio.CancelScope(deadline=sent_at + KEEP_ALIVE_S):
                session.idle = True
                await session.bell.wait()
                session.idle = False
                return False
            session.idle = False
            if session.pushed_at <= sent_at:
                return True
            sent_at = session.pushed_at

    def _join(self) -> bool:
        return self._feeds.join(self._session, self._places, self._decode)

    async def _send_all(self, stream: "_Stream") -> None:
        """What waits; then what ended the tail, if something did."""
        tail = self._session.tail
        if self._session.unsent:
            await stream.flush()
            self._session.unsent = False
        while tail.pending:
            if tail.waiting_bytes > FREE_BYTES:  # what comes while it waits may be left out
                await self._account.wait_for(max(tail.waiting_bytes, self._account.held_bytes))
            await stream.write(tail.take(PIECE_BYTES))
        self._account.hold(0)
        if self._session.ended is not None:
            raise self._session.ended

    def _hold(self, waiting_bytes: int) -> None:
        """So much is to be sent. T123 if there is no room for it."""
        if waiting_bytes > FREE_BYTES:
            self._account.hold(waiting_bytes)

    async def _read_on(self, stream: "_Stream") -> bool:
        """Read what lies behind, some of each partition in turn, and send it.

        Returns whether this reached the end of every partition, as it was a moment ago.
        """
        at_end = True
        for place in self._places.values():
            source = Source(self._feeds.reader, place, self._decode)
            more = True
            while more:
                with self._feeds.holding() as may_hold:
                    async with self._feeds.slots:
                        more = await source.fill(self._session.tail, FILL_BYTES, self._hold)
                        if not may_hold:
                            source.let_go()
                    await self._send_all(stream)
            at_end &= source.at_end
        return at_end


class _Stream:
    """The body of the answer. A write returns when the connection has taken it."""

    def __init__(self, send: Any) -> None:
        self._send = send

    async def write(self, data: bytes) -> None:
        await send_part(self._send, data)

    async def flush(self) -> None:
        """Return when it has taken what was pushed."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": True})


async def _until_gone(receive: Any, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


ENDPOINTS = (
    Endpoint(
        "GET",
        TAIL,
        "tail_records",
        "Records as they come, as server-sent events",
        tail_records,
        {200: str},
        (
            TOPIC,
            Parameter("partition", "One of them; all, if none is named.", int, high=PARTITION_MAX),
            Parameter(
                "from",
                f"Where to begin, in every partition: {FORMS}. `Last-Event-ID` goes before it.",
                default=Position("end"),
                pattern=POSITION_PATTERN,
                parse=read_position,
                example="-10",
            ),
            Parameter(
                "rate",
                "At most so many records per second; what is above is left out and counted.",
                int,
                low=1,
                high=RATE_MAX,
            ),
            DECODE,
        ),
        errors=("T010", "T011", "T033", "T035", "T041"),
        answer_type="text/event-stream",
    ),
)
