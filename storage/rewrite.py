"""Rewriting sealed segments without some of their records: for compaction and erasure.

One or several neighbouring segments become one new file, written beside them whole and synced;
``storage.maintenance`` puts it in their place. Invariants:

- the chain stays dense: what is left of a batch keeps its offsets, and a run of batches of which
  nothing is left becomes one batch without records over the same offsets (docs/log_format.md),
  so that recovery's checks and ``locate`` know no gaps;
- what is left of a batch that was at its limits, and would grow beyond them, becomes several
  (``storage.thinning``);
- such a run never crosses a change of leader epoch, so that epochs begin where they began;
- every batch is verified before it is believed, and so is the new file before it is handed over
  (R24): what is unsound is refused, and then nothing has changed;
- control batches stay byte for byte, as does every batch that loses nothing.

Not here: which records stay (the verdict's), the log, threads. May run in another process.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from tailrace.protocol.batch import (
    ATTRIBUTE_DELETE_HORIZON,
    BadBatch,
    BatchError,
    BatchHeader,
    Columns,
    EndOfLog,
    decode_columns,
)
from tailrace.storage.disk import Disk
from tailrace.storage.index import Summary
from tailrace.storage.scan import REASONS, Scanner
from tailrace.storage.segment import OFFSETS_MAX, SEGMENT_BYTES_MAX
from tailrace.storage.segment_writer import Writer, empty_batch
from tailrace.storage.swap import SwapName
from tailrace.storage.thinning import Kept, thin

__all__ = [
    "FromOffset",
    "Glance",
    "Kept",
    "RewriteRefused",
    "Rewritten",
    "SegmentSource",
    "Verdict",
    "Writer",
    "empty_batch",
    "offsets_of",
    "rewrite",
]

Glance = Literal["keep", "drop", "open"]


class RewriteRefused(Exception):
    """A batch is not what it should be: nothing was changed, and nothing may be built on it."""

    def __init__(self, file: str, position: int, reason: str) -> None:
        super().__init__(f"{file} byte {position}: {reason}")
        self.file = file
        self.position = position
        self.reason = reason


class Verdict(Protocol):
    """Which records of a batch stay; None: all, the batch stays byte for byte.

    ``offsets`` are the records' own. Asked once for every batch that holds any, in their order.
    """

    def __call__(
        self, header: BatchHeader, columns: Columns, offsets: Sequence[int], /
    ) -> Kept | None: ...


@dataclass(frozen=True, slots=True)
class SegmentSource:
    """A sealed segment as it stands on the disk."""

    path: str
    base_offset: int
    next_offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What a rewrite left, synced, in the half-made swap file; no file if nothing ``changed``."""

    base_offset: int
    next_offset: int
    summary: Summary
    index: bytes  # entries as in an index file
    read_bytes: int
    written_bytes: int
    records_kept: int
    records_dropped: int
    changed: bool


def open_all(_: BatchHeader) -> Glance:
    """No batch can be told by its header."""
    return "open"


