"""Two small facts about a log: up to where it is durable, and where it starts.

``flushed`` is overwritten in place by one plain write after each sync round (R25): it is shorter
than a sector, checked by its checksum, survives a killed process, and never overstates. After a
power cut it may lag. Beside the place it tells what the segment up to there adds up to, so that
nothing below needs to be read to go on behind it. ``start`` is replaced atomically and may stand
inside a segment.
"""

import struct
from typing import NamedTuple

from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk
from tailrace.storage.index import Summary

_MARK = struct.Struct(">qqQqqqq")
_START = struct.Struct(">q")


class Mark(NamedTuple):
    """Offsets below ``offset`` are durable; the next begins at ``position`` of a segment.

    The other fields are those of that segment up to there; -1 for a mark made up without them.
    """

    offset: int
    segment_base: int
    position: int
    first_append_time: int = -1  # ms; -1 also where the segment is empty up to there
    last_append_time: int = -1
    batches: int = -1
    records: int = -1

    @classmethod
    def of(cls, summary: Summary) -> "Mark":
        """At the end of a segment as it is now."""
        return cls(
            summary.next_offset,
            summary.base_offset,
            summary.size_bytes,
            summary.first_append_time,
            summary.last_append_time,
            summary.batches,
            summary.records,
        )

    def summary(self) -> Summary | None:
        """Of the segment up to the mark; None where that is not known."""
        if self.segment_base < 0 or self.batches < 0:
            return None
        return Summary(
            self.segment_base,
            self.offset,
            self.position,
            self.first_append_time,
            self.last_append_time,
            self.batches,
            self.records,
        )


def flushed_path(directory: str) -> str:
    return f"{directory}/flushed"


def start_path(directory: str) -> str:
    return f"{directory}/start"


def encode_mark(mark: Mark) -> bytes:
    """The ``flushed`` file; always of the same length."""
    return checkpoint.encode(checkpoint.Kind.FLUSHED, _MARK.pack(*mark))


def read_mark(disk: Disk, directory: str) -> Mark | None:
    """None: missing or damaged."""
    body = checkpoint.read(disk, flushed_path(directory), checkpoint.Kind.FLUSHED)
    return None if body is None else decode_mark(body)


def decode_mark(body: memoryview) -> Mark | None:
    """From the body of the file."""
    return Mark(*_MARK.unpack(body)) if len(body) == _MARK.size else None


def encode_start(offset: int) -> bytes:
    """The ``start`` file."""
    return checkpoint.encode(checkpoint.Kind.START, _START.pack(offset))


def read_start(disk: Disk, directory: str) -> int | None:
    """None: never set, or damaged: then the log starts with its first segment."""
    body = checkpoint.read(disk, start_path(directory), checkpoint.Kind.START)
    if body is None or len(body) != _START.size:
        return None
    found: int = _START.unpack(body)[0]
    return found
