"""``Producer``: what users call to send records (C1-C8).

The hot path is ``enqueue`` and ``enqueue_nowait``: per record they make a ``Delivery`` and append
to columns, no coroutine and no primitive of the event loop. ``send_many`` takes columns
whole. Everything behind that is in ``sender.py``.
"""

import inspect
import warnings
from collections.abc import Awaitable, Sequence
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import anyio
import anyio.lowlevel

from tailrace.client.accumulator import RECORD_OVERHEAD_BYTES
from tailrace.client.codecs import BoundCodec, CodecSpec, bind, encode_column, encode_value
from tailrace.client.delivery import (
    Delivery,
    Piece,
    SentRecords,
    UnroutedRecord,
    accepted,
    delivery_of,
    fresh,
    metadata_of,
    settled,
)
from tailrace.client.outgoing import Outgoing, check_timestamp, checked_headers, headers_size
from tailrace.client.producer_options import CALL, ProducerOptions
from tailrace.client.records import Headers, RecordMetadata
from tailrace.client.routes import check_size
from tailrace.client.sender import Sender
from tailrace.client.shapes import ProducerHealth
from tailrace.protocol import texts_client
from tailrace.protocol.batch import RECORDS_MAX
from tailrace.protocol.errors import ProduceError, TailraceError

if TYPE_CHECKING:
    from tailrace.client.client import Client

K = TypeVar("K")
V = TypeVar("V")
TURN_S = 0.001  # a loop of ``enqueue`` lets others run so often,
TURN_CALLS = 1_000  # or every so many calls


