"""One sync round: everything that several logs wrote since the last, made durable together.

The event loop takes a ``SyncPoint`` from each dirty log, a thread runs ``sync_round`` over all of
them, and the loop tells each log ``mark_synced``. Beside the log files a round carries what was
waiting for one: names of new segments, index files of sealed ones, producer snapshots. The order
is that of R22 and R23: contents, then names, then directories.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk, File
from tailrace.storage.marks import Mark
from tailrace.storage.segment import Segment


@dataclass(eq=False, slots=True)
class Sidecar:
    """A checkpoint file that can be rebuilt from the log, to be written with a sync round."""

    path: str
    content: Callable[[], bytes]  # called in the sync thread; must not see later changes
    done: Callable[[], None]  # called in the loop once it is durable
    written: bool = False


@dataclass(eq=False, slots=True)
class SyncPoint:
    """What one log had written at one moment."""

    end: int  # all offsets below will be durable
    mark: Mark
    generation: int  # of the log; a truncation makes older points void
    directory: str
    names: int  # changes of names so far
    sync_names: bool  # a segment was created or removed since the last point
    segments: list[tuple[Segment, int]]  # with their size
    files: list[File]
    sidecars: list[Sidecar] = field(default_factory=list[Sidecar])
    durable: bool = False


def sync_round(disk: Disk, points: Sequence[SyncPoint]) -> None:
    """Make the points durable; to be called in the sync thread.

    An ``OSError`` means that nothing is known about any of them: never retry (R21). A sidecar
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
        checkpoint.publish(disk, sidecar.path)
        sidecar.written = True
    for point in points:
        if point.sync_names or any(sidecar.written for sidecar in point.sidecars):
            disk.sync_directory(point.directory)
        point.durable = True
