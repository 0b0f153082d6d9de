"""Cutting a log at its end, in its files: what recovery then finds is the shorter log.

A crash in between leaves a log that ends at the cut or behind it: the mark is lowered first, so
that nothing behind the cut is taken for durable.
"""

from collections.abc import Generator
from contextlib import contextmanager

from tailrace.storage import checkpoint, marks
from tailrace.storage.disk import NO_ROOM, Disk
from tailrace.storage.marks import Mark
from tailrace.storage.reader import Reader
from tailrace.storage.recovery import numbered, zero
from tailrace.storage.resume import remove_resumes
from tailrace.storage.segments import Segments
from tailrace.storage.sidecars import snapshot_path


class NotCut(OSError):
    """There was no room even to begin: the log is as it was, and the cut may be tried again."""


@contextmanager
def beginning() -> Generator[None]:
    """Around the first step of a cut, which leaves everything as it was if it fails. ``NotCut``,
    other ``OSError``s."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise NotCut(*error.args) from error
        raise


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
    """Remove the bytes of all batches that end above ``offset``. ``NotCut``, ``OSError``."""
    segment, position, end = reader.boundary(offset)
    assert start <= end, "the log start is committed"
    mark = Mark(min(end, flushed), segment.base_offset, position)
    if mark.offset < end:
        mark = Mark(mark.offset, -1, 0)
    with beginning():
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
