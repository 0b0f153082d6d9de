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
from contextlib import suppress
from functools import partial as bind
from typing import Literal

from tailrace.protocol import texts
from tailrace.protocol.batch import header_seed
from tailrace.protocol.errors import BrokerError, TailraceError
from tailrace.storage import checkpoint, marks
from tailrace.storage.append import Appended, AppendPlan, Group, LogConfig
from tailrace.storage.disk import Disk
from tailrace.storage.epochs import EpochHistory, EpochStart, encode_epochs
from tailrace.storage.index import encode_index
from tailrace.storage.marks import Mark
from tailrace.storage.producers import ProducerTable, encode_producers
from tailrace.storage.reader import LogSlice, Reader
from tailrace.storage.recovery import Recovered, RecoveryReport, numbered, recover, zero
from tailrace.storage.retention import SegmentFacts
from tailrace.storage.rounds import Sidecar, SyncPoint, Unsynced, sync_round
from tailrace.storage.segment import Quarantine, Segment
from tailrace.storage.segments import Segments

__all__ = ["Appended", "Log", "LogConfig", "LogSlice", "RecoveryReport"]

SNAPSHOTS_KEPT = 2
WRITE_AHEAD_BYTES = 4 * 1024 * 1024
_ZEROS = bytes(256 * 1024)


