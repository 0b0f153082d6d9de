"""The segments of one log, in order: which one holds an offset, which ones keep a file open.

At most a few sealed segments keep their file (and map) open, those read last (R31). Files are let
go, not closed: whoever still sends from one keeps it open.
"""

from bisect import bisect_right
from collections.abc import Iterator

from tailrace.storage.disk import Disk
from tailrace.storage.segment import Segment

OPEN_SEGMENTS_MAX = 8  # sealed ones with open files


class Segments:
    """By base offset; never empty; the last one is active, all others are sealed."""

    def __init__(self, disk: Disk, segments: list[Segment]) -> None:
        self._disk = disk
        self._segments = segments
        self._opened: dict[int, Segment] = {}  # sealed, least recently used first
        for segment in segments[:-1]:
            self.used(segment)

    @property
    def active(self) -> Segment:
        return self._segments[-1]

    def __len__(self) -> int:
        return len(self._segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._segments)

    def find(self, offset: int) -> Segment:
        """The segment whose range holds an offset, ready to be read."""
        segment = self._segments[-1]
        if offset >= segment.base_offset:
            return segment
        low, high = 0, len(self._segments)
        while high - low > 1:
            middle = (low + high) // 2
            if self._segments[middle].base_offset <= offset:
                low = middle
            else:
                high = middle
        self.used(self._segments[low])
        return self._segments[low]

    def since(self, offset: int) -> list[Segment]:
        """The segment whose range holds an offset, and all behind it."""
        at = bisect_right(self._segments, offset, key=lambda one: one.base_offset)
        return self._segments[max(0, at - 1) :]

    def roll(self, segment: Segment) -> Segment:
        """A new active segment; returns the one before it, sealed."""
        sealed = self.active
        sealed.sealed = True
        self._segments.append(segment)
        self.used(sealed)
        return sealed

    def sealed_below(self, offset: int) -> list[Segment]:
        """The sealed segments that hold nothing at or above an offset."""
        return [s for s in self._segments if s.sealed and s.next_offset <= offset]

    def insert(self, segment: Segment) -> None:
        """A sealed segment comes in where others were dropped."""
        self._segments.append(segment)
        self._segments.sort(key=lambda one: one.base_offset)

    def drop(self, segment: Segment) -> None:
        """Forget a segment; its files stay."""
        self._segments.remove(segment)
        if self._opened.get(segment.base_offset) is segment:
            del self._opened[segment.base_offset]
        segment.forget()

    def remove(self, segment: Segment) -> None:
        """Remove a segment and its files; the caller syncs the directory."""
        self.drop(segment)
        self._disk.remove(segment.index_path)
        self._disk.remove(segment.path)

    def release_all(self) -> None:
        """Let go of every file."""
        for segment in self._segments:
            segment.forget()
        self._opened.clear()

    def used(self, segment: Segment) -> None:
        """A sealed segment is read; the one not read for longest lets go of its file."""
        self._opened.pop(segment.base_offset, None)
        self._opened[segment.base_offset] = segment
        if len(self._opened) > OPEN_SEGMENTS_MAX:
            self._opened.pop(next(iter(self._opened))).release()
