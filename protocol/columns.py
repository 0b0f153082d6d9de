"""The columns of a record batch: one msgpack document of five arrays (docs/log_format.md).

Columns, because the cost per record of Python is the limit of a Python client: one call into
msgpack's C packs a thousand records in 40 us, by rows it took twice that.

Invariants:
- ``pack_columns`` writes the canonical form: nil for every column that says nothing;
- ``unpack_columns`` takes every valid form and nothing else, within fixed bounds;
- offsets and timestamps are distances to the batch's base, never to the neighbour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import itemgetter, lt, sub
from typing import Any, cast

from tailrace.protocol.packing import ARRAY_LENGTH_MAX, PackingError, pack, unpack

RECORDS_MAX = ARRAY_LENGTH_MAX  # a column is an array
HEADERS_MAX = 100_000  # in all records of a batch: bounds what a document of headers can inflate to
TIMESTAMP_MAX = (1 << 63) - 1

RecordHeaders = Sequence[tuple[str, bytes | None]]

_COLUMNS = 5
_BYTES_OR_NIL: set[type] = {bytes, type(None)}
_as_tuple = cast(Callable[[Any], tuple[str, bytes | None]], tuple)
_ITEMS_MAX = _COLUMNS + _COLUMNS * RECORDS_MAX + 3 * HEADERS_MAX  # a header is a pair in a list


class BatchError(ValueError):
    """These bytes are no valid batch, or these records make none; ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class Columns:
    """The records of one batch. Every list that is there has one element per record."""

    base_timestamp: int  # ms since the epoch
    timestamps: list[int] | None  # ms after ``base_timestamp``, may be negative; None: all 0
    offsets: list[int] | None  # after the base offset, strictly rising; None: 0, 1, 2, ...
    keys: list[bytes | None] | None  # None: no record has one
    values: list[bytes | None]  # a None among them is a tombstone
    headers: Sequence[RecordHeaders | None] | None  # None: no record has any

    def max_timestamp(self) -> int:
        """The largest of the records' timestamps; the base where there is no record."""
        return self.base_timestamp + (max(self.timestamps) if self.timestamps else 0)

    def last_offset_delta(self) -> int:
        """Of the last record; -1 where there is none."""
        return self.offsets[-1] if self.offsets else len(self.values) - 1


def columns_of(
    values: list[bytes | None],
    keys: list[bytes | None] | None,
    timestamps: Sequence[int] | int,
    headers: Sequence[RecordHeaders | None] | None,
) -> Columns:
    """The columns of a producer's records. ``timestamps``: one per record, or one for all, ms."""
    if isinstance(timestamps, int):
        return Columns(timestamps, None, None, keys, values, headers)
    if len(timestamps) != len(values):
        raise BatchError(f"{len(timestamps)} timestamps for {len(values)} records")
    base = timestamps[0]
    deltas = None
    if timestamps[-1] != base or timestamps.count(base) != len(timestamps):
        deltas = list(map(sub, timestamps, repeat(base)))
    return Columns(base, deltas, None, keys, values, headers)


def pack_columns(columns: Columns, *, max_timestamp: int, last_offset_delta: int) -> bytes:
    """The document, canonical. Raises ``BatchError`` for columns that no reader would take."""
    count = len(columns.values)
    if count > RECORDS_MAX or last_offset_delta < max(count - 1, 0):
        raise BatchError(
            f"{count} records (at most {RECORDS_MAX}), the last at {last_offset_delta}"
        )
    _check_columns(columns, count, max_timestamp, last_offset_delta)
    timestamps, offsets, keys = columns.timestamps, columns.offsets, columns.keys
    if timestamps is not None and not any(timestamps):
        timestamps = None
    if last_offset_delta == count - 1:
        offsets = None
    if keys is not None and keys.count(None) == count:
        keys = None
    headers = None
    if columns.headers is not None and any(columns.headers):
        headers = [of_record or None for of_record in columns.headers]
    try:
        return pack([timestamps, offsets, keys, columns.values, headers])
    except UnicodeEncodeError as error:
        raise BatchError(f"headers: a name is no text that UTF-8 can carry: {error}") from error


