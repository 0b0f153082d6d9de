"""Walking the bytes of one log file: what is a batch, what is not, where the next one begins.

A scanner verifies everything of a batch that can be verified by itself (header check, payload
checksum). It reads through ``read``, never through a map, so that a file may still be cut after
it was scanned (R30), and skips holes. It decides nothing: whether a bad batch is a torn tail or
corruption is recovery's to say (R25).
"""

import struct
from typing import Protocol

from tailrace.protocol.batch import (
    BATCH_LENGTH_MAX,
    HEADER_BYTES,
    BadBatch,
    BatchHeader,
    EndOfLog,
    header_ok,
    scan_one,
)

WINDOW_BYTES = 4 * 1024 * 1024
WINDOW_FIRST_BYTES = 64 * 1024  # then twice as much each time: often there is nothing to be seen
BATCH_BYTES_MAX = 36 + BATCH_LENGTH_MAX
_LENGTH_AT = 32
_LENGTH = struct.Struct(">i")
_MAGIC_AT = 4
_MAGIC = b"TR\x01"
REASONS: dict[str, str] = {
    "magic": "no batch begins here",
    "version": "unknown layout version",
    "format": "unknown payload format",
    "malformed": "the header's fields contradict each other",
    "torn": "the batch is cut off",
    "header": "the header check does not match",
    "payload": "the payload checksum does not match",
}


_ZEROS = bytes(WINDOW_BYTES)


def data_bytes(data: bytes) -> int:
    """The length without trailing zeros, of at most ``WINDOW_BYTES``; fast where all are zero."""
    return 0 if _ZEROS.startswith(data) else len(data.rstrip(b"\0"))


class Source(Protocol):
    """What a scan needs of a file."""

    def size(self) -> int: ...

    def read(self, length: int, position: int) -> bytes: ...

    def next_data(self, position: int) -> int: ...


class Counter(Protocol):
    """Told how much was read."""

    read_bytes: int


class Scanner:
    """A window that moves over one file."""

    def __init__(self, source: Source, seed: int, counter: Counter | None = None) -> None:
        self._source = source
        self._seed = seed
        self._counter = counter
        self._size = source.size()
        self._data = memoryview(b"")
        self._start = 0  # position of the window in the file
        self._window_bytes = WINDOW_FIRST_BYTES
        self.read_bytes = 0

    def at(self, position: int) -> BatchHeader | EndOfLog | BadBatch:
        """What stands at a position, verified."""
        self._hold(position, HEADER_BYTES)
        self._hold(position, self._claimed_bytes(position))
        return scan_one(self._data, position - self._start, self._seed)

    def entry(self, position: int, size_bytes: int) -> memoryview:
        """The bytes of a batch that ``at`` found there; valid for as long as they are held."""
        self._hold(position, size_bytes)
        at = position - self._start
        return self._data[at : at + size_bytes]

    def header_ok(self, position: int) -> bool:
        """Whether the header check of a batch that would begin here passes."""
        if position + HEADER_BYTES > self._size:
            return False
        self._hold(position, HEADER_BYTES)
        return header_ok(self._data, position - self._start, self._seed)

    def past(self, position: int) -> int:
        """Where to search on behind a bad batch: behind all of it if its length can be believed."""
        return position + (self._claimed_bytes(position) if self.header_ok(position) else 1)

    def find(self, position: int, end: int, above: int, below: int) -> tuple[int, int] | None:
        """The next sound batch that begins in [position, end) with above < base offset < below.

        Returns its position and base offset. Passed over is what is not sound, and what stands
        in the wrong place: a batch before one that does not continue it.
        """
        while (position := self._source.next_data(position)) < end:
            data = self._read(min(WINDOW_BYTES, end + HEADER_BYTES - position), position)
            if not data:
                return None
            at = data.find(_MAGIC)
            while at >= 0:
                candidate = position + at - _MAGIC_AT
                if at >= _MAGIC_AT and candidate < end:
                    base = self._base_in_place(candidate)
                    if base is not None and above < base < below:
                        return candidate, base
                at = data.find(_MAGIC, at + 1)
            # Leave a few bytes, in which a magic may begin.
            position += max(1, len(data) - _MAGIC_AT - len(_MAGIC) + 1)
        return None

    def data_end(self, position: int) -> int:
        """Behind the last byte at or behind ``position`` that is not zero; else ``position``."""
        found, window_bytes = position, WINDOW_FIRST_BYTES
        while (position := self._source.next_data(position)) < self._size:
            data = self._read(window_bytes, position)
            if not data:
                break
            kept = data_bytes(data)
            if kept:
                found = position + kept
            position += len(data)
            window_bytes = min(2 * window_bytes, WINDOW_BYTES)
        return found

    def _base_in_place(self, position: int) -> int | None:
        found = self.at(position) if self.header_ok(position) else None
        if not isinstance(found, BatchHeader):
            return None
        following = self.at(position + found.size_bytes)
        misplaced = (
            isinstance(following, BatchHeader) and following.base_offset != found.next_offset
        )
        return None if misplaced else found.base_offset

    def _claimed_bytes(self, position: int) -> int:
        """Size of the entry by its own words, if they are possible, else that of a header."""
        at = position - self._start + _LENGTH_AT
        if at + _LENGTH.size > len(self._data):
            return HEADER_BYTES
        claimed: int = 36 + _LENGTH.unpack_from(self._data, at)[0]
        return claimed if HEADER_BYTES <= claimed <= BATCH_BYTES_MAX else HEADER_BYTES

    def _hold(self, position: int, length: int) -> None:
        """Have [position, position + length) in the window, as far as the file goes."""
        end = min(position + length, self._size)
        if self._start <= position and end <= self._start + len(self._data):
            return
        self._data = memoryview(self._read(max(length, self._window_bytes), position))
        self._start = position
        self._window_bytes = min(2 * self._window_bytes, WINDOW_BYTES)

    def _read(self, length: int, position: int) -> bytes:
        data = self._source.read(length, position)
        self.read_bytes += len(data)
        if self._counter is not None:
            self._counter.read_bytes += len(data)
        return data
