"""The log of one partition: appended at the end, read anywhere, cut at either end.

- ``start`` <= ``flushed`` <= ``end``. Appends give offsets from ``end`` on, without gaps (S10);
  everything below ``flushed`` is durable.
- One thread appends, reads, marks and trims (the event loop). ``sync_round`` and the work that
  ``verify_pending`` returns run elsewhere meanwhile.
- An append that fails with an ``OSError`` has changed nothing; its stray bytes are gone, durably,
  before the next one is written. After a failed sync the log refuses everything (R21).
- Bytes are served as they were stored, never decoded, and never unverified: a segment taken on
  trust when the log was opened is verified before its first read (R24).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial as bind
from typing import Literal

from tailrace.protocol import texts
from tailrace.protocol.batch import header_seed
from tailrace.protocol.errors import BrokerError, CorruptBatch, TailraceError
from tailrace.storage import checkpoint, marks
from tailrace.storage.append import Appended, AppendPlan, Context, Group, LogConfig
from tailrace.storage.disk import Disk, File
from tailrace.storage.epochs import EpochHistory, EpochStart, encode_epochs
from tailrace.storage.index import encode_index
from tailrace.storage.marks import Mark
from tailrace.storage.producers import ProducerTable, encode_producers
from tailrace.storage.recovery import (
    Recovered,
    RecoveryReport,
    numbered,
    recover,
    verify_segment,
    zero,
)
from tailrace.storage.retention import SegmentFacts
from tailrace.storage.rounds import Sidecar, SyncPoint, sync_round
from tailrace.storage.segment import Quarantine, Range, Segment

__all__ = ["Appended", "Log", "LogConfig", "LogSlice", "RecoveryReport"]

OPEN_SEGMENTS_MAX = 8  # sealed ones that keep their file open (R31)
SIDECARS_MAX = 8  # waiting for a sync round; a log that is never synced writes them itself
SNAPSHOTS_KEPT = 2
WRITE_AHEAD_BYTES = 4 * 1024 * 1024
_ZEROS = bytes(256 * 1024)


@dataclass(frozen=True, slots=True)
class LogSlice:
    """Whole batches, in order, as ranges of log files. Empty: no ranges, length 0."""

    ranges: list[Range]
    first_offset: int  # of the first batch: may be below the offset asked for
    next_offset: int  # where to read on
    length: int  # bytes


class Log:
    """See the module. Made by ``open``; not used after ``close``."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        *,
        topic_id: bytes,
        partition: int,
        config: LogConfig,
        topic: str,
        broker: str,
    ) -> None:
        self.path = path
        self.recovery = RecoveryReport()
        self.start = 0
        self.flushed = 0
        self.quarantined: list[Quarantine] = []
        self._disk = disk
        self._topic = topic
        self._partition = partition
        self._broker = broker
        self._config = config
        self._seed = header_seed(topic_id, partition)
        self._segments: list[Segment] = []  # by base offset; the last one is active
        self._producers = ProducerTable(topic, partition)
        self._epochs = EpochHistory()
        self._append_time = -1
        self._dirty: list[Segment] = []  # written since they were last synced, in order
        self._names_changed = 0
        self._names_synced = 0
        self._sidecars: list[Sidecar] = []
        self._generation = 0
        self._mark_file: File | None = None
        self._opened: dict[int, Segment] = {}  # sealed, with open files; least recently read first
        self._stray: Callable[[], None] | None = None  # removes what a failed append left
        self._failed: BrokerError | None = None

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: str,
        *,
        topic_id: bytes,
        partition: int,
        config: LogConfig,
        now_ms: int,
        clean: bool,
        verify: Literal["tail", "full"] = "tail",
        suspect: bool = False,
        topic: str | None = None,
        broker: str = "local",
    ) -> "Log":
        """Recover the log in a directory, or make one. Everything found is durable afterwards.

        ``clean``: whoever used it last closed it with ``clean=True``, so that only what is
        missing is scanned. ``suspect``: a sync failed. ``topic`` and ``broker`` are for messages.
        Raises ``OSError``; whatever is wrong with the files is told by ``recovery``.
        """
        log = cls(
            disk,
            path,
            topic_id=topic_id,
            partition=partition,
            config=config,
            topic=topic if topic is not None else topic_id.hex(),
            broker=broker,
        )
        log._adopt(log._recover(clean=clean, suspect=suspect, verify=verify))
        log._producers.expire(now_ms)
        return log

    # ── facts ────────────────────────────────────────────────────────────────────────────────

    @property
    def end(self) -> int:
        """The next offset to be written."""
        return self._segments[-1].next_offset

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self._segments)

    @property
    def segment_count(self) -> int:
        return len(self._segments)

    @property
    def last_append_time(self) -> int | None:
        """In ms; None while nothing was ever appended."""
        return self._append_time if self._append_time >= 0 else None

    @property
    def epochs(self) -> Sequence[EpochStart]:
        return self._epochs.entries

    @property
    def producers(self) -> ProducerTable:
        return self._producers

    def segments(self) -> list[SegmentFacts]:
        """For retention: oldest first, the active one last."""
        return [segment.facts() for segment in self._segments]

    # ── appending ────────────────────────────────────────────────────────────────────────────

    def begin_epoch(self, epoch: int) -> None:
        """A leader epoch begins at the log end; durable on return (R8)."""
        if self._epochs.begin(epoch, self.end):
            checkpoint.write(self._disk, f"{self.path}/epochs", encode_epochs(self._epochs))

    def append(
        self, batches: Sequence[memoryview], *, leader_epoch: int, now_ms: int
    ) -> list[Appended | TailraceError]:
        """Write producers' batches (writable, patched in place) at the end, in one gathered write.

        One result per batch: where it stands, also for a duplicate, or why it was refused
        (T021, T022, T028, T038, T039). Readable at once, durable after the next sync round.
        Raises ``OSError`` (a full disk, say) with log and producers unchanged, and BrokerError
        T093 if the log cannot be trusted any more.
        """
        self._ready()
        if leader_epoch > self._epochs.latest:
            self.begin_epoch(leader_epoch)
        assert leader_epoch == self._epochs.latest, "leader epochs never fall (S9)"
        context = Context(
            topic=self._topic,
            partition=self._partition,
            seed=self._seed,
            config=self._config,
            leader_epoch=leader_epoch,
            now_ms=now_ms,
            append_time=max(now_ms, self._append_time),
        )
        producers = self._producers.plan()
        plan = AppendPlan(context, self._segments[-1], producers)
        plan.take(batches)
        if plan.groups:
            self._write(plan.groups, context.append_time)
            producers.commit()
            if plan.groups[-1].rolls:
                self._snapshot_producers()
        return plan.results

    def roll_if_old(self, now_ms: int) -> bool:
        """Seal an active segment that is past its age, so that retention may take it one day."""
        self._ready()
        active, age_max = self._segments[-1], self._config.segment_age_ms
        if age_max is None or active.first_append_time < 0:
            return False
        if now_ms - active.first_append_time < age_max:
            return False
        self._write([Group(active.next_offset, rolls=True)], self._append_time)
        self._snapshot_producers()
        return True

    def write_ahead(self, bytes_max: int) -> int:
        """Write zeros ahead of the end while the disk is idle: that halves a small sync (D8).

        Returns how many bytes, at most ``bytes_max``. A later sync round makes them count.
        Raises ``OSError``, without consequence.
        """
        self._ready()
        active = self._segments[-1]
        at = max(active.zeroed_bytes, active.size_bytes)
        end = min(active.length, active.size_bytes + WRITE_AHEAD_BYTES, at + bytes_max)
        zeros = memoryview(_ZEROS)
        while at < end:
            length = min(end - at, len(zeros))
            active.file.write([zeros[:length]], at)
            at += length
            active.zeros_unsynced = True
        written = at - max(active.zeroed_bytes, active.size_bytes)
        active.zeroed_bytes = at
        return written

    def _write(self, groups: list[Group], append_time: int) -> None:
        """All of it or nothing: files first, then what is known of them."""
        targets = [self._segments[-1]]
        try:
            for group in groups:
                if group.rolls:
                    segment = Segment(self._disk, self.path, group.base_offset)
                    targets.append(segment)
                    segment.create(max(self._config.segment_bytes, group.size_bytes))
            for group, segment in self._pairs(groups, targets):
                segment.extend(segment.size_bytes + group.size_bytes)
                segment.file.write(group.buffers, segment.size_bytes)
        except OSError:
            self._stray = bind(self._remove_stray, targets, groups)
            self._ready(quiet=True)
            raise
        for group, segment in self._pairs(groups, targets):
            if group.rolls:
                self._seal(self._segments[-1])
                self._segments.append(segment)
                self._names_changed += 1
            for placed in group.placed:
                header = placed.header
                segment.add(
                    header.size_bytes,
                    placed.base_offset,
                    placed.next_offset,
                    append_time,
                    header.record_count,
                    self._config.index_interval_bytes,
                )
            if not self._dirty or self._dirty[-1] is not segment:
                self._dirty.append(segment)
        self._append_time = append_time

    @staticmethod
    def _pairs(groups: list[Group], targets: list[Segment]) -> list[tuple[Group, Segment]]:
        """Each group with its segment: the active one only if the first group does not roll."""
        return list(zip(groups, targets[1:] if groups[0].rolls else targets, strict=True))

    def _ready(self, *, quiet: bool = False) -> None:
        """Refuse after a failed sync; first remove what a failed append left, or ``OSError``."""
        if self._failed is not None:
            raise self._failed
        if self._stray is not None:
            try:
                self._stray()
            except OSError:
                if not quiet:
                    raise
            else:
                self._stray = None

    def _remove_stray(self, targets: list[Segment], groups: list[Group]) -> None:
        """Zero and sync, so that no crash can bring back what was answered with an error."""
        active = targets[0]
        for segment in targets[1:]:
            self._disk.remove(segment.path)
        zero(active.file, active.size_bytes, active.size_bytes + groups[0].size_bytes)
        try:
            self._disk.sync([active.file])
            self._disk.sync_directory(self.path)
        except OSError as error:
            self._failed = texts.sync_failed(active.path, reason=str(error))
            raise self._failed from error

    def _seal(self, segment: Segment) -> None:
        segment.sealed = True
        summary, index = segment.summary(), segment.index

        def done() -> None:
            segment.indexed = True

        self._add_sidecar(Sidecar(segment.index_path, lambda: encode_index(summary, index), done))
        self._use(segment)

    def _snapshot_producers(self) -> None:
        end = self.end
        table = self._producers.copy()
        path = f"{self.path}/producers-{end:020}"
        self._add_sidecar(
            Sidecar(path, lambda: encode_producers(table, end), self._prune_snapshots)
        )

    def _prune_snapshots(self) -> None:
        for at in numbered(self._disk.list(self.path), "producers-", "")[:-SNAPSHOTS_KEPT]:
            self._disk.remove(f"{self.path}/producers-{at:020}")

    def _add_sidecar(self, sidecar: Sidecar) -> None:
        self._sidecars.append(sidecar)
        while len(self._sidecars) > SIDECARS_MAX:
            oldest = self._sidecars.pop(0)
            checkpoint.write(self._disk, oldest.path, oldest.content())
            oldest.done()

    # ── syncing ──────────────────────────────────────────────────────────────────────────────

    @property
    def needs_sync(self) -> bool:
        """Whether a sync round has anything to do here."""
        active = self._segments[-1]
        return bool(
            self._dirty
            or active.zeros_unsynced
            or self._sidecars
            or self._names_changed > self._names_synced
        )

    def sync_point(self) -> SyncPoint:
        """What is written by now: give it to ``rounds.sync_round``, then to ``mark_synced``."""
        active = self._segments[-1]
        segments = list(self._dirty)
        if active.zeros_unsynced:
            active.zeros_unsynced = False
            if active not in segments:
                segments.append(active)
        return SyncPoint(
            end=self.end,
            mark=Mark(self.end, active.base_offset, active.size_bytes),
            generation=self._generation,
            directory=self.path,
            names=self._names_changed,
            sync_names=self._names_changed > self._names_synced,
            segments=[(segment, segment.size_bytes) for segment in segments],
            files=[segment.file for segment in segments],
            sidecars=list(self._sidecars),
        )

    def mark_synced(self, point: SyncPoint) -> None:
        """The round ended well: everything below ``point.end`` is durable. Writes the mark."""
        if point.generation != self._generation:
            return  # truncated meanwhile
        assert point.durable, "only sync_round makes a point durable"
        for segment, size_bytes in point.segments:
            segment.synced_bytes = max(segment.synced_bytes, size_bytes)
        self._dirty = [s for s in self._dirty if s.synced_bytes < s.size_bytes]
        self._names_synced = max(self._names_synced, point.names)
        for sidecar in point.sidecars:
            if sidecar.written and sidecar in self._sidecars:
                self._sidecars.remove(sidecar)
                sidecar.done()
        if point.end > self.flushed:
            self.flushed = point.end
            if self._mark_file is None:
                self._mark_file = self._disk.open(marks.flushed_path(self.path))
            self._mark_file.write([marks.encode_mark(point.mark)], 0)

    def sync(self) -> None:
        """A sync round of this log alone, here and now. Raises BrokerError T093."""
        self._ready()
        point = self.sync_point()
        try:
            sync_round(self._disk, [point])
        except OSError as error:
            self._failed = texts.sync_failed(self.path, reason=str(error))
            raise self._failed from error
        self.mark_synced(point)

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def read(self, offset: int, bytes_max: int, up_to: int) -> LogSlice:
        """Whole batches from the one that holds ``offset`` on, all below ``up_to``.

        At most ``bytes_max`` bytes, but the first batch whole even if it is larger; stops before
        a quarantined range and before a segment that is still to be verified. Empty at
        ``up_to``. Raises OffsetOutOfRange T041 and CorruptBatch T035.
        """
        up_to = min(up_to, self.end)
        if not self.start <= offset <= up_to:
            raise texts.offset_out_of_range(
                self._topic, self._partition, requested=offset, start=self.start, end=up_to
            )
        ranges: list[Range] = []
        first, at, left = offset, offset, bytes_max
        while at < up_to and (left > 0 or not ranges):
            hole = self._hole_at_or_after(at)
            if hole is not None and hole.first_offset <= at:
                if ranges:
                    break
                raise self._corrupt(at, hole)
            segment = self._segment_of(at)
            if segment.unverified is not None:
                if ranges:
                    break
                self._verify(segment)
                continue
            step = segment.locate(at, self.quarantined)
            if step.next_offset > up_to or (ranges and step.end - step.position > left):
                break
            here = hole is not None and hole.file == segment.path
            stop = hole.position if hole is not None and here else segment.size_bytes
            end, at = segment.extent(step, left, up_to, stop)
            ranges.append(Range(segment.file, step.position, end - step.position))
            left -= end - step.position
            if len(ranges) == 1:
                first = step.base_offset
        return LogSlice(ranges, first, at, sum(found.length for found in ranges))

    def offset_for_time(self, time_ms: int, up_to: int) -> tuple[int, int] | None:
        """The first batch below ``up_to`` appended at or after a time: its offset, append time.

        The offset is never below the log start. None: there is no such batch.
        """
        for segment in self._segments:
            if segment.last_append_time < time_ms or segment.next_offset <= self.start:
                continue
            if segment.unverified is not None:
                self._verify(segment)
            found = segment.at_time(time_ms, self.quarantined)
            if found is not None and found.next_offset > self.start:
                if found.next_offset > up_to:
                    return None
                return max(found.base_offset, self.start), found.append_time
        return None

    def verify_pending(self, offset: int) -> Callable[[], None] | None:
        """Work to run in a thread before ``offset`` is first read, if its segment needs it.

        What is damaged is quarantined by it. ``read`` would do the same work on the spot.
        """
        if not self.start <= offset < self.end:
            return None
        segment = self._segment_of(offset)
        return None if segment.unverified is None else bind(self._verify, segment)

    def _verify(self, segment: Segment) -> None:
        found = verify_segment(self._disk, segment, self._config.index_interval_bytes, self._seed)
        known = set(self.quarantined)
        fresh = [hole for hole in found if hole not in known]
        self.quarantined = sorted([*self.quarantined, *fresh], key=lambda hole: hole.first_offset)
        segment.unverified = None

    def _segment_of(self, offset: int) -> Segment:
        low, high = 0, len(self._segments)
        while high - low > 1:
            middle = (low + high) // 2
            if self._segments[middle].base_offset <= offset:
                low = middle
            else:
                high = middle
        segment = self._segments[low]
        if segment.sealed:
            self._use(segment)
        return segment

    def _use(self, segment: Segment) -> None:
        """Note the use of a sealed segment; let the file of the one longest unused go."""
        self._opened.pop(segment.base_offset, None)
        self._opened[segment.base_offset] = segment
        if len(self._opened) > OPEN_SEGMENTS_MAX:
            self._opened.pop(next(iter(self._opened))).release()

    def _hole_at_or_after(self, offset: int) -> Quarantine | None:
        return next((hole for hole in self.quarantined if hole.next_offset > offset), None)

    def _corrupt(self, offset: int, hole: Quarantine) -> CorruptBatch:
        file = hole.file.rpartition("/")[2]
        error = texts.corrupt_batch(
            self._topic,
            self._partition,
            offset=offset,
            broker=self._broker,
            reason=f"{hole.reason}, {file} byte {hole.position}",
            next_offset=hole.next_offset,
        )
        error.details.update(file=hole.file, position=hole.position, first_offset=hole.first_offset)
        return error

    # ── trimming ─────────────────────────────────────────────────────────────────────────────

    def drop_before(self, offset: int) -> int:
        """Remove the sealed segments wholly below ``offset``, durably; how many they were.

        The log start moves to the first segment that is left. Crash-atomic (S28): the start is
        durable before the first file goes.
        """
        count = sum(s.sealed and s.next_offset <= offset for s in self._segments)
        if count:
            self._move_start(max(self.start, self._segments[count].base_offset))
        return count

    def set_start(self, offset: int) -> None:
        """Move the log start up to ``offset``, durably, and remove what lies wholly below."""
        assert offset <= self.flushed, "the log start is durable"
        if offset > self.start:
            self._move_start(offset)

    def _move_start(self, offset: int) -> None:
        checkpoint.write(self._disk, marks.start_path(self.path), marks.encode_start(offset))
        self.start = offset
        self.quarantined = [hole for hole in self.quarantined if hole.next_offset > offset]
        gone = [s for s in self._segments if s.sealed and s.next_offset <= offset]
        for segment in gone:
            self._remove_files(segment)
        del self._segments[: len(gone)]
        self._dirty = [segment for segment in self._dirty if segment not in gone]
        if gone:
            self._disk.sync_directory(self.path)

    def truncate_to(self, offset: int) -> None:
        """Remove all batches that end above ``offset``, durably. They must not be committed.

        Everything else is then read from the files again, as after a crash.
        """
        self._ready()
        assert self.start <= offset
        if offset >= self.end:
            return
        self._generation += 1
        hole = self._hole_at_or_after(offset)
        segment = self._segment_of(offset)
        if hole is not None and hole.first_offset <= offset:
            position, end = hole.position, hole.first_offset
        else:
            step = segment.locate(offset, self.quarantined)
            position, end = step.position, step.base_offset
        mark = Mark(min(end, self.flushed), segment.base_offset, position)
        data = marks.encode_mark(mark)
        checkpoint.write(self._disk, marks.flushed_path(self.path), data)
        for later in reversed(self._segments):
            if later.base_offset > segment.base_offset:
                self._remove_files(later)
        self._disk.remove(segment.index_path)
        for at in numbered(self._disk.list(self.path), "producers-", ""):
            if at > end:
                self._disk.remove(f"{self.path}/producers-{at:020}")
        self._disk.sync_directory(self.path)
        zero(segment.file, position, segment.length)
        self._disk.sync([segment.file])
        self._adopt(self._recover(clean=False, suspect=False, verify="tail"))

    # ── opening and closing ──────────────────────────────────────────────────────────────────

    def reconfigure(self, config: LogConfig) -> None:
        """New settings; the segment size takes effect with the next segment."""
        self._config = config

    def close(self, *, clean: bool) -> None:
        """Let go of all files. ``clean``: sync, and save what spares the next start a scan.

        Raises BrokerError T093 if that fails. Slices that are still being sent stay valid.
        """
        if clean:
            self.settle()
            self.sync()
        if self._mark_file is not None:
            self._mark_file.close()
        for segment in self._segments:
            segment.forget()
        self._opened.clear()

    def settle(self) -> None:
        """Let the next sync round save what a clean close saves, so that it can be shared."""
        active = self._segments[-1]
        summary, index = active.summary(), active.index
        content = encode_index(summary, index)
        self._add_sidecar(Sidecar(active.index_path, lambda: content, lambda: None))
        self._snapshot_producers()

    def _recover(self, *, clean: bool, suspect: bool, verify: Literal["tail", "full"]) -> Recovered:
        return recover(
            self._disk,
            self.path,
            topic=self._topic,
            partition=self._partition,
            seed=self._seed,
            segment_bytes=self._config.segment_bytes,
            interval=self._config.index_interval_bytes,
            clean=clean,
            suspect=suspect,
            verify=verify,
        )

    def _adopt(self, found: Recovered) -> None:
        if self._mark_file is not None:
            self._mark_file.close()
            self._mark_file = None
        self._segments = found.segments
        self._producers = found.producers
        self._epochs = found.epochs
        self.start = found.start
        self.quarantined = sorted(found.quarantined, key=lambda hole: hole.first_offset)
        self.recovery = found.report
        self.flushed = self.end
        self._append_time = max(s.last_append_time for s in self._segments)
        self._dirty, self._sidecars = [], []
        self._names_synced = self._names_changed
        self._opened.clear()
        for segment in self._segments[:-1]:
            if not segment.indexed:
                self._seal(segment)
            elif segment.is_open:
                self._use(segment)

    def _remove_files(self, segment: Segment) -> None:
        self._opened.pop(segment.base_offset, None)
        self._sidecars = [s for s in self._sidecars if s.path != segment.index_path]
        segment.forget()
        self._disk.remove(segment.index_path)
        self._disk.remove(segment.path)