def unpack_columns(
    document: bytes | memoryview,
    *,
    count: int,
    base_timestamp: int,
    max_timestamp: int,
    last_offset_delta: int,
) -> Columns:
    """The columns in ``document``, held against what the batch's header says of them.

    Raises ``BatchError``. Takes no more than about 8 bytes of memory per byte of the document,
    plus 56 per element.
    """
    try:
        found = unpack(document, items_max=_ITEMS_MAX, map_length_max=0)
    except PackingError as error:
        raise BatchError(f"columns: {error}") from error
    if not isinstance(found, list) or len(cast(Sequence[Any], found)) != _COLUMNS:
        raise BatchError("columns: no array of five")
    columns = Columns(base_timestamp, *cast(Sequence[Any], found))
    _check_columns(columns, count, max_timestamp, last_offset_delta)
    if count and columns.max_timestamp() != max_timestamp:
        raise BatchError(f"timestamps: the largest of them is not {max_timestamp}")
    if columns.headers is not None:
        columns.headers = [
            list(map(_as_tuple, of_record)) if of_record else None for of_record in columns.headers
        ]
    return columns


def _check_columns(
    columns: Columns, count: int, max_timestamp: int, last_offset_delta: int
) -> None:
    """Raise ``BatchError`` unless the columns are what the grammar says, element by element.

    Nothing about their types is taken on trust: they come out of msgpack, or from a caller.
    """
    _check_column("values", columns.values, count, _check_bytes)
    if columns.keys is not None:
        _check_column("keys", columns.keys, count, _check_bytes)
    if columns.headers is not None:
        _check_column("headers", columns.headers, count, _check_headers)
    if columns.timestamps is not None:
        _check_column("timestamps", columns.timestamps, count, _check_integers)
    if columns.offsets is not None:
        _check_column("offsets", columns.offsets, count, _check_integers)
    _check_timestamps(columns, max_timestamp)
    _check_offsets(columns.offsets, count, last_offset_delta)


def _check_column(
    name: str, column: Any, count: int, check: Callable[[str, Sequence[Any]], None]
) -> None:
    if not isinstance(column, list | tuple):
        raise BatchError(f"{name}: no array")
    array = cast(Sequence[Any], column)
    if len(array) != count:
        raise BatchError(f"{name}: {len(array)} of them for {count} records")
    check(name, array)


def _check_bytes(name: str, column: Sequence[Any]) -> None:
    # Counting types is the cheapest look at every element: 8 us for 1,000, against 12 for a set.
    if list(map(type, column)).count(bytes) != len(column):
        _check_types(name, column, _BYTES_OR_NIL)


def _check_integers(name: str, column: Sequence[Any]) -> None:
    if list(map(type, column)).count(int) != len(column):
        _check_types(name, column, {int})


def _check_types(name: str, elements: Sequence[Any], allowed: set[type]) -> None:
    if strange := set(map(type, elements)) - allowed:
        raise BatchError(f"{name}: {', '.join(sorted(t.__name__ for t in strange))} among them")


def _check_headers(name: str, column: Sequence[Any]) -> None:
    # Flattened, so that every look at all of them is one call into C.
    _check_types(name, column, {list, tuple, type(None)})
    present: list[Sequence[Any]] = [of_record for of_record in column if of_record]
    headers = list(chain.from_iterable(present))
    if len(headers) > HEADERS_MAX or max(map(len, present), default=0) > ARRAY_LENGTH_MAX:
        raise BatchError(
            f"{name}: {len(headers)} of them, at most {HEADERS_MAX} go into a batch "
            f"and {ARRAY_LENGTH_MAX} into a record"
        )
    _check_types(name, headers, {list, tuple})
    if not set(map(len, headers)) <= {2}:
        raise BatchError(f"{name}: no pair of name and value")
    _check_types(f"{name}' names", list(map(itemgetter(0), headers)), {str})
    _check_types(f"{name}' values", list(map(itemgetter(1), headers)), _BYTES_OR_NIL)


def _check_timestamps(columns: Columns, max_timestamp: int) -> None:
    low = columns.base_timestamp + (min(columns.timestamps) if columns.timestamps else 0)
    if low < 0 or max_timestamp > TIMESTAMP_MAX:
        raise BatchError(f"timestamps: {low} to {max_timestamp} ms are out of range")


def _check_offsets(offsets: list[int] | None, count: int, last_offset_delta: int) -> None:
    if offsets is None:
        if last_offset_delta != count - 1:
            raise BatchError(f"offsets: nil, but the last of {count} is {last_offset_delta}")
    elif offsets:
        if offsets[0] < 0 or offsets[-1] > last_offset_delta:
            raise BatchError(f"offsets: {offsets[0]} to {offsets[-1]} of {last_offset_delta}")
        if not all(map(lt, offsets, offsets[1:])):
            raise BatchError("offsets: not rising")
