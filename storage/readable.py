"""The reading side of a log: what it holds, and the bytes of it.

Nothing here changes anything but what was verified. Whoever reads a log that other threads may cut
sees to it that they do not (``Log`` says which methods those are).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from tailrace.storage.epochs import EpochHistory, EpochStart
from tailrace.storage.glance import Glance
from tailrace.storage.maintenance import Maintenance, StartMove
from tailrace.storage.producers import ProducerTable
from tailrace.storage.reader import LogSlice, Reader
from tailrace.storage.retention import SegmentFacts
from tailrace.storage.rounds import Unsynced
from tailrace.storage.segment import Quarantine
from tailrace.storage.segments import Segments
from tailrace.storage.tail import Tail


class ReadableLog:
    """See the module. The fields are ``Log``'s, which fills them from what was recovered."""

    _segments: Segments
    _producers: ProducerTable
    _epochs: EpochHistory
    _unsynced: Unsynced
    _reader: Reader
    _maintenance: Maintenance
    _tail: Tail

    # ── facts ────────────────────────────────────────────────────────────────────────────────

    @property
    def start(self) -> int:
        """The first offset that may be read; may stand inside a segment, or in a batch."""
        return self._maintenance.start

    @property
    def start_moves(self) -> Iterable[StartMove]:
        """How the start went up since the log was opened, the newest last; a few are kept."""
        return self._maintenance.moves

    @property
    def end(self) -> int:
        """The next offset to be written."""
        return self._segments.active.next_offset

    @property
    def flushed(self) -> int:
        """All offsets below are durable."""
        return self._unsynced.flushed

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    @property
    def last_append_time(self) -> int | None:
        """In ms; None while nothing was ever appended."""
        return self._tail.append_time if self._tail.append_time >= 0 else None

    @property
    def epochs(self) -> Sequence[EpochStart]:
        """Which leader epoch began at which offset; empty before the first."""
        return self._epochs.entries

    def end_of_epoch(self, epoch: int) -> EpochStart:
        """The largest epoch up to ``epoch`` that this log knows, and where that one ended (R8)."""
        return self._epochs.end_of(epoch, self.end)

    @property
    def last_epoch(self) -> int:
        """Of the last batch; -1 where there is none."""
        return self._epochs.before(self.end) if self.end > self.start else -1

    @property
    def producers(self) -> ProducerTable:
        """To be read only."""
        return self._producers

    @property
    def quarantined(self) -> list[Quarantine]:
        """Damaged ranges, by offset: never served, never removed."""
        return self._reader.holes

    def segments(self) -> list[SegmentFacts]:
        """For retention: oldest first, the active one last."""
        return [segment.facts() for segment in self._segments]

    def segments_since(self, offset: int) -> Iterator[SegmentFacts]:
        """The segment that holds an offset, and all behind it."""
        return (segment.facts() for segment in self._segments.since(offset))

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def read(self, offset: int, bytes_max: int, up_to: int) -> LogSlice:
        """Whole batches from the one that holds ``offset`` on, all below ``up_to``.

        At most ``bytes_max`` bytes, but the first batch whole even if it is larger; stops before
        a quarantined range and before a segment that is still to be verified. Empty at
        ``up_to``. Raises OffsetOutOfRange T041 and CorruptBatch T035.
        """
        return self._reader.read(self.start, offset, bytes_max, min(up_to, self.end))

    def offset_for_time(self, time_ms: int, up_to: int) -> tuple[int, int] | None:
        """The first batch below ``up_to`` appended at or after a time: its offset, append time.

        The offset is never below the log start. None: there is no such batch.
        """
        return self._reader.offset_for_time(self.start, time_ms, up_to)

    def glance(self, offset: int) -> Glance | None:
        """When the first record at or above an offset was appended; None: there is none yet.

        Cheap, and nothing to read by (``storage.glance``). Raises ``OSError``.
        """
        return self._reader.glance(max(offset, self.start))

    def verify_pending(self, offset: int) -> Callable[[], None] | None:
        """Work to run in a thread before ``offset`` is first read, if its segment needs it.

        What is damaged is quarantined by it. ``read`` would do the same work on the spot.
        """
        return self._reader.pending(offset) if self.start <= offset < self.end else None

    def doubt(self, offset: int) -> None:
        """Damage was found in the segment that holds ``offset``: no read before it is verified."""
        if self.start <= offset < self.end:
            self._reader.doubt(offset)

    def doubtful_for_time(self, time_ms: int) -> int | None:
        """An offset for ``verify_pending``, before ``offset_for_time`` looks at its segment.

        None: nothing needs to be verified first. Ask again when it was: the search may go on.
        """
        return self._reader.doubtful_for_time(self.start, time_ms)
