"""What a producer hands out for accepted records: made lazily, read from the batch.

Nothing here is per record until somebody looks: a ``Delivery`` is two references, and a
``SentRecords`` knows ranges of batches.
"""

import copy
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import anyio

from tailrace.client.accumulator import PendingBatch
from tailrace.client.records import RecordMetadata
from tailrace.protocol.errors import TailraceError

_new: Callable[[Any], Any] = object.__new__
_WAITS = False  # a generator has a ``yield``, if it never gets there


def metadata_of(batch: PendingBatch, index: int) -> RecordMetadata:
    """Where the record was written, or raise what became of it. The batch must be done."""
    if batch.error is not None:
        raise fresh(batch.error)
    offset = -1 if batch.base_offset < 0 else batch.base_offset + index
    lane = batch.lane
    return RecordMetadata(
        lane.topic, lane.partition, offset, batch.timestamps[index], batch.append_time
    )


def fresh(error: TailraceError) -> TailraceError:
    """A copy to raise: several tasks may raise the same failure, each with its own traceback."""
    raised = copy.copy(error)
    raised.__cause__ = error.__cause__
    return raised


async def settled(batch: PendingBatch) -> None:
    """Wait until the batch has its outcome. Cancelled: the records stay where they are."""
    if not batch.done:
        event = batch.event
        if not isinstance(event, anyio.Event):
            event = batch.event = anyio.Event()
        await event.wait()


class Unrouted:
    """Records that ``enqueue_nowait`` took before the partitions of their topic were known."""

    __slots__ = ("accepted_at", "deliveries", "event", "records", "size", "topic")

    def __init__(self, topic: str, accepted_at: float) -> None:
        self.topic = topic
        self.accepted_at = accepted_at  # of the first
        self.size = 0
        self.event: anyio.Event | None = None  # set once every delivery knows its batch
        self.records: list[UnroutedRecord] = []
        self.deliveries: list[Delivery] = []

    def add(self, record: "UnroutedRecord") -> "Delivery":
        """Append one record."""
        delivery = Delivery(self, len(self.records))
        self.records.append(record)
        self.deliveries.append(delivery)
        self.size += record.size
        return delivery

    def tell(self) -> None:
        """Every delivery knows its batch now."""
        if self.event is not None:
            self.event.set()

    async def routed(self) -> None:
        """Wait until every delivery knows its batch."""
        if self.event is None:
            self.event = anyio.Event()
        await self.event.wait()


class UnroutedRecord(NamedTuple):
    """As it was given, encoded. A tuple, as one is made for each send."""

    value: bytes | None
    key: bytes | None
    partition: int | None
    timestamp: int
    headers: Sequence[tuple[str, bytes | None]]
    size: int


class Delivery:
    """The fate of one enqueued record. Await it, once or often, from any task of the client.

    Awaiting returns its RecordMetadata, or raises SendTimeout T020 or whatever else became of it.
    Cancelled: the record may still be written.
    """

    __slots__ = ("batch", "index")

    def __init__(self, batch: PendingBatch | Unrouted, index: int) -> None:
        self.batch = batch
        self.index = index

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        while not isinstance(self.batch, PendingBatch):
            yield from self.batch.routed().__await__()
        batch = self.batch
        batch.awaited.add(self.index)
        if not batch.done:
            yield from settled(batch).__await__()
        return metadata_of(batch, self.index)

    def done(self) -> bool:
        """Whether awaiting it returns (or raises) at once."""
        return isinstance(self.batch, PendingBatch) and self.batch.done


class Accepted:
    """What ``enqueue`` returns when there was room: awaiting it gives the Delivery at once."""

    __slots__ = ("delivery",)

    delivery: Delivery

    def __await__(self) -> Generator[Any, None, Delivery]:
        if _WAITS:
            yield
        return self.delivery


def delivery_of(batch: PendingBatch, index: int) -> Delivery:
    """``Delivery(batch, index)`` in half the time: one for every record that is enqueued."""
    delivery: Delivery = _new(Delivery)
    delivery.batch = batch
    delivery.index = index
    return delivery


def accepted(delivery: Delivery) -> Accepted:
    """The same for what ``enqueue`` returns."""
    one: Accepted = _new(Accepted)
    one.delivery = delivery
    return one


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive records of a batch, and which places of the input columns they came from."""

    batch: PendingBatch
    first: int
    places: Sequence[int]  # rising


class SentRecords(Sequence[RecordMetadata]):
    """The result of ``send_many``: a RecordMetadata per record, in input order, made on demand."""

    __slots__ = ("_length", "_pieces", "_starts", "_where")

    def __init__(self, pieces: Sequence[Piece], length: int) -> None:
        self._pieces = pieces
        self._length = length
        self._where: dict[int, tuple[PendingBatch, int]] | None = None
        # Without keys the pieces are runs of the input: no table of places is needed.
        runs = all(isinstance(piece.places, range) for piece in pieces)
        self._starts = [piece.places[0] for piece in pieces] if runs else None

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> RecordMetadata: ...
    @overload
    def __getitem__(self, index: slice) -> list[RecordMetadata]: ...
    def __getitem__(self, index: int | slice) -> RecordMetadata | list[RecordMetadata]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        place = index + self._length if index < 0 else index
        if not 0 <= place < self._length:
            raise IndexError(f"record {index} of {self._length}")
        batch, at = self.where(place)
        return metadata_of(batch, at)

    def where(self, place: int) -> tuple[PendingBatch, int]:
        """The batch of a record, and its index there."""
        if self._starts is not None:
            piece = self._pieces[bisect_right(self._starts, place) - 1]
            return piece.batch, piece.first + place - piece.places[0]
        if self._where is None:
            self._where = {
                origin: (piece.batch, at)
                for piece in self._pieces
                for at, origin in enumerate(piece.places, piece.first)
            }
        return self._where[place]

    def __repr__(self) -> str:
        return f"SentRecords({self._length} records)"
