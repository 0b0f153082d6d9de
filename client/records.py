"""Records as users see them: views on the columns of stored batches, made only when asked for.

Invariants:
- a ``Record`` is two references, to its stored batch and its place there; it reads the columns
  when an attribute is asked for (a slotted object per record costs 7 times its decoding);
- a ``Batch`` holds slices of stored batches; its columns are joined when they are first read, and
  making it costs nothing per record;
- offsets rise within a batch, but may have gaps.

A record keeps the batch it came in alive, up to 10,000 records: to keep a few of many for long,
keep their values.
"""

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar, cast, overload

from tailrace.protocol import texts_client
from tailrace.protocol.batch import BatchHeader, Columns

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]
At: TypeAlias = Literal["earliest", "latest"] | datetime
Acks: TypeAlias = Literal["all", 1, 0]
ConfigValue: TypeAlias = str | int | float | bool

Decode: TypeAlias = Callable[[bytes], Any]


@dataclass(frozen=True, slots=True)
class RecordMetadata:
    """Where a record was written. With ``acks=0`` nobody says: offset and append_time are -1."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # ms since the epoch, the producer's
    append_time: int  # ms since the epoch, the leader's


class StoredBatch(Generic[K, V]):
    """The decoded columns of one batch of a log, with what its header says of all of them."""

    __slots__ = (
        *("topic", "partition", "append_time", "leader_epoch", "base_offset", "next_offset"),
        *("offset_deltas", "base_timestamp", "timestamp_deltas", "count", "size_bytes"),
        *("raw_keys", "raw_values", "headers", "keys", "values"),
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        header: BatchHeader,
        columns: Columns,
        *,
        keys: list[K | None] | None = None,
        values: list[V | None] | None = None,
    ) -> None:
        """``keys``, ``values``: lists that decoding fills; None: the raw bytes are served."""
        self.topic = topic
        self.partition = partition
        self.append_time = header.append_time
        self.leader_epoch = header.leader_epoch
        self.base_offset = header.base_offset
        self.next_offset = header.next_offset
        self.size_bytes = header.size_bytes
        self.offset_deltas = columns.offsets
        self.base_timestamp = columns.base_timestamp
        self.timestamp_deltas = columns.timestamps
        self.count = len(columns.values)
        self.raw_keys = columns.keys
        self.raw_values = columns.values
        self.headers = columns.headers
        self.keys = cast("list[K | None] | None", columns.keys) if keys is None else keys
        self.values = cast("list[V | None]", columns.values) if values is None else values

    def offset(self, index: int) -> int:
        """Of the record at ``index``; at ``count``: the next offset behind the batch."""
        if index >= self.count:
            return self.next_offset
        deltas = self.offset_deltas
        return self.base_offset + (index if deltas is None else deltas[index])

    def index_of(self, offset: int) -> int:
        """Of the first record at or above ``offset``; ``count`` if there is none."""
        delta = max(offset - self.base_offset, 0)
        if self.offset_deltas is None:
            return min(delta, self.count)
        return bisect_left(self.offset_deltas, delta)

    def offsets(self, start: int, stop: int) -> Sequence[int]:
        """A range where they are dense."""
        base = self.base_offset
        if self.offset_deltas is None:
            return range(base + start, base + stop)
        return [base + delta for delta in self.offset_deltas[start:stop]]

    def timestamps(self, start: int, stop: int) -> list[int]:
        base = self.base_timestamp
        if self.timestamp_deltas is None:
            return [base] * (stop - start)
        return [base + delta for delta in self.timestamp_deltas[start:stop]]

    def headers_of(self, index: int) -> list[tuple[str, bytes | None]]:
        """A fresh list: what a caller does to it stays there."""
        found = None if self.headers is None else self.headers[index]
        return [] if found is None else list(found)


class Record(Generic[K, V]):
    """One record of a log, read-only. Times in ms since the epoch, UTC."""

    __slots__ = ("_index", "_stored")

    _stored: StoredBatch[K, V]
    _index: int

    def __init__(self, stored: StoredBatch[K, V], index: int) -> None:
        self._stored = stored
        self._index = index

    @property
    def topic(self) -> str:
        """The topic it was read from."""
        return self._stored.topic

    @property
    def partition(self) -> int:
        """The partition it was read from."""
        return self._stored.partition

    @property
    def offset(self) -> int:
        """Its place in the partition, for ever."""
        return self._stored.offset(self._index)

    @property
    def timestamp(self) -> int:
        """The event's time, as the producer gave it."""
        deltas = self._stored.timestamp_deltas
        return self._stored.base_timestamp + (0 if deltas is None else deltas[self._index])

    @property
    def append_time(self) -> int:
        """When the leader appended it; never falls within a partition."""
        return self._stored.append_time

    @property
    def leader_epoch(self) -> int:
        """The term of the leader that appended it."""
        return self._stored.leader_epoch

    @property
    def key(self) -> K | None:
        """Decoded by the consumer's key codec; None: no key."""
        keys = self._stored.keys
        return None if keys is None else keys[self._index]

    @property
    def value(self) -> V | None:
        """Decoded by the consumer's value codec; None: a tombstone."""
        return self._stored.values[self._index]

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """In the producer's order, names may repeat."""
        return self._stored.headers_of(self._index)

    @property
    def raw_key(self) -> bytes | None:
        """The key's bytes."""
        keys = self._stored.raw_keys
        return None if keys is None else keys[self._index]

    @property
    def raw_value(self) -> bytes | None:
        """The value's bytes."""
        return self._stored.raw_values[self._index]

    @property
    def size_bytes(self) -> int:
        """Key, value and headers, uncompressed."""
        headers = sum(len(name.encode()) + len(data or b"") for name, data in self.headers)
        return len(self.raw_key or b"") + len(self.raw_value or b"") + headers

    def as_slice(self) -> "Slice":
        """Where its columns stand; for batches."""
        return Slice(self._stored, self._index, self._index + 1)

    def __repr__(self) -> str:
        return (
            f"Record({self.topic}[{self.partition}]@{self.offset} key={self.key!r} "
            f"value={self.value!r} timestamp={self.timestamp})"
        )