class FromOffset:
    """The verdict of a log whose start moved: records below it go."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __call__(
        self, header: BatchHeader, columns: Columns, offsets: Sequence[int]
    ) -> Kept | None:
        return Kept([at for at, offset in enumerate(offsets) if offset >= self._start])

    def glance(self, header: BatchHeader) -> Glance:
        """Most batches need not be opened for it."""
        if header.base_offset >= self._start:
            return "keep"
        return "drop" if header.next_offset <= self._start else "open"


def rewrite(
    disk: Disk,
    directory: str,
    sources: Sequence[SegmentSource],
    seed: int,
    verdict: Verdict,
    *,
    index_interval: int,
    pace: Callable[[int], None],
    glance: Callable[[BatchHeader], Glance] = open_all,
) -> Rewritten:
    """Write what stays of neighbouring segments (oldest first) into one half-made swap file.

    ``glance`` tells by the header alone which batches need not be opened; ``pace`` is told of
    every stretch of bytes read or written, may wait, and may raise to give up. A single segment
    that loses nothing is only read. Raises ``RewriteRefused`` for a batch that is unsound and
    ``OSError``; no file is left by any error.
    """
    base, following = sources[0].base_offset, sources[-1].next_offset
    assert all(a.next_offset == b.base_offset for a, b in pairwise(sources))
    assert following - base <= OFFSETS_MAX, "one segment cannot hold so many offsets"
    assert sum(source.size_bytes for source in sources) <= SEGMENT_BYTES_MAX
    path = SwapName(base, following).half_made(directory)
    # The file is begun anew, not overwritten: whoever may still write to an older one of that
    # name, a process that was given up, writes to another file.
    disk.remove(path)
    work = _Rewriting(disk, path, sources, seed, index_interval, pace)
    done = False
    try:
        work.run(verdict, glance)
        done = work.writer.changed
    finally:
        work.close()
        if not done:
            work.writer.discard()
    return Rewritten(
        base_offset=base,
        next_offset=following,
        summary=work.writer.summary(),
        index=work.writer.index.content(),
        read_bytes=work.read_bytes,
        written_bytes=work.writer.written_bytes,
        records_kept=work.kept,
        records_dropped=work.dropped,
        changed=done,
    )


class _Rewriting:
    """One run of ``rewrite``."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        sources: Sequence[SegmentSource],
        seed: int,
        index_interval: int,
        pace: Callable[[int], None],
    ) -> None:
        self.read_bytes = 0
        self.kept = 0  # records
        self.dropped = 0
        self._disk = disk
        self._path = path
        self._sources = sources
        self._seed = seed
        self._pace = pace
        self._origin = disk.open(sources[0].path) if len(sources) == 1 else None
        self.writer = Writer(
            disk,
            path,
            seed,
            sources[0].base_offset,
            index_interval,
            origin=self._origin,
            pace=pace,
        )

    def run(self, verdict: Verdict, glance: Callable[[BatchHeader], Glance]) -> None:
        chain = _Chain()
        for source in self._sources:
            for position, header, entry in self._walk(source, chain):
                self._judge(source, position, header, entry, verdict, glance)
        self.writer.finish()
        if self.writer.changed:
            self._check()

    def close(self) -> None:
        if self._origin is not None:
            self._origin.close()

    def _judge(
        self,
        source: SegmentSource,
        position: int,
        header: BatchHeader,
        entry: memoryview,
        verdict: Verdict,
        glance: Callable[[BatchHeader], Glance],
    ) -> None:
        count = header.record_count
        if count == 0 or header.is_control or (seen := glance(header)) == "keep":
            self.writer.keep(header, entry)
            self.kept += count
            return
        if seen == "drop":
            self.writer.empty(header)
            self.dropped += count
            return
        try:
            columns = decode_columns(entry, header)
            kept = verdict(header, columns, offsets_of(header, columns))
            if kept is None or _is_all(kept, header):
                self.writer.keep(header, entry)
            elif kept.keep:
                for part, left in thin(header, columns, kept, seed=self._seed):
                    if part.record_count:
                        self.writer.replace(part, left)
                    else:
                        self.writer.empty(part)
            else:
                self.writer.empty(header)
        except BatchError as error:
            raise RewriteRefused(source.path, position, error.reason) from error
        stay = count if kept is None else len(kept.keep)
        self.kept += stay
        self.dropped += count - stay

    def _check(self) -> None:
        """The new file must hold what it was made of: it will be the only copy."""
        made = self.writer.summary()
        source = SegmentSource(self._path, made.base_offset, made.next_offset, made.size_bytes)
        records = batches = 0
        for _, header, _ in self._walk(source, _Chain()):
            records += header.record_count
            batches += 1
        assert (records, batches) == (made.records, made.batches) == (self.kept, made.batches)

    def _walk(
        self, source: SegmentSource, chain: "_Chain"
    ) -> Iterator[tuple[int, BatchHeader, memoryview]]:
        """Every batch of a segment with its position, verified, or ``RewriteRefused``."""
        file = self._disk.open(source.path)
        try:
            scanner = Scanner(file, self._seed)
            position, offset, seen = 0, source.base_offset, 0
            while offset < source.next_offset:
                found = scanner.at(position)
                if scanner.read_bytes > seen:
                    self._pace(scanner.read_bytes - seen)
                    self.read_bytes += scanner.read_bytes - seen
                    seen = scanner.read_bytes
                reason = chain.fault(found, offset, source.next_offset)
                if reason is not None:
                    raise RewriteRefused(source.path, position, reason)
                assert isinstance(found, BatchHeader)
                yield position, found, scanner.entry(position, found.size_bytes)
                position, offset = position + found.size_bytes, found.next_offset
            if position != source.size_bytes:
                reason = f"the segment ends here, not at byte {source.size_bytes}"
                raise RewriteRefused(source.path, position, reason)
        finally:
            file.close()


class _Chain:
    """What every batch must continue; epochs and append times never fall (S9, R20)."""

    def __init__(self) -> None:
        self._epoch = -1
        self._time = -1

    def fault(
        self, found: BatchHeader | EndOfLog | BadBatch, expected: int, end: int
    ) -> str | None:
        """Why what was found does not continue the segment, or None if it does."""
        if isinstance(found, EndOfLog):
            return "zeros where a batch should be"
        if isinstance(found, BadBatch):
            return REASONS[found.reason]
        if found.base_offset != expected or found.next_offset > end:
            return (
                f"offsets {found.base_offset} to {found.last_offset} where {expected} should "
                f"follow, in a segment that ends at {end}"
            )
        if found.leader_epoch < self._epoch or found.append_time < self._time:
            return (
                f"leader epoch or append time falls: from {self._epoch} to {found.leader_epoch}, "
                f"from {self._time} to {found.append_time} ms"
            )
        self._epoch, self._time = found.leader_epoch, found.append_time
        return None


def offsets_of(header: BatchHeader, columns: Columns) -> Sequence[int]:
    """The offset of every record of a batch."""
    base, deltas = header.base_offset, columns.offsets
    if deltas is None:
        return range(base, base + header.record_count)
    return list(map(base.__add__, deltas))


def _is_all(kept: Kept, header: BatchHeader) -> bool:
    """Whether a verdict leaves the batch as it is."""
    if len(kept.keep) < header.record_count:
        return False
    if kept.delete_horizon_ms is None:
        return True
    marked = bool(header.attributes & ATTRIBUTE_DELETE_HORIZON)
    return marked and header.base_timestamp == kept.delete_horizon_ms