class Producer(Generic[K, V]):
    """Use as ``async with client.producer() as producer``; see ``Client.producer``."""

    def __init__(
        self,
        client: "Client",
        options: ProducerOptions,
        key: CodecSpec[K],
        value: CodecSpec[V],
    ) -> None:
        self._key_codec: BoundCodec[Any] = bind(key, part="key", call=CALL)
        self._value_codec: BoundCodec[Any] = bind(value, part="value", call=CALL)
        self._plain_key = self._key_codec.decode is None  # bytes go as they are
        self._plain_value = self._value_codec.decode is None
        self._sender = Sender(client.runtime, client.cluster, options, client.detach)
        self._guard = self._sender.guard
        self._routes = self._sender.routes.by_topic
        self._room = self._sender.room
        self._now = client.clock.now
        self._wall_ms = client.clock.wall_ms
        self._milliseconds = 0  # the wall clock, read at most once a millisecond
        self._turn_at = 0.0
        self._turn_calls = 0
        self._created_at = _caller()
        client.attach_producer(self._sender)

    async def __aenter__(self) -> Self:
        self._sender.check()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.aclose()
        except TailraceError as error:
            if exc is None:
                raise
            exc.add_note(f"also failed: {error}")

    # ── one record ───────────────────────────────────────────────────────────────────────────

    async def send(
        self,
        topic: str,
        value: V | None,
        *,
        key: K | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
    ) -> RecordMetadata:
        """Write one record and wait until it is durable as ``acks`` says.

        Waits for room, never for ``linger`` while no request to the leader is in flight. Raises
        SendTimeout T020 (``maybe_written`` tells), RecordTooLarge T021, EncodeError T061,
        TopicNotFound T010 and what else the broker refuses. Cancelled: it may still be written.
        """
        sender = self._sender
        sender.check()
        record = self._record(topic, value, key, partition, timestamp, headers)
        route = self._routes.get(topic)
        if route is None:
            route = await sender.routes.find(topic)
            sender.check()
        check_size(route, record.size - RECORD_OVERHEAD_BYTES)
        lane = route.lane(partition, record.key)
        if not self._room.free_for(record.size):
            await self._room.wait(record.size)
            sender.check()
            lane = route.lane(partition, record.key)
        batch, index = sender.append(
            lane, record.value, record.key, record.timestamp, record.headers, record.size
        )
        batch.claimed += 1
        sender.kick(lane)
        await settled(batch)
        return metadata_of(batch, index)

    def enqueue(
        self,
        topic: str,
        value: V | None,
        *,
        key: K | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
    ) -> Awaitable[Delivery]:
        """Accept one record: ``delivery = await producer.enqueue(...)``.

        Waits only for room, and lets other tasks run now and then. Raises as ``send``, but
        what becomes of the record is told by the Delivery, and if nobody awaits that, by the next
        ``flush`` or ``aclose``. Cancelled: the record was not accepted.
        """
        if self._turn_calls and self._now() < self._turn_at:
            self._turn_calls -= 1
            delivery = self._accept(topic, value, key, partition, timestamp, headers)
            if delivery is not None:
                return accepted(delivery)
        return self._enqueue(topic, value, key, partition, timestamp, headers)

    def enqueue_nowait(
        self,
        topic: str,
        value: V | None,
        *,
        key: K | None = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers = (),
    ) -> Delivery:
        """Accept one record without waiting: BufferFull T023 if there is no room.

        Only awaiting something lets the sender work: a loop that never does fills the buffer.
        """
        now = self._now()
        if now >= self._turn_at:
            self._new_turn(now)
        delivery = self._accept(topic, value, key, partition, timestamp, headers)
        if delivery is not None:
            return delivery
        record = self._record(topic, value, key, partition, timestamp, headers)
        if not self._room.free_for(record.size):
            raise texts_client.buffer_full(
                topic,
                partition,
                size=record.size,
                buffered=self._room.used,
                limit=self._room.limit,
            )
        return self._sender.routes.defer(topic, record)

    def _accept(
        self,
        topic: str,
        value: Any,
        key: Any,
        partition: int | None,
        timestamp: int | None,
        headers: Headers,
    ) -> Delivery | None:
        """Take a record at once; None if there is no room or its topic is not known yet."""
        guard = self._guard
        if get_ident() != guard.thread or not guard.running():
            self._sender.check()
        route = self._routes.get(topic)
        if route is None:
            return None
        if type(value) is bytes and self._plain_value:
            data: bytes | None = value
            size = len(value)
        else:
            data = encode_value(self._value_codec, value, topic=topic, part="value")
            size = 0 if data is None else len(data)
        lane, raw_key = route.sticky, None
        if key is not None:
            raw_key = encode_value(self._key_codec, key, topic=topic, part="key")
            assert raw_key is not None
            size += len(raw_key)
            lane = route.lane(partition, raw_key)
        elif partition is not None:
            lane = route.lane(partition, None)
        if timestamp is None:
            timestamp = self._milliseconds
        else:
            check_timestamp(topic, partition, timestamp)
        if headers:
            headers = checked_headers(headers)
            size += headers_size(headers)
        if size > route.record_bytes_max:
            check_size(route, size)
        size += RECORD_OVERHEAD_BYTES
        room = self._room
        if (room.queue or room.used + size > room.limit) and not room.free_for(size):
            return None
        batch = lane.open
        if batch is None or batch.size + size > batch.limit or len(batch.values) >= RECORDS_MAX:
            batch = self._sender.batch_for(lane, size)
            self._sender.soon(lane)
        room.used += size
        return delivery_of(batch, batch.add(data, raw_key, timestamp, headers, size))

    async def _enqueue(
        self,
        topic: str,
        value: V | None,
        key: K | None,
        partition: int | None,
        timestamp: int | None,
        headers: Headers,
    ) -> Delivery:
        """The way of a record that has to wait for its turn, for metadata or for room."""
        sender = self._sender
        sender.check()
        await anyio.lowlevel.checkpoint()
        record = self._record(topic, value, key, partition, timestamp, headers)
        route = self._routes.get(topic) or await sender.routes.find(topic)
        check_size(route, record.size - RECORD_OVERHEAD_BYTES)
        lane = route.lane(partition, record.key)
        if not self._room.free_for(record.size):
            await self._room.wait(record.size)
            lane = route.lane(partition, record.key)
        sender.check()
        self._new_turn(self._now())
        batch, index = sender.append(
            lane, record.value, record.key, record.timestamp, record.headers, record.size
        )
        if index == 0:
            sender.soon(lane)
        return Delivery(batch, index)

    def _new_turn(self, now: float) -> None:
        self._turn_at = now + TURN_S
        self._turn_calls = TURN_CALLS
        self._milliseconds = self._wall_ms()

    def _record(
        self,
        topic: str,
        value: V | None,
        key: K | None,
        partition: int | None,
        timestamp: int | None,
        headers: Headers,
    ) -> UnroutedRecord:
        """The record encoded and checked, whatever its topic allows."""
        raw_value = encode_value(self._value_codec, value, topic=topic, part="value")
        raw_key = encode_value(self._key_codec, key, topic=topic, part="key")
        if timestamp is None:
            timestamp = self._wall_ms()
        else:
            check_timestamp(topic, partition, timestamp)
        copied = checked_headers(headers)
        size = len(raw_value or b"") + len(raw_key or b"") + headers_size(copied)
        return UnroutedRecord(
            raw_value, raw_key, partition, timestamp, copied, size + RECORD_OVERHEAD_BYTES
        )

    # ── many records ─────────────────────────────────────────────────────────────────────────

    async def send_many(
        self,
        topic: str,
        values: Sequence[V | None],
        *,
        keys: Sequence[K | None] | None = None,
        timestamps: Sequence[int] | None = None,
        headers: Sequence[Headers] | None = None,
        partition: int | None = None,
    ) -> Sequence[RecordMetadata]:
        """Write columns of records and wait until all are durable; results in input order.

        Raises ValueError for columns of unequal length and SendManyError T024 if some records
        failed (``failures`` by index; the others are written). Cancelled: any may be written.
        """
        sender = self._sender
        sender.check()
        outgoing = self._columns(topic, values, keys, timestamps, headers, partition)
        route = self._routes.get(topic) or await sender.routes.find(topic)
        limit = route.record_bytes_max
        failures: dict[int, TailraceError] = {}
        places: Sequence[int] = range(len(outgoing))
        for place in outgoing.larger_than(limit):
            try:
                check_size(route, outgoing.sizes[place])
            except ProduceError as error:
                failures[place] = error
        if failures:
            places = [place for place in places if place not in failures]
        pieces: list[Piece] = []
        for given, of_lane in outgoing.groups(route, partition, places):
            for part in outgoing.cut(of_lane, sender.options.batch_bytes):
                try:
                    if not self._room.free_for(part.size):
                        await self._room.wait(part.size)
                    sender.check()
                except TailraceError as error:
                    failures.update(dict.fromkeys(part.places, error))
                    continue
                batch, first = sender.extend(
                    given or route.sticky,
                    outgoing.values_of(part.places),
                    outgoing.keys_of(part.places),
                    outgoing.timestamps_of(part.places),
                    outgoing.headers_of(part.places),
                    part.size,
                )
                pieces.append(Piece(batch, first, part.places))
        for piece in pieces:
            await settled(piece.batch)
            if piece.batch.error is not None:
                failures.update(dict.fromkeys(piece.places, piece.batch.error))
        sent = SentRecords(pieces, len(outgoing))
        if failures:
            raise self._many_failed(topic, partition, sent, failures)
        return sent

    def _columns(
        self,
        topic: str,
        values: Sequence[V | None],
        keys: Sequence[K | None] | None,
        timestamps: Sequence[int] | None,
        headers: Sequence[Headers] | None,
        partition: int | None,
    ) -> Outgoing:
        count = len(values)
        given = {"keys": keys, "timestamps": timestamps, "headers": headers}
        for name, column in given.items():
            if column is not None and len(column) != count:
                raise ValueError(f"{len(column)} {name} for {count} values")
        if timestamps is None:
            timestamps = [self._wall_ms()] * count
        else:
            for timestamp in set(timestamps):
                check_timestamp(topic, partition, timestamp)
        return Outgoing(
            encode_column(self._value_codec, values, topic=topic, part="value"),
            None if keys is None else encode_column(self._key_codec, keys, topic=topic, part="key"),
            timestamps,
            None if headers is None else [checked_headers(of_record) for of_record in headers],
        )

    def _many_failed(
        self,
        topic: str,
        partition: int | None,
        sent: SentRecords,
        failures: dict[int, TailraceError],
    ) -> TailraceError:
        first = failures[min(failures)]
        if first.code == "T005":
            return fresh(first)  # an outage that is over ends every call alike
        metadata = [None if place in failures else sent[place] for place in range(len(sent))]
        maybe = any(isinstance(e, ProduceError) and e.maybe_written for e in failures.values())
        return texts_client.send_many_failed(
            topic, partition, failures=failures, metadata=metadata, maybe_written=maybe
        )

    # ── all records ──────────────────────────────────────────────────────────────────────────

    async def flush(self, *, timeout: float | None = None) -> None:
        """Until everything accepted before this call is durable.

        Raises FlushError T025 if deliveries that nobody awaited failed since the last flush, and
        RequestTimeout T034 after ``timeout`` seconds. Cancelled: nothing is dropped.
        """
        self._sender.check()
        began = self._now()
        finished = False
        with anyio.move_on_after(timeout):
            await self._sender.flush()
            finished = True
        if not finished:
            raise texts_client.request_timeout(
                f"flush of {self._sender.undelivered:,} records",
                address="the cluster",
                waited_s=self._now() - began,
            )
        self._sender.raise_failed()

    def health(self) -> ProducerHealth:
        """What waits and since when; never fails, also after the end."""
        return self._sender.health()

    async def aclose(self) -> None:
        """Flush within ``close_timeout``, then end; safe to call again.

        Raises CloseTimeout T026 for what is left then, FlushError T025 for what failed unheard.
        Cancelled: 2 s more, shielded; what is left then is logged at ERROR.
        """
        await self._sender.aclose()

    def __del__(self) -> None:
        sender = getattr(self, "_sender", None)
        if sender is not None and not sender.guard.closed and sender.undelivered:
            file, line = self._created_at
            notice = texts_client.never_closed(file=file, line=line, undelivered=sender.undelivered)
            warnings.warn(str(notice), ResourceWarning, stacklevel=1, source=self)


def _caller() -> tuple[str, int]:
    """File and line of the user's call: the first frame outside of this room."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("?", 0)
