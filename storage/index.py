"""The sparse index of one segment: from an offset, a position or a time to a batch nearby.

One entry for about every ``index_interval_bytes`` of log, in the order of the log. Because
neither offsets, positions nor append times ever fall along a segment, one table serves all three
questions. Big-endian, 16 bytes: u32 base offset of the batch minus that of the segment, u32
position in the file, i64 append time.

The index is a hint that saves a scan, never the truth (R26): in memory for the active segment,
saved now and then while that grows (then it covers the front only) and once when it is sealed,
rebuilt from the log whenever it is missing or unsound. A file whose bytes can be believed was
published after the log bytes that it tells of had become durable.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from tailrace.storage import checkpoint

ENTRY_BYTES = 16
POSITION_MAX = (1 << 32) - 1
_ENTRY = struct.Struct(">IIq")
_FIRST = struct.Struct(">I")
_TIME = struct.Struct(">q")
_SUMMARY = struct.Struct(">qqQqqQQ")
_CHECK = struct.Struct(">Q")
_ENTRIES_AT = _SUMMARY.size + _CHECK.size  # in the body
HEAD_BYTES = checkpoint.HEADER_BYTES + _ENTRIES_AT  # of the file: all but the entries


class IndexEntry(NamedTuple):
    """One batch: its base offset, where it begins in the file, its append time in ms."""

    offset: int
    position: int
    append_time: int


class Index:
    """Entries of one segment, over a buffer that grows (active) or is mapped (sealed)."""

    def __init__(self, base_offset: int, entries: bytearray | memoryview | None = None) -> None:
        self.base_offset = base_offset
        self._entries = bytearray() if entries is None else entries

    def __len__(self) -> int:
        return len(self._entries) // ENTRY_BYTES

    def __iter__(self) -> Iterator[IndexEntry]:
        return map(self.entry, range(len(self)))

    def entry(self, at: int) -> IndexEntry:
        """The entry number ``at``."""
        delta, position, append_time = _ENTRY.unpack_from(self._entries, at * ENTRY_BYTES)
        return IndexEntry(self.base_offset + delta, position, append_time)

    def add(self, offset: int, position: int, append_time: int) -> None:
        """Append an entry, behind all others."""
        if not isinstance(self._entries, bytearray):
            self._entries = bytearray(self._entries)  # a log that was closed cleanly goes on
        self._entries += _ENTRY.pack(offset - self.base_offset, position, append_time)

    def at_offset(self, offset: int) -> IndexEntry | None:
        """The last entry at or before an offset; None: start at the first batch."""
        return self._before(
            bisect_right(range(len(self)), offset - self.base_offset, key=self._delta)
        )

    def at_position(self, position: int) -> IndexEntry | None:
        """The last entry at or before a position."""
        return self._before(bisect_right(range(len(self)), position, key=self._position))

    def before_time(self, time_ms: int) -> IndexEntry | None:
        """The last entry whose append time is before ``time_ms``."""
        return self._before(bisect_left(range(len(self)), time_ms, key=self._time))

    def truncate(self, position: int) -> None:
        """Drop all entries at or behind a position."""
        keep = bisect_left(range(len(self)), position, key=self._position)
        self._entries = bytearray(self._entries[: keep * ENTRY_BYTES])

    def content(self) -> bytes:
        """All entries, as they stand in the file."""
        return bytes(self._entries)

    def _before(self, count: int) -> IndexEntry | None:
        return self.entry(count - 1) if count else None

    def _delta(self, at: int) -> int:
        found: int = _FIRST.unpack_from(self._entries, at * ENTRY_BYTES)[0]
        return found

    def _position(self, at: int) -> int:
        found: int = _FIRST.unpack_from(self._entries, at * ENTRY_BYTES + 4)[0]
        return found

    def _time(self, at: int) -> int:
        found: int = _TIME.unpack_from(self._entries, at * ENTRY_BYTES + 8)[0]
        return found


@dataclass(frozen=True, slots=True)
class Summary:
    """What must be known of a segment without opening its log file."""

    base_offset: int
    next_offset: int  # of a sealed one: the base offset of the segment that follows
    size_bytes: int  # where the last batch ends
    first_append_time: int  # ms; -1 in an empty segment
    last_append_time: int
    batches: int
    records: int


def encode_index(summary: Summary, index: Index) -> bytes:
    """The index file of a segment up to where the summary ends."""
    return checkpoint.encode(checkpoint.Kind.INDEX, encode_front(summary, index.content()))


def encode_front(summary: Summary, entries: bytes) -> bytes:
    """The body of that file."""
    head = _SUMMARY.pack(
        summary.base_offset,
        summary.next_offset,
        summary.size_bytes,
        summary.first_append_time,
        summary.last_append_time,
        summary.batches,
        summary.records,
    )
    return b"".join((head, _CHECK.pack(xxh3_64_intdigest(head)), entries))


def decode_index(data: bytes | memoryview, base_offset: int) -> tuple[Summary, Index] | None:
    """Summary and entries (a view of ``data``), or None if it must be rebuilt."""
    body = checkpoint.decode(checkpoint.Kind.INDEX, data)
    found = None if body is None else decode_front(body)
    return None if found is None or found[0].base_offset != base_offset else found


def decode_front(body: memoryview) -> tuple[Summary, Index] | None:
    """From such a body, of any segment."""
    summary = _summary(body)
    if summary is None or (len(body) - _ENTRIES_AT) % ENTRY_BYTES:
        return None
    return summary, Index(summary.base_offset, body[_ENTRIES_AT:])


def decode_summary(head: bytes, size_bytes: int, base_offset: int) -> Summary | None:
    """The summary alone, of the first ``HEAD_BYTES`` of a file with so many bytes.

    It has a checksum of its own: a start need not read the entries of every segment there is.
    """
    if not checkpoint.header_fits(checkpoint.Kind.INDEX, head, size_bytes):
        return None
    summary = _summary(memoryview(head)[checkpoint.HEADER_BYTES :])
    return None if summary is None or summary.base_offset != base_offset else summary


def _summary(body: memoryview) -> Summary | None:
    if len(body) < _ENTRIES_AT:
        return None
    (check,) = _CHECK.unpack_from(body, _SUMMARY.size)
    if check != xxh3_64_intdigest(body[: _SUMMARY.size]):
        return None
    summary = Summary(*_SUMMARY.unpack_from(body))
    return None if summary.next_offset < summary.base_offset else summary
