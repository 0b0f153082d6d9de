"""Surveying a stretch of a log for compaction: what is superseded, segment by segment.

The shell around ``storage.compaction``: it reads sealed segments from the newest batch to the
oldest, a few MiB at a time, and leaves the marks in a file beside them, so that each part of the
log can then be rewritten by a job of its own. Invariants:

- every batch is verified each time it is read (R24); what is unsound ends the survey;
- files are read, never mapped: what is read once must not count as memory of the process;
- the marks hold no byte of any record; their file is ``.tmp``, so that recovery removes one that a
  crash left behind.
"""

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from tailrace.protocol.batch import (
    ATTRIBUTE_DELETE_HORIZON,
    BadBatch,
    BatchError,
    BatchHeader,
    decode_columns,
    scan_one,
)
from tailrace.storage.checkpoint import TEMPORARY
from tailrace.storage.compaction import (
    EVERYWHERE,
    KEYS_PER_PASS_MAX,
    Cleaning,
    KeyBatch,
    Marks,
    SegmentFindings,
    has_marks,
    marks_bytes,
    survey,
    tombstones,
)
from tailrace.storage.disk import Disk
from tailrace.storage.rewrite import RewriteRefused, Rewritten, SegmentSource, rewrite
from tailrace.storage.scan import REASONS, Scanner

STRETCH_BYTES = 4 * 1024 * 1024  # read at once, going backwards

Pace = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class SurveyJob:
    """Find what is superseded in neighbouring or single sealed segments, oldest first.

    Segments that end above ``clean_below`` are dirty. ``hash_seed``: random, for this run alone.
    """

    directory: str
    sources: tuple[SegmentSource, ...]
    seed: int
    clean_below: int
    whole_below: int  # tombstones below may go once their time has come
    now_ms: int
    hash_seed: int
    keys_max: int = KEYS_PER_PASS_MAX
    cleaned_min: int = EVERYWHERE  # and only below this: other replicas have what is older (R39)


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What is known of one segment."""

    source: SegmentSource
    records: int
    superseded: int
    keyless: int
    closed: int  # batches that cannot be decoded, and stay
    removable: int  # batches whose tombstones may go
    unstamped: int  # batches whose tombstones have no delete horizon yet
    next_horizon_ms: int | None  # the first that is still to pass
    waits: bool  # tombstones whose horizon has passed wait for other replicas
    marks_at: int  # where its marks begin in the file
    marks_end: int
    marks_check: int  # xxh3-64 of them

    @property
    def changes(self) -> bool:
        """Whether rewriting it would change it."""
        return bool(self.superseded or self.removable or self.unstamped)


@dataclass(frozen=True, slots=True)
class Survey:
    """What the job found."""

    marks_path: str
    segments: tuple[Surveyed, ...]
    walks: int
    read_bytes: int


@dataclass(frozen=True, slots=True)
class CompactJob:
    """Rewrite neighbouring segments that were surveyed into one."""

    directory: str
    segments: tuple[Surveyed, ...]
    marks_path: str
    seed: int
    now_ms: int
    tombstone_retention_ms: int
    whole_below: int
    index_interval: int
    cleaned_min: int = EVERYWHERE


@dataclass(frozen=True, slots=True)
class Compacted:
    """What the job left; the half-made swap file waits to be published if anything changed."""

    rewritten: Rewritten
    tombstones_removed: int
    next_horizon_ms: int | None
    waits: bool  # as of what was surveyed


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Batches that are read at once."""

    segment: int
    position: int
    size_bytes: int
    at: int  # where the marks of its first batch are


def marks_path(directory: str) -> str:
    """Where a survey leaves its marks."""
    return f"{directory}/compaction-marks{TEMPORARY}"


