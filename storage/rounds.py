"""One sync round: everything that several logs wrote since the last, made durable together.

The event loop takes a ``SyncPoint`` from each dirty log, a thread runs ``sync_round`` over all of
them, and the loop tells each log ``mark_synced``; ``Unsynced`` is what a log keeps for that.
Beside the log files a round carries what was waiting for one: names of new segments, index files
of sealed ones, producer snapshots. The order is that of R22 and R23: contents, then names, then
directories. Hints for the next start are written in passing, and not synced.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk, File
from tailrace.storage.marks import Mark, encode_mark, flushed_path
from tailrace.storage.resume import write_resume
from tailrace.storage.segment import Segment

SIDECARS_MAX = 32  # waiting for a round; a log that is never synced writes them itself


@dataclass(eq=False, slots=True)
class Sidecar:
    """A checkpoint file that can be rebuilt from the log, to be written with a sync round."""

    path: str
    content: Callable[[], bytes]  # called in the sync thread; must not see later changes
    done: Callable[[], None]  # called in the loop once it is durable
    taken: bool = False  # by a round that may be under way
    written: bool = False


@dataclass(frozen=True, slots=True)
class Hint:
    """A file that may be lost (``storage.resume``)."""

    path: str
    content: Callable[[], bytes]  # called in the sync thread; must not see later changes


@dataclass(eq=False, slots=True)
class SyncPoint:
    """What one log had written at one moment."""

    owner: "Unsynced"  # a truncated log has a new one: older points are void
    end: int  # all offsets below will be durable
    mark: Mark
    directory: str
    names: int  # changes of names so far
    sync_names: bool  # a segment was created or removed since the last point
    segments: list[tuple[Segment, int]]  # with their size
    files: list[File]
    sidecars: list[Sidecar] = field(default_factory=list[Sidecar])
    hint: Hint | None = None
    durable: bool = False


def sync_round(disk: Disk, points: Sequence[SyncPoint]) -> None:
    """Make the points durable; to be called in the sync thread.

    An ``OSError`` means that nothing is known about any of them: never retry (R21); but after
    ``NotBegun`` do, with the same points. A sidecar
    that could not be written, say for want of space, is no such error: it waits for the next round.
    """
    files = [file for point in points for file in point.files]
    staged: list[Sidecar] = []
    for sidecar in (sidecar for point in points for sidecar in point.sidecars):
        try:
            files.append(checkpoint.stage(disk, sidecar.path, sidecar.content()))
        except OSError:
            continue
        staged.append(sidecar)
    disk.sync(files)
    for sidecar in staged:
        try:
            checkpoint.publish(disk, sidecar.path)
        except OSError:  # a name may need room in its directory, too
            continue
        sidecar.written = True
    named = [
        point.directory
        for point in points
        if point.sync_names or any(sidecar.written for sidecar in point.sidecars)
    ]
    if named:
        disk.sync_together([], named)
    for point in points:
        point.durable = True
        if point.hint is not None:
            with suppress(OSError):
                write_resume(disk, point.hint.path, point.hint.content())


class Unsynced:
    """What one log wrote since its last sync, and how far it is durable."""

    def __init__(self, disk: Disk, directory: str, mark: Mark) -> None:
        self.flushed = mark.offset  # all offsets below are durable
        self.mark: Mark = mark  # as it was last written, though that may not be durable
        self._disk = disk
        self._directory = directory
        self._segments: list[Segment] = []  # in order
        self._zeros: Segment | None = None
        self._names_changed = 0
        self._names_synced = 0
        self._sidecars: list[Sidecar] = []
        self._hint: Hint | None = None
        self._mark_file: File | None = None

    @property
    def pending(self) -> bool:
        """Whether a round has anything to do."""
        names = self._names_changed > self._names_synced
        return bool(self._segments or self._zeros or self._sidecars or names)

    def wrote(self, segment: Segment) -> None:
        """Batches were appended to a segment."""
        if not self._segments or self._segments[-1] is not segment:
            self._segments.append(segment)

    def wrote_zeros(self, segment: Segment) -> None:
        """The file changed, though no batch did."""
        self._zeros = segment

    def named(self) -> None:
        """A file was made; its name counts after the next round."""
        self._names_changed += 1

    def add(self, sidecar: Sidecar) -> None:
        """Write a sidecar with the next round, or here where too many wait and there is room.

        BrokerError T093: a sync failed, perhaps that of a new segment's name.
        """
        self._sidecars = [s for s in self._sidecars if s.path != sidecar.path or s.taken]
        self._sidecars.append(sidecar)
        waiting = [s for s in self._sidecars if not s.taken]
        for oldest in waiting[:-SIDECARS_MAX]:
            try:
                checkpoint.replace(self._disk, oldest.path, oldest.content())
            except OSError:
                return  # it can be rebuilt; the append that led here has succeeded
            self._sidecars.remove(oldest)
            oldest.done()

    @property
    def hints(self) -> bool:
        """Whether a hint waits for a round."""
        return self._hint is not None

    def hint(self, hint: Hint) -> None:
        """Write this, if there is a next round; a newer one takes its place."""
        self._hint = hint

    def forget(self, segment: Segment) -> None:
        """A segment was removed."""
        self._segments = [s for s in self._segments if s is not segment]
        self._zeros = None if self._zeros is segment else self._zeros
        self._sidecars = [s for s in self._sidecars if s.path != segment.index_path]

    def point(self, active: Segment) -> SyncPoint:
        """Everything that is written by now."""
        segments = list(self._segments)
        if self._zeros is not None and self._zeros not in segments:
            segments.append(self._zeros)
        self._zeros = None
        sidecars = [sidecar for sidecar in self._sidecars if not sidecar.taken]
        for sidecar in sidecars:
            sidecar.taken = True
        hint, self._hint = self._hint, None
        return SyncPoint(
            owner=self,
            end=active.next_offset,
            mark=Mark.of(active.summary()),
            directory=self._directory,
            names=self._names_changed,
            sync_names=self._names_changed > self._names_synced,
            segments=[(segment, segment.size_bytes) for segment in segments],
            files=[segment.file for segment in segments],
            sidecars=sidecars,
            hint=hint,
        )

    def synced(self, point: SyncPoint) -> None:
        """A round with this point ended well. Writes the mark last: it may fail, and then lags."""
        assert point.durable, "only sync_round makes a point durable"
        for segment, size_bytes in point.segments:
            segment.synced_bytes = max(segment.synced_bytes, size_bytes)
        self._segments = [s for s in self._segments if s.synced_bytes < s.size_bytes]
        self._names_synced = max(self._names_synced, point.names)
        # Also where only a new segment began: nobody rewrites the one that the mark points into.
        advances = point.end >= self.flushed and point.mark != self.mark
        self.flushed = max(self.flushed, point.end)
        for sidecar in point.sidecars:
            sidecar.taken = False  # one that could not be written waits for the next round
            if sidecar.written and sidecar in self._sidecars:
                self._sidecars.remove(sidecar)
                sidecar.done()
        if advances:
            if self._mark_file is None:
                self._mark_file = self._disk.open(flushed_path(self._directory))
            self._mark_file.write([encode_mark(point.mark)], 0)
            self.mark = point.mark

    def close(self) -> None:
        if self._mark_file is not None:
            self._mark_file.close()
