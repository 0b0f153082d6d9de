"""Cutting a log at its end, in its files: what recovery then finds is the shorter log.

A crash in between leaves a log that ends at the cut or behind it: the mark is lowered first, so
that nothing behind the cut is taken for durable.
"""

from tailrace.storage import checkpoint, marks
from tailrace.storage.disk import Disk
from tailrace.storage.marks import Mark
from tailrace.storage.reader import Reader
from tailrace.storage.recovery import numbered, zero
from tailrace.storage.resume import remove_resumes
from tailrace.storage.segments import Segments
from tailrace.storage.sidecars import snapshot_path


def truncate(
    disk: Disk,
    path: str,
    segments: Segments,
    reader: Reader,
    *,
    start: int,
    flushed: int,
    offset: int,
) -> None:
    """Remove the bytes of all batches that end above ``offset``. Raises ``OSError``."""
    segment, position, end = reader.boundary(offset)
    assert start <= end, "the log start is committed"
    mark = Mark(min(end, flushed), segment.base_offset, position)
    if mark.offset < end:
        mark = Mark(mark.offset, -1, 0)
    checkpoint.write(disk, marks.flushed_path(path), marks.encode_mark(mark))
    for later in [s for s in segments if s.base_offset > segment.base_offset][::-1]:
        segments.remove(later)
    disk.remove(segment.index_path)
    remove_resumes(disk, path)
    for at in numbered(disk.list(path), "producers-", ""):
        if at > end:
            disk.remove(snapshot_path(path, at))
    disk.sync_directory(path)
    zero(segment.file, position, segment.length)