def run_survey(disk: Disk, job: SurveyJob, pace: Pace) -> Survey:
    """Do it. Raises ``RewriteRefused`` for damage and ``OSError``; no file is left then."""
    reading = _Reading(disk, job, pace)
    findings = [SegmentFindings() for _ in job.sources]
    walks = 0
    if any(map(reading.is_dirty, range(len(job.sources)))):
        walks = survey(
            reading.newest_first, reading.marks, findings, seed=job.hash_seed, keys_max=job.keys_max
        )
    path = marks_path(job.directory)
    _write_marks(disk, path, reading.marks.data)
    segments = tuple(
        _surveyed(source, plan, found, reading.marks)
        for source, plan, found in zip(job.sources, reading.plans, findings, strict=True)
    )
    return Survey(path, segments, walks, reading.read_bytes)


def run_compaction(disk: Disk, job: CompactJob, pace: Pace) -> Compacted:
    """Do it. Raises ``RewriteRefused`` for damage and ``OSError``; no file is left then."""
    cleaning = Cleaning(
        Marks(_read_marks(disk, job)),
        now_ms=job.now_ms,
        tombstone_retention_ms=job.tombstone_retention_ms,
        whole_below=job.whole_below,
        cleaned_min=job.cleaned_min,
    )
    rewritten = rewrite(
        disk,
        job.directory,
        [segment.source for segment in job.segments],
        job.seed,
        cleaning,
        index_interval=job.index_interval,
        pace=pace,
        glance=cleaning.glance,
    )
    removed = cleaning.tombstones_removed
    return Compacted(rewritten, removed, cleaning.next_horizon_ms, cleaning.waits)


def _surveyed(
    source: SegmentSource, plan: "_Plan", found: SegmentFindings, marks: Marks
) -> Surveyed:
    return Surveyed(
        source=source,
        records=plan.records,
        superseded=found.superseded,
        keyless=found.keyless,
        closed=found.closed,
        removable=plan.removable,
        unstamped=found.unstamped,
        next_horizon_ms=plan.next_horizon_ms,
        waits=plan.waits,
        marks_at=plan.marks_at,
        marks_end=plan.marks_end,
        marks_check=xxh3_64_intdigest(memoryview(marks.data)[plan.marks_at : plan.marks_end]),
    )


def _write_marks(disk: Disk, path: str, data: bytearray) -> None:
    disk.remove(path)
    file = disk.open(path, create=True)
    try:
        file.write([data], 0)
    except OSError:
        disk.remove(path)
        raise
    finally:
        file.close()


def _read_marks(disk: Disk, job: CompactJob) -> bytearray:
    """The marks of the job's segments, one after another."""
    file = disk.open(job.marks_path)
    try:
        data = bytearray()
        for one in job.segments:
            part = file.read(one.marks_end - one.marks_at, one.marks_at)
            if xxh3_64_intdigest(part) != one.marks_check:
                raise OSError(errno.EIO, "the marks are not those of the survey", job.marks_path)
            data += part
        return data
    finally:
        file.close()


@dataclass(slots=True)
class _Plan:
    """What the headers of one segment say."""

    marks_at: int
    marks_end: int
    records: int = 0
    removable: int = 0
    next_horizon_ms: int | None = None
    waits: bool = False


