"""Erasing in one segment: a job of plain data, so that another process can do it.

A sealed segment is rewritten without what the erasures take (``storage.rewrite``), unless it holds
nothing of it. The active one is only looked through: it must be sealed first if it does.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tailrace.protocol.batch import BadBatch, BatchError, BatchHeader, decode_columns
from tailrace.storage.disk import Disk
from tailrace.storage.erasure import Selection, Target
from tailrace.storage.rewrite import (
    RewriteRefused,
    Rewritten,
    SegmentSource,
    offsets_of,
    rewrite,
)
from tailrace.storage.scan import REASONS, Scanner


@dataclass(frozen=True, slots=True)
class EraseJob:
    """Take from one segment what the targets want, and what lies below the log start."""

    directory: str
    source: SegmentSource  # of an active segment: what of it is durable
    sealed: bool
    seed: int
    start: int
    targets: tuple[Target, ...]
    index_interval: int


@dataclass(frozen=True, slots=True)
class Erased:
    """What the job found; for a sealed segment the half-made swap file waits to be published."""

    found: bool
    counts: tuple[int, ...] = ()  # for each target, records that no earlier pass had counted
    rewritten: Rewritten | None = None


def erase(disk: Disk, job: EraseJob, pace: Callable[[int], None]) -> Erased:
    """Do it. Raises ``RewriteRefused`` for damage and ``OSError``; no file is left then."""
    selection = Selection(job.targets, start=job.start)
    if not job.sealed:
        return Erased(_holds_any(disk, job, selection, pace))
    rewritten = rewrite(
        disk,
        job.directory,
        [job.source],
        job.seed,
        selection,
        index_interval=job.index_interval,
        pace=pace,
        glance=selection.glance,
    )
    if not rewritten.changed:
        return Erased(found=False)
    return Erased(True, tuple(selection.counts), rewritten)


def _holds_any(
    disk: Disk, job: EraseJob, selection: Selection, pace: Callable[[int], None]
) -> bool:
    """Whether the segment holds anything that is to go."""
    file = disk.open(job.source.path)
    try:
        scanner = Scanner(file, job.seed)
        position, seen = 0, 0
        while position < job.source.size_bytes:
            header = scanner.at(position)
            pace(scanner.read_bytes - seen)
            seen = scanner.read_bytes
            if not isinstance(header, BatchHeader):
                reason = REASONS[header.reason] if isinstance(header, BadBatch) else "zeros"
                raise RewriteRefused(job.source.path, position, reason)
            if _goes(scanner.entry(position, header.size_bytes), header, selection, job, position):
                return True
            position += header.size_bytes
    finally:
        file.close()
    return False


def _goes(
    entry: memoryview, header: BatchHeader, selection: Selection, job: EraseJob, position: int
) -> bool:
    """Whether anything of a batch is to go."""
    if not header.record_count or header.is_control:
        return False
    seen = selection.glance(header)
    if seen != "open":
        return seen == "drop"
    try:
        columns = decode_columns(entry, header)
    except BatchError as error:
        raise RewriteRefused(job.source.path, position, error.reason) from error
    return bool(selection.find(columns, offsets_of(header, columns)))
