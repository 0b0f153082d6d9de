"""One segment: a log file of fixed length, filled from the front, and its index.

- The file has its full length from the start, sparse; what was never written reads as zero.
- Bytes below ``size_bytes`` are batches, back to back, offsets dense from ``base_offset`` to
  ``next_offset`` but for quarantined ranges. Nothing at or above ``size_bytes`` counts.
- A sealed segment's file and index are opened on demand and may be let go at any time; whoever
  still sends from the file keeps it open by referring to it. One whose file has not its final
  name yet (``pinned``) stays open.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tailrace.storage.disk import Disk, File
from tailrace.storage.index import Index, Summary, decode_index
from tailrace.storage.retention import SegmentFacts

SEGMENT_BYTES_MAX = 1 << 31  # positions are u32, with room for one batch beyond
OFFSETS_MAX = 1 << 31  # so are offset deltas of the index
_STEP_AT = 16
# append time, base offset, batch length, …, last offset delta, …, record count
_STEP = struct.Struct(">qqi11xi30xi")


@dataclass(frozen=True, slots=True)
class Quarantine:
    """A damaged range below the flushed mark: never served, never removed, always reported."""

    file: str
    position: int  # where the damage begins
    end: int  # where sound batches begin again, or the log file's data ends
    first_offset: int
    next_offset: int  # the first offset that can be read again
    reason: str


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of one log file (``protocol.seams.FileRange``); keeps the file open."""

    file: File
    offset: int
    length: int

    def fileno(self) -> int:
        return self.file.fileno()

    def view(self) -> memoryview:
        return self.file.view(self.offset, self.length)

    def cached(self) -> bool:
        return self.file.cached(self.offset, self.length)


@dataclass(slots=True)
class Step:
    """One batch as seen in passing: no check but that of where it stands."""

    position: int
    end: int
    base_offset: int
    next_offset: int
    append_time: int
    records: int  # 0: only its offsets are left