class _Reading:
    """The segments of one survey."""

    def __init__(self, disk: Disk, job: SurveyJob, pace: Pace) -> None:
        self.read_bytes = 0
        self.plans: list[_Plan] = []
        self._disk = disk
        self._job = job
        self._pace = pace
        self._stretches: list[_Stretch] = []
        self._walks = 0
        end = 0
        for number, source in enumerate(job.sources):
            end = self._plan(number, source, end)
        self.marks = Marks(bytearray(end))

    def is_dirty(self, segment: int) -> bool:
        return self._job.sources[segment].next_offset > self._job.clean_below

    def newest_first(self) -> Iterable[KeyBatch]:
        """Every batch that has marks."""
        for stretch in reversed(self._stretches):
            data = memoryview(self._read(stretch))
            found: list[tuple[BatchHeader, int, int]] = []
            position, at = 0, stretch.at
            while position < len(data):
                header = self._batch(stretch, data, position)
                if has_marks(header):
                    found.append((header, position, at))
                    at += marks_bytes(header.record_count)
                position += header.size_bytes
            for header, position, at in reversed(found):
                entry = data[position : position + header.size_bytes]
                yield self._keys(stretch.segment, header, entry, at)

    def _keys(self, segment: int, header: BatchHeader, entry: memoryview, at: int) -> KeyBatch:
        dirty, records = self.is_dirty(segment), header.record_count
        try:
            # All columns, not the keys alone: a record that nobody can decode must not supersede
            # one that can be read.
            columns = decode_columns(entry, header)
        except BatchError:
            return KeyBatch(segment, at, None, records, dirty, closed=True)
        stamped = bool(header.attributes & ATTRIBUTE_DELETE_HORIZON)
        unstamped = not stamped and bool(tombstones(columns, range(records)))
        return KeyBatch(segment, at, columns.keys, records, dirty, tombstones=unstamped)

    def _plan(self, number: int, source: SegmentSource, at: int) -> int:
        """Look at every header of a segment; where its marks end."""
        plan = _Plan(at, at)
        begin, begin_at = 0, at
        for position, header in self._headers(source):
            end = position + header.size_bytes
            if has_marks(header):
                at += marks_bytes(header.record_count)
                plan.records += header.record_count
                self._plan_horizon(plan, header)
            if end - begin >= STRETCH_BYTES or end == source.size_bytes:
                self._stretches.append(_Stretch(number, begin, end - begin, begin_at))
                begin, begin_at = end, at
        plan.marks_end = at
        self.plans.append(plan)
        return at

    def _plan_horizon(self, plan: _Plan, header: BatchHeader) -> None:
        if not header.attributes & ATTRIBUTE_DELETE_HORIZON:
            return
        horizon_ms = header.base_timestamp
        if horizon_ms >= self._job.now_ms:
            plan.next_horizon_ms = min(horizon_ms, plan.next_horizon_ms or horizon_ms)
        elif header.next_offset > self._job.whole_below:
            return
        elif header.next_offset <= self._job.cleaned_min:
            plan.removable += 1
        else:
            plan.waits = True

    def _headers(self, source: SegmentSource) -> Iterator[tuple[int, BatchHeader]]:
        file = self._disk.open(source.path)
        try:
            scanner = Scanner(file, self._job.seed)
            position, seen = 0, 0
            while position < source.size_bytes:
                found = scanner.at(position)
                self._told(scanner.read_bytes - seen)
                seen = scanner.read_bytes
                if not isinstance(found, BatchHeader):
                    reason = REASONS[found.reason] if isinstance(found, BadBatch) else "zeros"
                    raise RewriteRefused(source.path, position, reason)
                yield position, found
                position += found.size_bytes
        finally:
            file.close()

    def _read(self, stretch: _Stretch) -> bytes:
        path = self._job.sources[stretch.segment].path
        file = self._disk.open(path)
        try:
            data = file.read(stretch.size_bytes, stretch.position)
        finally:
            file.close()
        self._told(len(data))
        if len(data) < stretch.size_bytes:
            raise RewriteRefused(path, stretch.position + len(data), "the file ends here")
        return data

    def _batch(self, stretch: _Stretch, data: memoryview, position: int) -> BatchHeader:
        found = scan_one(data, position, self._job.seed)
        if isinstance(found, BatchHeader):
            return found
        reason = REASONS[found.reason] if isinstance(found, BadBatch) else "zeros"
        path = self._job.sources[stretch.segment].path
        raise RewriteRefused(path, stretch.position + position, reason)

    def _told(self, size_bytes: int) -> None:
        if size_bytes:
            self.read_bytes += size_bytes
            self._pace(size_bytes)
