"""Taking segments out of a log, and putting rewritten ones in their place, step by step.

Files take the disk from a millisecond to seconds to remove or replace, so it is done by jobs, off
the event loop, while the log goes on being read and appended to. A job has five steps:

1. made in the loop (``trim``, ``swap``): it is decided what will be done, nothing has changed;
2. ``publish``, in a thread: the commit point is durable. A crash before it leaves the old log, one
   behind it the new one (S28);
3. ``trimmed`` or ``replace``, in the loop: what is in memory follows;
4. ``finish``, in a thread: the files that are not needed any more go. An error changes nothing but
   that they are still there: the next job of this log tries again, or the next start;
5. ``replaced``, in the loop (not needed for a trim): files have their final names.

Invariants:
- one job of a log at a time, from its making to its last step or ``discard``;
- the durable mark points into no file that is replaced: it would be taken for a place in the new;
- a segment below the log start is removed only once its producers are in a durable snapshot (R35);
- a segment whose file has not its final name yet stays open: it cannot be found by name.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tailrace.protocol.errors import BrokerError
from tailrace.storage import checkpoint, marks
from tailrace.storage.disk import Disk, File
from tailrace.storage.index import Index
from tailrace.storage.os_sync import NotBegun
from tailrace.storage.reader import Reader
from tailrace.storage.rewrite import RewriteRefused, Rewritten, SegmentSource
from tailrace.storage.rounds import Unsynced
from tailrace.storage.segment import Segment
from tailrace.storage.segments import Segments
from tailrace.storage.swap import SwapName, tidy

MOVES_KEPT = 16  # of the start, so that it can be told what a record went by


@dataclass(eq=False, slots=True)
class Leftover:
    """Files that a published job has not tidied away yet."""

    names: list[str]  # to be removed
    swap: SwapName | None = None  # to be given its final name
    segment: Segment | None = None  # that waits for it
    done: bool = False


@dataclass(frozen=True, slots=True)
class StartMove:
    """The log start went up."""

    before: int
    after: int
    exact: bool  # to an offset that somebody named, else to the end of what was removed


class TrimJob:
    """The log start moves up; segments wholly below it go."""

    def __init__(
        self, owner: "Maintenance", start: int, gone: list[Segment], *, exact: bool
    ) -> None:
        self.start = start  # the log's, once it is published
        self.exact = exact
        self.gone = gone
        self._owner = owner

    @property
    def size_bytes(self) -> int:
        """Of the segments that go."""
        return sum(segment.size_bytes for segment in self.gone)

    def publish(self) -> None:
        """The new start is durable on return. In a thread. On an ``OSError`` nothing changed."""
        self._owner.save_start(self.start)

    def finish(self) -> None:
        """Remove the files. In a thread, after ``Log.trimmed``. May be repeated on ``OSError``."""
        self._owner.tidy()


class SwapJob:
    """A rewritten segment takes the place of those it was made of."""

    def __init__(self, owner: "Maintenance", rewritten: Rewritten, path: str) -> None:
        self.rewritten = rewritten
        self.file: File | None = None  # of the new segment, from ``publish`` on
        self._owner = owner
        self._path = path  # of the half-made file
        self._published = False

    def publish(self) -> None:
        """The new segment is the log's, durably, on return. In a thread.

        On an ``OSError`` or ``RewriteRefused`` (the file is not what was made) nothing has
        changed and the half-made file is gone. BrokerError T093: a sync failed, and the log
        takes nothing any more.
        """
        try:
            self.file = self._owner.publish(self.rewritten, self._path)
            self._published = True
        finally:
            if not self._published:
                self.discard()

    def finish(self) -> None:
        """Remove the old files. In a thread, after ``Log.replace``. May be repeated."""
        self._owner.tidy()

    def discard(self) -> None:
        """Give up before ``publish``: the half-made file goes."""
        assert not self._published, "it is the log's by now"
        self._owner.remove(self._path)


class Maintenance:
    """What is removed from one log and replaced in it; and where it starts."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        *,
        segments: Segments,
        unsynced: Unsynced,
        reader: Reader,
        start: int,
        covered: Callable[[], int],
        save_index: Callable[[Segment], None],
        sync_failed: Callable[[OSError], BrokerError],
    ) -> None:
        self.start = start
        self.moves: deque[StartMove] = deque(maxlen=MOVES_KEPT)  # since the log was opened
        self._disk = disk
        self._path = path
        self._segments = segments
        self._unsynced = unsynced
        self._reader = reader
        self._covered = covered  # offset up to which producers are in a durable snapshot
        self._save_index = save_index  # with the next sync round
        self._sync_failed = sync_failed  # the log takes nothing any more (R21)
        self._leftovers: list[Leftover] = []  # oldest first, which is the order to tidy them in

    # ── trimming ─────────────────────────────────────────────────────────────────────────────

    def trim(self, offset: int, *, exact: bool) -> TrimJob | None:
        """See ``Log.trim``."""
        limit = max(offset, self.start)
        gone = self._segments.sealed_below(min(limit, self._covered()))
        start = limit if exact else max([self.start, *(one.next_offset for one in gone)])
        if not gone and start == self.start and not self._settle():
            return None
        return TrimJob(self, start, gone, exact=exact)

    def trimmed(self, job: TrimJob) -> None:
        """See ``Log.trimmed``."""
        self._settle()
        if job.start > self.start:
            self.moves.append(StartMove(self.start, job.start, job.exact))
        self.start = max(self.start, job.start)
        self._reader.forget_below(self.start)
        names: list[str] = []
        for segment in job.gone:
            self._drop(segment)
            names += [segment.index_path, SwapName(segment.base_offset, 0).final(self._path)]
        if names:
            self._leftovers.append(Leftover(names))

    def trim_now(self, offset: int, *, exact: bool) -> int:
        """All steps of a trim at once; how many segments went. Raises ``OSError``."""
        job = self.trim(offset, exact=exact)
        if job is None:
            return 0
        job.publish()
        self.trimmed(job)
        job.finish()
        return len(job.gone)

    def trim_covered(self) -> None:
        """Remove what lay below the start and waited for a snapshot. Raises ``OSError``."""
        if not self._leftovers:  # else whoever tidies them may be at it; the next trim takes it
            self.trim_now(self.start, exact=True)

    def save_start(self, start: int) -> None:
        """For ``TrimJob``: in a thread. An ``OSError`` may be tried again, a failed sync may not:
        BrokerError T093."""
        if start <= self.start:
            return
        path = marks.start_path(self._path)
        file = checkpoint.stage(self._disk, path, marks.encode_start(start))
        try:
            self._disk.sync([file])
        except OSError as error:
            raise self._sync_failed(error) from error
        finally:
            file.close()
        checkpoint.publish(self._disk, path)
        self._sync_names()

    # ── replacing ────────────────────────────────────────────────────────────────────────────

    def rewritable(self, up_to: int) -> list[SegmentSource]:
        """See ``Log.rewritable``."""
        self._settle()
        # Below the mark's segment, not just below the mark; and everything there is synced.
        limit = min(up_to, self._covered(), self._unsynced.mark.segment_base)
        return [
            SegmentSource(one.path, one.base_offset, one.next_offset, one.size_bytes)
            for one in self._segments
            if one.sealed
            and one.indexed  # else its index is being written, maybe, under a name the new has
            and not one.pinned
            and one.base_offset < one.next_offset <= limit
            and not self._reader.damaged(one.base_offset, one.next_offset)
        ]

    def swap(self, rewritten: Rewritten) -> SwapJob:
        """See ``Log.swap``."""
        assert rewritten.changed, "there is no file"
        assert rewritten.next_offset <= self._unsynced.mark.segment_base, "see rewritable"
        name = SwapName(rewritten.base_offset, rewritten.next_offset)
        return SwapJob(self, rewritten, name.half_made(self._path))

    def publish(self, rewritten: Rewritten, half_made: str) -> File:
        """For ``SwapJob``: in a thread. The new segment's file, open."""
        disk, name = self._disk, SwapName(rewritten.base_offset, rewritten.next_offset)
        file = disk.open(half_made)
        if file.size() != rewritten.summary.size_bytes:
            reason = f"{file.size()} bytes, {rewritten.summary.size_bytes} were written"
            raise RewriteRefused(half_made, 0, reason)
        mark = disk.open(marks.flushed_path(self._path))
        try:
            # After a power cut an older mark may be found, as it is written without a sync; and
            # that may point into a file that is replaced now.
            disk.sync([mark])
        except OSError as error:
            raise self._sync_failed(error) from error
        finally:
            mark.close()
        disk.rename(half_made, name.path(self._path))
        try:
            self._sync_names()
        except NotBegun:
            disk.rename(name.path(self._path), half_made)  # a start may find either: both are right
            raise
        return file

    def replace(self, job: SwapJob) -> None:
        """See ``Log.replace``."""
        self._settle()
        made, file = job.rewritten, job.file
        assert file is not None, "published"
        name = SwapName(made.base_offset, made.next_offset)
        for segment in [one for one in self._segments if name.covers(one.base_offset)]:
            self._drop(segment)
        new = Segment(self._disk, self._path, made.base_offset)
        index = Index(made.base_offset, memoryview(made.index))
        new.take_place(name.path(self._path), file, made.summary, index)
        self._segments.insert(new)
        # Whatever was found damaged since the old files were read: what was read was verified.
        self._reader.forget_between(made.base_offset, made.next_offset)
        self._leftovers.append(Leftover([], name, new))

    def replaced(self, job: SwapJob) -> None:
        """See ``Log.replaced``."""
        assert job.file is not None, "published"
        job.file = None
        self._settle()

    # ── what both need ───────────────────────────────────────────────────────────────────────

    def tidy(self) -> None:
        """For jobs: in a thread. Whatever published jobs left to be done, in their order."""
        for leftover in list(self._leftovers):
            if leftover.done:
                continue
            if leftover.swap is not None:
                tidy(self._disk, self._path, leftover.swap, self._sync_names)
            else:
                for name in leftover.names:
                    self._disk.remove(name)
                self._sync_names()
            leftover.done = True

    def remove(self, path: str) -> None:
        """For jobs: a half-made file; if that fails recovery does it."""
        with suppress(OSError):
            self._disk.remove(path)

    def _sync_names(self) -> None:
        """Names that may or may not be durable are nothing to go on from (R21). ``NotBegun``: the
        step that they are of is done again."""
        try:
            self._disk.sync_directory(self._path)
        except NotBegun:
            raise
        except OSError as error:
            raise self._sync_failed(error) from error

    def _drop(self, segment: Segment) -> None:
        """Out of memory; its files are seen to later."""
        if segment.gone:
            return
        self._unsynced.forget(segment)
        self._segments.drop(segment)
        self._reader.let_go(segment)

    def _settle(self) -> bool:
        """Take in what was tidied; whether anything is left to be."""
        done = [leftover for leftover in self._leftovers if leftover.done]
        self._leftovers = [leftover for leftover in self._leftovers if not leftover.done]
        for leftover in done:
            segment = leftover.segment
            if segment is not None and not segment.gone:
                segment.settle(SwapName(segment.base_offset, 0).final(self._path))
                self._segments.used(segment)
                self._save_index(segment)
        return bool(self._leftovers)