class Log:
    """See the module. Made by ``open``; not used after ``close``."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        *,
        name: tuple[str, int],
        broker: str,
        seed: int,
        config: LogConfig,
        recovered: Recovered,
    ) -> None:
        self.path = path
        self._disk = disk
        self._name = name  # topic and partition
        self._broker = broker
        self._seed = seed
        self._config = config
        self._stray: Callable[[], None] | None = None  # removes what a failed append left
        self._failed: BrokerError | None = None
        self._adopt(recovered)

    def _adopt(self, found: Recovered) -> None:
        """Take what was found on the disk for the truth."""
        self.recovery: RecoveryReport = found.report
        self.start: int = found.start
        self._segments = Segments(self._disk, found.segments)
        self._producers = found.producers
        self._snapshots = [found.producers_from]  # offsets of those that were saved, rising
        self._epochs = found.epochs
        self._append_time = max(segment.last_append_time for segment in self._segments)
        self._unsynced = Unsynced(self._disk, self.path, self.end)
        self._reader = Reader(
            self._disk,
            self._segments,
            found.quarantined,
            name=self._name,
            broker=self._broker,
            seed=self._seed,
        )
        for segment in found.segments[:-1]:
            if not segment.indexed:
                self._write_index(segment)
        self._trim()
        if self._segments.sealed_below(self.start):
            self._snapshot_producers()  # their removal was interrupted, and waits for it

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
        name = (topic if topic is not None else topic_id.hex(), partition)
        seed = header_seed(topic_id, partition)
        found = recover(
            disk,
            path,
            name=name,
            seed=seed,
            segment_bytes=config.segment_bytes,
            interval=config.index_interval_bytes,
            clean=clean,
            suspect=suspect,
            verify=verify,
        )
        found.producers.expire(now_ms)
        return cls(disk, path, name=name, broker=broker, seed=seed, config=config, recovered=found)

    # ── facts ────────────────────────────────────────────────────────────────────────────────

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
        return self._append_time if self._append_time >= 0 else None

    @property
    def epochs(self) -> Sequence[EpochStart]:
        """Which leader epoch began at which offset; empty before the first."""
        return self._epochs.entries

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

    # ── appending ────────────────────────────────────────────────────────────────────────────

    def begin_epoch(self, epoch: int) -> None:
        """A leader epoch begins at the log end; durable on return (R8)."""
        epochs = EpochHistory(self._epochs.entries)
        if epochs.begin(epoch, self.end):
            checkpoint.write(self._disk, f"{self.path}/epochs", encode_epochs(epochs))
            self._epochs = epochs

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
        time = max(now_ms, self._append_time)  # R20
        plan = AppendPlan(
            self._name,
            self._seed,
            self._config,
            self._segments.active,
            self._producers.plan(),
            leader_epoch=leader_epoch,
            now_ms=now_ms,
            append_time=time,
        )
        plan.take(batches)
        if plan.groups:
            self._write(plan.groups, time)
            plan.producers.commit()
            if plan.groups[-1].rolls:
                self._snapshot_producers()
        return plan.results

    def expire_producers(self, now_ms: int) -> int:
        """Forget producers that were silent for a day; how many they were."""
        return self._producers.expire(now_ms)

    def roll_if_old(self, now_ms: int) -> bool:
        """Seal an active segment that is past its age, so that retention may take it one day."""
        self._ready()
        active, age_max = self._segments.active, self._config.segment_age_ms
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
        Raises ``OSError``, without consequence. Never concurrent with ``append``.
        """
        self._ready()
        active = self._segments.active
        begin = at = max(active.zeroed_bytes, active.size_bytes)
        end = min(active.length, active.size_bytes + WRITE_AHEAD_BYTES, at + bytes_max)
        while at < end:
            zeros = _ZEROS[: end - at]
            active.file.write([zeros], at)
            at += len(zeros)
            active.zeroed_bytes = at
            self._unsynced.wrote_zeros(active)
        return at - begin

    def _write(self, groups: list[Group], append_time: int) -> None:
        """All of it or nothing: files first, then what is known of them."""
        active = self._segments.active
        made: list[Segment] = []
        try:
            for group in groups:
                if group.rolls:
                    made.append(Segment(self._disk, self.path, group.base_offset))
                    made[-1].create(max(self._config.segment_bytes, group.size_bytes))
            targets = made if groups[0].rolls else [active, *made]
            for group, segment in zip(groups, targets, strict=True):
                segment.write(group.buffers, group.size_bytes)
        except OSError:
            stray_bytes = 0 if groups[0].rolls else groups[0].size_bytes
            self._stray = bind(self._remove_stray, active, stray_bytes, made)
            with suppress(OSError):
                self._ready()
            raise
        for group, segment in zip(groups, targets, strict=True):
            if group.rolls:
                self._write_index(self._segments.roll(segment))
                self._unsynced.named()
            for header, base_offset, next_offset in group.placed:
                segment.add(
                    header.size_bytes,
                    base_offset,
                    next_offset,
                    append_time,
                    header.record_count,
                    self._config.index_interval_bytes,
                )
            self._unsynced.wrote(segment)
        self._append_time = append_time

    def _ready(self) -> None:
        """Refuse after a failed sync; remove first what a failed append left, or ``OSError``."""
        if self._failed is not None:
            raise self._failed
        if self._stray is not None:
            self._stray()
            self._stray = None

    def _remove_stray(self, active: Segment, stray_bytes: int, made: list[Segment]) -> None:
        """Zero and sync, so that no crash can bring back what was answered with an error."""
        for segment in made:
            segment.forget()
            self._disk.remove(segment.path)
        zero(active.file, active.size_bytes, active.size_bytes + stray_bytes)
        try:
            self._disk.sync([active.file])
            self._disk.sync_directory(self.path)
        except OSError as error:
            raise self._sync_failed(error) from error

    def _sync_failed(self, error: OSError) -> BrokerError:
        self._failed = texts.sync_failed(self.path, reason=str(error))
        return self._failed

    # ── syncing ──────────────────────────────────────────────────────────────────────────────

    @property
    def needs_sync(self) -> bool:
        """Whether a sync round has anything to do here."""
        return self._unsynced.pending

    def sync_point(self) -> SyncPoint:
        """What is written by now: give it to ``rounds.sync_round``, then to ``mark_synced``."""
        return self._unsynced.point(self._segments.active)

    def mark_synced(self, point: SyncPoint) -> None:
        """The round ended well: all below ``point.end`` is durable. Writes the mark."""
        if point.owner is self._unsynced:
            self._unsynced.synced(point)

    def sync(self) -> None:
        """A sync round of this log alone, here and now. Raises BrokerError T093."""
        self._ready()
        point = self.sync_point()
        try:
            sync_round(self._disk, [point])
        except OSError as error:
            raise self._sync_failed(error) from error
        self.mark_synced(point)

    def _write_index(self, segment: Segment) -> None:
        """Of a segment that is sealed, with the next round."""
        summary, index = segment.summary(), segment.index

        def content() -> bytes:
            return encode_index(summary, index)

        self._unsynced.add(Sidecar(segment.index_path, content, segment.set_indexed))

    def _snapshot_producers(self) -> None:
        end, table = self.end, self._producers.copy()

        def content() -> bytes:
            return encode_producers(table, end)

        path = f"{self.path}/producers-{end:020}"
        self._unsynced.add(Sidecar(path, content, bind(self._snapshot_saved, end)))

    def _snapshot_saved(self, offset: int) -> None:
        self._snapshots.append(offset)
        on_disk = numbered(self._disk.list(self.path), "producers-", "")
        usable = [at for at in on_disk if at <= self._covered()]
        kept = {*usable[-SNAPSHOTS_KEPT:], *on_disk[-SNAPSHOTS_KEPT:]}
        for at in set(on_disk) - kept:
            self._disk.remove(f"{self.path}/producers-{at:020}")
        self._snapshots = [at for at in self._snapshots if at in kept or at == 0]
        self._trim()

    def _covered(self) -> int:
        """The newest snapshot that no crash can make worthless by taking records below it."""
        limit = self.flushed if self._config.synced else self.end
        return max((at for at in self._snapshots if at <= limit), default=0)

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

    def verify_pending(self, offset: int) -> Callable[[], None] | None:
        """Work to run in a thread before ``offset`` is first read, if its segment needs it.

        What is damaged is quarantined by it. ``read`` would do the same work on the spot.
        """
        return self._reader.pending(offset) if self.start <= offset < self.end else None

    # ── trimming ─────────────────────────────────────────────────────────────────────────────

    def drop_before(self, offset: int) -> int:
        """Remove the sealed segments wholly below ``offset``, durably; how many they were.

        The log start moves to the first segment that is left. Crash-atomic (S28): the start is
        durable before the first file goes. A segment stays until a snapshot of the producers
        behind it is durable, which the first sync round after its sealing sees to.
        """
        gone = self._segments.sealed_below(min(offset, self._covered()))
        if gone:
            self._move_start(max(self.start, gone[-1].next_offset))
        return len(gone)

    def set_start(self, offset: int) -> None:
        """Move the log start up to ``offset``, durably; what lies wholly below will be removed."""
        assert offset <= self.flushed, "the log start is durable"
        if offset > self.start:
            self._move_start(offset)

    def _move_start(self, offset: int) -> None:
        checkpoint.write(self._disk, marks.start_path(self.path), marks.encode_start(offset))
        self.start = offset
        self._reader.forget_below(offset)
        self._trim()

    def _trim(self) -> None:
        """Remove the segments below the start whose producers are in a durable snapshot (R35)."""
        gone = self._segments.sealed_below(min(self.start, self._covered()))
        for segment in gone:
            self._unsynced.forget(segment)
            self._segments.remove(segment)
        if gone:
            self._disk.sync_directory(self.path)

    def truncate_to(self, offset: int) -> None:
        """Remove all batches that end above ``offset``, durably. They must not be committed.

        No sync round with this log may be under way; older sync points are void. Everything else
        is then read from the files again, as after a crash.
        """
        self._ready()
        if offset >= self.end:
            return
        segment, position, end = self._reader.boundary(offset)
        assert self.start <= end, "the log start is committed"
        mark = Mark(min(end, self.flushed), segment.base_offset, position)
        if mark.offset < end:
            mark = Mark(mark.offset, -1, 0)
        checkpoint.write(self._disk, marks.flushed_path(self.path), marks.encode_mark(mark))
        for later in [s for s in self._segments if s.base_offset > segment.base_offset][::-1]:
            self._segments.remove(later)
        self._disk.remove(segment.index_path)
        for at in numbered(self._disk.list(self.path), "producers-", ""):
            if at > end:
                self._disk.remove(f"{self.path}/producers-{at:020}")
        self._disk.sync_directory(self.path)
        zero(segment.file, position, segment.length)
        self._unsynced.close()
        self._segments.release_all()
        self._adopt(
            recover(
                self._disk,
                self.path,
                name=self._name,
                seed=self._seed,
                segment_bytes=self._config.segment_bytes,
                interval=self._config.index_interval_bytes,
                clean=False,
                suspect=False,
                verify="tail",
            )
        )

    # ── settings and end ─────────────────────────────────────────────────────────────────────

    def reconfigure(self, config: LogConfig) -> None:
        """New settings; the segment size takes effect with the next segment."""
        self._config = config

    def settle(self) -> None:
        """Let the next sync round save what a clean close saves, so that logs can share one."""
        active = self._segments.active
        data = encode_index(active.summary(), active.index)
        self._unsynced.add(Sidecar(active.index_path, lambda: data, lambda: None))
        self._snapshot_producers()

    def close(self, *, clean: bool) -> None:
        """Let go of all files. ``clean``: sync, and save what spares the next start a scan.

        Raises BrokerError T093 if that fails. Slices that are still being sent stay valid.
        """
        if clean:
            self.settle()
            self.sync()
        self._unsynced.close()
        self._segments.release_all()