class Slice(NamedTuple):
    """Records ``start`` to ``stop`` (exclusive) of a stored batch."""

    stored: StoredBatch[Any, Any]
    start: int
    stop: int


class Batch(Sequence[Record[K, V]], Generic[K, V]):
    """Records of one partition, in the order of their offsets.

    Reading the columns (``values``, ``keys``, ``offsets`` …) builds no ``Record``; indexing and
    iterating do. A slice (without a step) is a ``Batch`` again.
    """

    __slots__ = ("_columns", "_length", "committer", "next_offset", "partition", "slices", "topic")

    topic: str
    partition: int
    next_offset: int  # the first offset behind the batch, which is what a commit names

    def __init__(
        self,
        topic: str,
        partition: int,
        slices: Sequence[Slice],
        next_offset: int,
        commit: "Callable[[Batch[Any, Any]], Awaitable[None]] | None" = None,
    ) -> None:
        """``commit``: of the consumer it comes from, None: that has no group."""
        self.topic = topic
        self.partition = partition
        self.next_offset = next_offset
        self.slices = slices
        self.committer = commit
        self._length = sum(stop - start for _, start, stop in slices)
        self._columns: dict[str, Sequence[Any]] = {}

    @classmethod
    def of(cls, records: Sequence[Record[K, V]]) -> "Batch[K, V]":
        """A batch of records at hand: at least one, of one partition, offsets rising."""
        slices = [record.as_slice() for record in records]
        last = slices[-1]
        return cls(last.stored.topic, last.stored.partition, slices, last.stored.offset(last.stop))

    @property
    def first_offset(self) -> int:
        """Of its first record; ``next_offset`` if it is empty."""
        if not self.slices:
            return self.next_offset
        stored, start, _ = self.slices[0]
        return stored.offset(start)

    @property
    def offsets(self) -> Sequence[int]:
        """Of each record; a ``range`` where they have no gaps in one stored batch."""
        return self._column("offsets", lambda s: s.stored.offsets(s.start, s.stop))

    @property
    def timestamps(self) -> Sequence[int]:
        """The event time of each record, ms since the epoch."""
        return self._column("timestamps", lambda s: s.stored.timestamps(s.start, s.stop))

    @property
    def keys(self) -> Sequence[K | None]:
        """Each record's key, decoded."""
        return self._column("keys", _keys)

    @property
    def values(self) -> Sequence[V | None]:
        """Each record's value, decoded."""
        return self._column("values", _values)

    @property
    def headers(self) -> Sequence[list[tuple[str, bytes | None]]]:
        """Each record's headers."""
        return self._column(
            "headers", lambda s: [s.stored.headers_of(i) for i in range(s.start, s.stop)]
        )

    async def commit(self) -> None:
        """Commit ``next_offset``; returns when that is durable. See ``Consumer.commit``."""
        if self.committer is None:
            raise texts_client.no_group("commit()")
        await self.committer(self)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Record[K, V]]:
        for stored, start, stop in self.slices:
            for index in range(start, stop):
                yield Record(stored, index)

    @overload
    def __getitem__(self, index: int) -> Record[K, V]: ...
    @overload
    def __getitem__(self, index: slice) -> "Batch[K, V]": ...
    def __getitem__(self, index: int | slice) -> "Record[K, V] | Batch[K, V]":
        if isinstance(index, slice):
            start, stop, step = index.indices(self._length)
            if step != 1:
                raise ValueError("a batch is sliced without a step")
            return self._between(start, max(start, stop))
        place = index + self._length if index < 0 else index
        if not 0 <= place < self._length:
            raise IndexError(f"record {index} of a batch of {self._length}")
        for stored, start, stop in self.slices:
            if place < stop - start:
                return Record(stored, start + place)
            place -= stop - start
        raise AssertionError("slices and length disagree")

    def __repr__(self) -> str:
        return (
            f"Batch({self.topic}[{self.partition}]@{self.first_offset}, {self._length} records, "
            f"next_offset={self.next_offset})"
        )

    def _column(self, name: str, read: Callable[[Slice], Sequence[Any]]) -> Sequence[Any]:
        column = self._columns.get(name)
        if column is None:
            parts = [read(part) for part in self.slices]
            column = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
            self._columns[name] = column
        return column

    def _between(self, start: int, stop: int) -> "Batch[K, V]":
        if stop == self._length and start < stop:
            next_offset = self.next_offset
        else:
            next_offset = self[stop].offset if stop < self._length else self.next_offset
        kept: list[Slice] = []
        for stored, first, last in self.slices:
            low, high = first + max(start, 0), min(last, first + stop)
            if low < high:
                kept.append(Slice(stored, low, high))
            start -= last - first
            stop -= last - first
        return self.like(kept, next_offset)

    def like(self, slices: Sequence[Slice], next_offset: int) -> "Batch[K, V]":
        """Other records of the same partition, from the same consumer."""
        return Batch(self.topic, self.partition, slices, next_offset, self.committer)


def _keys(part: Slice) -> list[Any]:
    keys = part.stored.keys
    return [None] * (part.stop - part.start) if keys is None else _cut(keys, part)


def _values(part: Slice) -> list[Any]:
    return _cut(part.stored.values, part)


def _cut(column: list[Any], part: Slice) -> list[Any]:
    """The column itself where the slice is all of it: nobody else writes to it any more."""
    if part.start == 0 and part.stop == part.stored.count:
        return column
    return column[part.start : part.stop]
