"""Reading a log: slices of whole batches, as they are stored, and what may not be served.

- Batches are found by offset or time and never decoded; bytes are handed out as file ranges.
- A quarantined range is never served, nor is a segment of which a batch was not verified since
  the log was opened: it is verified first, in a thread if the caller asks before it reads (R24).
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial as bind

from tailrace.protocol import texts
from tailrace.protocol.errors import CorruptBatch
from tailrace.storage.disk import Disk
from tailrace.storage.glance import Glance, glance
from tailrace.storage.salvage import verify_segment
from tailrace.storage.segment import Quarantine, Range, Segment
from tailrace.storage.segments import Segments


@dataclass(frozen=True, slots=True)
class LogSlice:
    """Whole batches, in order, as ranges of log files. Empty: no ranges, length 0."""

    ranges: list[Range]
    first_offset: int  # of the first batch: may be below the offset asked for
    next_offset: int  # where to read on
    length: int  # bytes


class Reader:
    """The reading side of one log. ``start`` is the log's; ``holes`` are by offset."""

    def __init__(
        self,
        disk: Disk,
        segments: Segments,
        holes: Sequence[Quarantine],
        *,
        name: tuple[str, int],
        broker: str,
        seed: int,
    ) -> None:
        self._disk = disk
        self._segments = segments
        self._name = name
        self._broker = broker
        self._seed = seed
        self.holes: list[Quarantine] = []
        self._changing = threading.Lock()  # the holes: by ``verify`` in a thread, and by the loop
        self.fence(holes)

    def fence(self, holes: Sequence[Quarantine]) -> None:
        """Add quarantined ranges."""
        with self._changing:
            self._add(holes)

    def forget_below(self, offset: int) -> None:
        """Drop the holes that lie below a new log start."""
        with self._changing:
            self.holes = [hole for hole in self.holes if hole.next_offset > offset]

    def forget_between(self, first: int, end: int) -> None:
        """Drop the holes of a range that was rewritten."""
        with self._changing:
            self.holes = [h for h in self.holes if h.next_offset <= first or h.first_offset >= end]

    def damaged(self, first: int, end: int) -> bool:
        """Whether a hole lies in a range."""
        return any(hole.first_offset < end and hole.next_offset > first for hole in self.holes)

    def let_go(self, segment: Segment) -> None:
        """A segment is not the log's any more, though a thread may still be verifying it."""
        with self._changing:
            segment.forget()

    def read(self, start: int, offset: int, bytes_max: int, up_to: int) -> LogSlice:
        """See ``Log.read``; ``up_to`` is not above the log end."""
        if not start <= offset <= up_to:
            topic, partition = self._name
            raise texts.offset_out_of_range(
                topic, partition, requested=offset, start=start, end=up_to
            )
        ranges: list[Range] = []
        first, at, left = offset, offset, bytes_max
        while at < up_to and (left > 0 or not ranges):
            hole = self._hole_from(at)
            segment = None if hole is not None and hole.first_offset <= at else self._find(at)
            if segment is None or segment.doubts(at):
                if ranges:
                    break
                if hole is not None and segment is None:
                    raise self._corrupt(at, hole)
                assert segment is not None
                self.verify(segment)
                continue
            step = segment.locate(at, self.holes)
            if step.next_offset > up_to or (ranges and step.end - step.position > left):
                break
            here = hole is not None and hole.file == segment.path
            stop = hole.position if hole is not None and here else segment.size_bytes
            end, at = segment.extent(step, left, up_to, stop)
            if not ranges:
                first = step.base_offset
            ranges.append(Range(segment.file, step.position, end - step.position))
            left -= end - step.position
        return LogSlice(ranges, first, at, bytes_max - left)

    def offset_for_time(self, start: int, time_ms: int, up_to: int) -> tuple[int, int] | None:
        """See ``Log.offset_for_time``."""
        for segment in self._segments:
            if segment.last_append_time < time_ms or segment.next_offset <= start:
                continue
            if segment.unverified is not None:
                self.verify(segment)
            found = segment.at_time(time_ms, start, self.holes)
            if found is not None:
                below = found.next_offset <= up_to
                return (max(found.base_offset, start), found.append_time) if below else None
        return None

    def doubtful_for_time(self, start: int, time_ms: int) -> int | None:
        """See ``Log.doubtful_for_time``."""
        for segment in self._segments:
            if segment.last_append_time < time_ms or segment.next_offset <= start:
                continue
            offset = max(segment.base_offset, start)
            if segment.doubts(offset):
                return offset
            if segment.at_time(time_ms, start, self.holes) is not None:
                return None
        return None

    def glance(self, offset: int) -> Glance | None:
        """See ``Log.glance``."""
        hole = self._hole_from(offset)
        if hole is not None and hole.first_offset <= offset:
            offset = hole.next_offset
        segment = self._find(offset)
        return glance(segment, self.holes, offset) if offset < segment.next_offset else None

    def pending(self, offset: int) -> Callable[[], None] | None:
        """See ``Log.verify_pending``."""
        segment = self._find(offset)
        return bind(self.verify, segment) if segment.doubts(offset) else None

    def doubt(self, offset: int) -> None:
        """See ``Log.doubt``."""
        segment = self._find(offset)
        if not segment.pinned:  # else it was verified just now, and has another file's name
            segment.unverified = segment.summary()

    def boundary(self, offset: int) -> tuple[Segment, int, int]:
        """Where a truncation to ``offset`` cuts: segment, position, offset that begins there."""
        segment = self._find(offset)
        hole = self._hole_from(offset)
        if hole is not None and hole.first_offset <= offset:
            return segment, hole.position, hole.first_offset
        if segment.unverified is not None:
            self.verify(segment)
            return self.boundary(offset)
        step = segment.locate(offset, self.holes)
        return segment, step.position, step.base_offset

    def verify(self, segment: Segment) -> None:
        """Verify what was taken on trust, and fence in what is damaged.

        Nothing comes of it if the segment was removed or replaced meanwhile.
        """
        try:
            found = verify_segment(self._disk, segment, self._seed)
        except FileNotFoundError:
            if segment.gone:
                return
            raise
        with self._changing:
            if not segment.gone:
                self._add(found)
                segment.unverified = None

    def _add(self, holes: Sequence[Quarantine]) -> None:
        # A new list each time: a read that is under way in another thread keeps the old one.
        self.holes = sorted({*self.holes, *holes}, key=lambda hole: hole.first_offset)

    def _find(self, offset: int) -> Segment:
        return self._segments.find(offset)

    def _hole_from(self, offset: int) -> Quarantine | None:
        """The hole that holds an offset, or the next one behind it."""
        if not self.holes:
            return None
        return next((hole for hole in self.holes if hole.next_offset > offset), None)

    def _corrupt(self, offset: int, hole: Quarantine) -> CorruptBatch:
        topic, partition = self._name
        file = hole.file.rpartition("/")[2]
        error = texts.corrupt_batch(
            topic,
            partition,
            offset=offset,
            broker=self._broker,
            reason=f"{hole.reason}, {file} byte {hole.position}",
            next_offset=hole.next_offset,
        )
        where = {"file": hole.file, "position": hole.position, "first_offset": hole.first_offset}
        error.details.update(where)
        return error