class Segment:
    """See the module. State changes only through ``Log`` and recovery."""

    def __init__(self, disk: Disk, directory: str, base_offset: int) -> None:
        self._disk = disk
        self.path = f"{directory}/{base_offset:020}.log"
        self.index_path = f"{directory}/{base_offset:020}.index"
        self.base_offset = base_offset
        self.next_offset = base_offset
        self.size_bytes = 0
        self.first_append_time = -1
        self.last_append_time = -1
        self.batches = 0
        self.records = 0
        self.length = 0  # of the file
        self.sealed = False
        self.pinned = False  # its file has not its final name yet
        self.gone = False  # not in the log any more: its files are others', or none
        self.indexed = False  # the index file is on the disk and sound
        self.unverified: Summary | None = None  # what was taken on trust since the log was opened
        self.synced_bytes = 0  # below: durable
        self.zeroed_bytes = 0  # below: written, with batches or with zeros ahead of them
        self._file: File | None = None
        self._index: Index | None = None
        self._indexed_to = 0  # position from which on the next batch may get an entry

    @property
    def file(self) -> File:
        if self._file is None:
            self._file = self._disk.open(self.path)
            self.length = self._file.size()
        return self._file

    @property
    def index(self) -> Index:
        if self._index is None:
            self._index = self._load_index()
        return self._index

    def create(self, length: int) -> None:
        """Make the file, sparse. Its name is durable only after the directory's sync."""
        self._file = self._disk.open(self.path, create=True)
        self._file.resize(length)
        self.length = length
        self._index = Index(self.base_offset)

    def begin(self, file: File) -> None:
        """Start over with an empty index, to be filled by a scan."""
        self._file = file
        self.length = file.size()
        self._index = Index(self.base_offset)
        self.indexed = False
        self.unverified = None
        self.next_offset = self.base_offset
        self.first_append_time = self.last_append_time = -1
        self.size_bytes = self.batches = self.records = self._indexed_to = 0

    def extend(self, length: int) -> None:
        """Give the file its full length, if it has not."""
        if self.length < length:
            self.file.resize(length)
            self.length = length

    def write(self, buffers: Sequence[memoryview], size_bytes: int) -> None:
        """Put batches behind the last one; they count once they are added. Raises ``OSError``."""
        self.extend(self.size_bytes + size_bytes)
        self.file.write(buffers, self.size_bytes)

    def set_indexed(self) -> None:
        """Its index file is durable."""
        self.indexed = True

    def adopt(self, summary: Summary) -> None:
        """Take everything from a sound index file instead of a scan."""
        self.next_offset = summary.next_offset
        self.size_bytes = summary.size_bytes
        self.first_append_time = summary.first_append_time
        self.last_append_time = summary.last_append_time
        self.batches = summary.batches
        self.records = summary.records
        self.indexed = True
        self.unverified = summary if summary.size_bytes else None

    def resume(self, file: File, summary: Summary, index: Index) -> None:
        """Take the front from what was saved of it; a walk or a scan goes on behind it."""
        self.begin(file)
        self.adopt(summary)
        self.indexed = False
        self._index = index

    def trust(self) -> None:
        """All there is by now was taken on trust."""
        self.unverified = self.summary() if self.size_bytes else None
        self._indexed_to = self.size_bytes  # nobody who reads on behind it steps over it

    def doubts(self, offset: int) -> bool:
        """Whether what holds an offset is still to be verified."""
        return self.unverified is not None and offset < self.unverified.next_offset

    def take_place(self, path: str, file: File, summary: Summary, index: Index) -> None:
        """Stand for a rewritten file that was just verified, and has a name of its own for now."""
        self.adopt(summary)
        self.path = path
        self._file = file
        self._index = index
        self.length = self.synced_bytes = self.zeroed_bytes = summary.size_bytes
        self.sealed = self.pinned = True
        self.indexed = False
        self.unverified = None

    def settle(self, path: str) -> None:
        """The file has its final name."""
        self.path = path
        self.pinned = False

    def add(
        self,
        size_bytes: int,
        base_offset: int,
        next_offset: int,
        append_time: int,
        records: int,
        interval: int,
    ) -> None:
        """A batch was written at the end."""
        position = self.size_bytes
        if position >= self._indexed_to:
            self.index.add(base_offset, position, append_time)
            self._indexed_to = position + interval
        if self.first_append_time < 0:
            self.first_append_time = append_time
        self.last_append_time = append_time
        self.size_bytes = position + size_bytes
        self.next_offset = next_offset
        self.batches += 1
        self.records += records

    def skip(self, position: int, next_offset: int) -> None:
        """A range up to there is quarantined."""
        self.size_bytes = position
        self.next_offset = next_offset
        self._indexed_to = position  # so that whoever reads on behind it has an entry

    def summary(self) -> Summary:
        return Summary(
            self.base_offset,
            self.next_offset,
            self.size_bytes,
            self.first_append_time,
            self.last_append_time,
            self.batches,
            self.records,
        )

    def facts(self) -> SegmentFacts:
        return SegmentFacts(
            base_offset=self.base_offset,
            next_offset=self.next_offset,
            size_bytes=self.size_bytes,
            first_append_time=None if self.first_append_time < 0 else self.first_append_time,
            last_append_time=None if self.last_append_time < 0 else self.last_append_time,
            sealed=self.sealed,
        )

    def step(self, view: memoryview, position: int) -> Step:
        """The batch at a position that is known to begin one."""
        time, base, length, delta, records = _STEP.unpack_from(view, position + _STEP_AT)
        end = position + 36 + length
        assert end <= self.size_bytes, f"{self.path}: a batch at {position} passes the end"
        return Step(position, end, base, base + delta + 1, time, records)

    def glimpse(self, view: memoryview, position: int) -> Step | None:
        """What stands at a position that may begin a batch; None: no batch, by the look of it."""
        if position + _STEP_AT + _STEP.size > self.size_bytes:
            return None
        time, base, length, delta, records = _STEP.unpack_from(view, position + _STEP_AT)
        end = position + 36 + length
        if length <= 0 or end > self.size_bytes or delta < 0:
            return None
        return Step(position, end, base, base + delta + 1, time, records)

    def locate(self, offset: int, holes: Sequence[Quarantine]) -> Step:
        """The batch that holds ``offset``, which is below ``next_offset`` and in no hole."""
        near = self.index.at_offset(offset)
        position, base = (near.position, near.offset) if near else (0, self.base_offset)
        for hole in holes:
            if base < hole.next_offset <= offset:
                position, base = hole.end, hole.next_offset
        view = self.file.view(0, self.size_bytes)
        while True:
            step = self.step(view, position)
            if offset < step.next_offset:
                assert step.base_offset <= offset, f"{self.path}: {offset} is not at {position}"
                return step
            position = step.end

    def extent(self, first: Step, bytes_max: int, up_to: int, stop: int) -> tuple[int, int]:
        """Where a slice of whole batches from ``first`` on ends: position and next offset.

        At most ``bytes_max`` bytes (but the first batch whole), below ``up_to``, before ``stop``.
        """
        limit = min(first.position + bytes_max, stop)
        if limit == self.size_bytes and up_to >= self.next_offset:
            return limit, self.next_offset
        position, offset = first.end, first.next_offset
        near = self.index.at_position(limit)
        if near is not None and near.offset > up_to:
            near = self.index.at_offset(up_to)
        if near is not None and near.position > position:
            position, offset = near.position, near.offset
        view = self.file.view(0, self.size_bytes)
        while position < limit:
            step = self.step(view, position)
            if step.end > limit or step.next_offset > up_to:
                break
            position, offset = step.end, step.next_offset
        return position, offset

    def at_time(self, time_ms: int, start: int, holes: Sequence[Quarantine]) -> Step | None:
        """The first batch appended at or after a time that ends above offset ``start``, or None.

        Batches without records are passed over: nobody can look for what was in them.
        """
        near = self.index.before_time(time_ms)
        position = near.position if near else 0
        inside = [hole for hole in holes if hole.file == self.path]
        view = self.file.view(0, self.size_bytes)
        while position < self.size_bytes:
            hole = next((h for h in inside if h.position <= position < h.end), None)
            if hole is not None:
                position = hole.end
                continue
            step = self.step(view, position)
            if step.append_time >= time_ms and step.next_offset > start and step.records:
                return step
            position = step.end
        return None

    def release(self) -> None:
        """Let go of file and index (sealed and indexed segments only); they come back on demand.

        The file is not closed but dropped: a slice in flight may still be sent from it.
        """
        assert self.sealed, "the active segment stays open"
        if self.pinned:
            return
        self._file = None
        if self.indexed:
            self._index = None

    def forget(self) -> None:
        """Let go of everything; the segment is not used any more."""
        self.gone = True
        self._file = None
        self._index = None

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def _load_index(self) -> Index:
        """From its file; without one that is sound, empty: then reads walk from the front (R26)."""
        try:
            file = self._disk.open(self.index_path)
        except FileNotFoundError:
            return Index(self.base_offset)
        try:
            found = decode_index(file.view(0, file.size()), self.base_offset)
        finally:
            file.close()
        return Index(self.base_offset) if found is None else found[1]
