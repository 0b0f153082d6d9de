"""Looking at log files without a broker: what is in them, and whether it is sound.

Read-only: files are opened for reading, nothing is locked, a broker may be running. What it is
appending meanwhile may look torn; a segment that it removes or replaces is looked at again. The
values have the fields of the documents that
``tailrace segment`` prints (``dataclasses.asdict`` gives them).

The topic id and partition that seed the header check come from the name of the directory that
holds the file, so a file that was moved elsewhere fails it, as it should.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from tailrace.protocol import texts, texts_cli, texts_storage
from tailrace.protocol.batch import (
    ATTRIBUTE_DELETE_HORIZON,
    FORMAT_COLUMNS,
    HEADER_BYTES,
    BatchError,
    BatchHeader,
    Columns,
    decode_columns,
    header_ok,
    parse_header,
    payload_ok,
)
from tailrace.protocol.errors import InputError, TailraceError
from tailrace.storage.directory import parse_partition_name
from tailrace.storage.index import Index, Summary, decode_index
from tailrace.storage.log_file import LOG, LogFile, State, files_in
from tailrace.storage.salvage import MISSING

LOOKS_MAX = 5  # at a file that a broker replaces meanwhile
INTERVAL_BYTES = 4096  # of an index made here for a segment that has no index file


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """One log file of a directory. Times in ms; None: no sound batch."""

    file: str
    topic_id: str
    partition: int
    base_offset: int
    next_offset: int
    batches: int
    records: int
    size_bytes: int  # up to the end of the last sound batch
    first_append_time: int | None
    last_append_time: int | None
    sealed: bool
    state: State  # "swap": takes the place of those that are "replaced", its name apart


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """One batch of a file, as its header tells it."""

    position: int
    size_bytes: int
    format: Literal["columns", "kafka"]
    base_offset: int
    last_offset: int
    records: int
    leader_epoch: int
    append_time: int
    base_timestamp: int
    max_timestamp: int
    delete_horizon: int | None  # ms: tombstones here may go then; it stands as base timestamp
    producer_id: int
    producer_epoch: int
    base_sequence: int
    compression: str
    control: bool
    transactional: bool
    checksum: str  # 16 hex digits
    checksum_ok: bool
    header_ok: bool  # False: nothing of it is known but its place, and what follows it
    problem: str | None = None  # why it does not count
    torn: bool = False  # what a crash leaves behind an unfinished write


@dataclass(frozen=True, slots=True)
class FileError:
    """The first thing wrong in a file."""

    position: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class FileReport:
    """What verifying one file found. A torn tail alone is ok."""

    file: str
    ok: bool
    batches: int
    records: int
    size_bytes: int
    torn_bytes: int
    error: FileError | None


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """One entry of an index."""

    offset: int
    position: int
    append_time: int


def list_segments(directory: str) -> list[SegmentInfo]:
    """The segments of a partition's directory, or of all below a data directory."""
    found: list[SegmentInfo] = []
    for path in _log_files([directory]):
        with suppress(_Vanished), _open(path, listed=True) as file:
            found.append(_segment_info(file))
    return found


def dump(path: str) -> Iterator[tuple[BatchInfo, Columns | None]]:
    """Every batch of a log file and, where its bytes are sound, its records.

    A batch with a bad payload is shown by its header. Of bytes without a sound header only the
    place is known, and what follows: they are one entry, up to the next sound batch.
    """
    with LogFile(path) as file:
        bad: tuple[int, str] | None = None  # what has no sound header
        expected = file.base_offset
        for position, found in file.sound():
            base = found.base_offset if isinstance(found, BatchHeader) else expected
            if bad is not None:
                yield _damage_info(file, *bad, expected, position, base), None
                bad = None
            header = _header_at(file, position) if isinstance(found, str) else found
            if header is None:
                assert isinstance(found, str)
                bad, expected = (position, found), base
                continue
            entry = memoryview(file.read(header.size_bytes, position))
            info = _batch_info(position, header, entry, file.seed)
            if isinstance(found, str):
                info = replace(info, problem=found, torn=file.is_torn(base, position))
            else:
                expected = found.next_offset
            columns: Columns | None = None
            if info.checksum_ok and header.payload_format == FORMAT_COLUMNS:
                try:
                    columns = decode_columns(entry, header)
                except BatchError:
                    columns = None
            yield info, columns
        if bad is not None:
            end = max(expected, file.durable_offset)
            yield _damage_info(file, *bad, expected, file.data_end(bad[0]), end), None


def _header_at(file: LogFile, position: int) -> BatchHeader | None:
    """The header of something that is unsound, if at least that can be believed."""
    head = file.read(HEADER_BYTES, position)
    try:
        return parse_header(head) if header_ok(head, 0, file.seed) else None
    except BatchError:
        return None


def _damage_info(
    file: LogFile, position: int, reason: str, first: int, end: int, next_offset: int
) -> BatchInfo:
    """Bytes [position, end), in the place of offsets [first, next_offset)."""
    return BatchInfo(
        position=position,
        size_bytes=end - position,
        format="columns",
        base_offset=first,
        last_offset=next_offset - 1,
        records=0,
        leader_epoch=-1,
        append_time=-1,
        base_timestamp=-1,
        max_timestamp=-1,
        delete_horizon=None,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        compression="none",
        control=False,
        transactional=False,
        checksum="0" * 16,
        checksum_ok=False,
        header_ok=False,
        problem=reason,
        torn=file.is_torn(first, position),
    )


def verify(paths: Sequence[str]) -> list[FileReport]:
    """Verify log files, or all below directories, down to the columns of every batch.

    An index file that is sound but does not fit its log file is reported too; one that is not is
    only rebuilt. In directories what a swap file replaces is left out.
    """
    reports: list[FileReport] = []
    for path in _log_files(paths):
        listed = path not in paths
        for look in range(1, LOOKS_MAX + 1):
            try:
                file = _open(path, listed=listed)
            except _Vanished:
                break
            with file:
                if listed and file.state == "replaced":
                    break
                found = _verify(file)
                if look == LOOKS_MAX or all(one.ok for one in found) or file.is_current():
                    reports += found
                    break
    return reports


def index_entries(path: str) -> list[IndexInfo]:
    """The index of a segment: its file's if that is sound, else made from the log file.

    ``path``: the index, the log file, or a swap file.
    """
    log = path.removesuffix(".index") + LOG if path.endswith(".index") else path
    with LogFile(log) as file:
        stored = _stored_index(file)
        index = stored[1] if stored is not None else Index(file.base_offset)
        if stored is None:
            due = 0
            for position, batch in file.sound():
                if isinstance(batch, BatchHeader) and position >= due:
                    index.add(batch.base_offset, position, batch.append_time)
                    due = position + INTERVAL_BYTES
    return [IndexInfo(*entry) for entry in index]


class _Vanished(Exception):
    """A file that was listed is not there any more."""


def _open(path: str, *, listed: bool) -> LogFile:
    """``listed``: it was found in a directory, where a broker may have removed it since."""
    try:
        return LogFile(path)
    except InputError:
        if listed and not os.path.exists(path):
            raise _Vanished from None
        raise


def _stored_index(file: LogFile) -> tuple[Summary, Index] | None:
    """Of its file; None where that is missing, unsound, or another file's."""
    if file.state in ("swap", "replaced"):
        return None
    try:
        with open(file.index_path, "rb") as stored:
            return decode_index(stored.read(), file.base_offset)
    except FileNotFoundError:
        return None


def _log_files(paths: Sequence[str]) -> list[str]:
    found: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        for directory, folders, names in os.walk(path):
            folders.sort()
            if parse_partition_name(os.path.basename(os.path.abspath(directory))) is not None:
                found += [f"{directory}/{name}" for name in files_in(names)]
    return found


def _segment_info(file: LogFile) -> SegmentInfo:
    batches = records = size_bytes = 0
    next_offset, times = file.base_offset, list[int]()
    for position, found in file.sound():
        if isinstance(found, BatchHeader):
            batches += 1
            records += found.record_count
            size_bytes = position + found.size_bytes
            next_offset = found.next_offset
            times = [times[0] if times else found.append_time, found.append_time]
    return SegmentInfo(
        file=file.path,
        topic_id=file.topic_id.hex(),
        partition=file.partition,
        base_offset=file.base_offset,
        next_offset=file.end_offset if file.end_offset is not None else next_offset,
        batches=batches,
        records=records,
        size_bytes=size_bytes,
        first_append_time=times[0] if times else None,
        last_append_time=times[1] if times else None,
        sealed=file.state != "active",
        state=file.state,
    )


def _batch_info(position: int, header: BatchHeader, entry: memoryview, seed: int) -> BatchInfo:
    whole = len(entry) >= header.size_bytes
    marked = bool(header.attributes & ATTRIBUTE_DELETE_HORIZON)
    return BatchInfo(
        position=position,
        size_bytes=header.size_bytes,
        format="columns" if header.payload_format == FORMAT_COLUMNS else "kafka",
        base_offset=header.base_offset,
        last_offset=header.last_offset,
        records=header.record_count,
        leader_epoch=header.leader_epoch,
        append_time=header.append_time,
        base_timestamp=header.base_timestamp,
        max_timestamp=header.max_timestamp,
        delete_horizon=header.base_timestamp if marked else None,
        producer_id=header.producer_id,
        producer_epoch=header.producer_epoch,
        base_sequence=header.base_sequence,
        compression=header.compression,
        control=header.is_control,
        transactional=header.is_transactional,
        checksum=f"{header.payload_checksum:016x}",
        checksum_ok=whole and payload_ok(entry, 0, header.size_bytes),
        header_ok=header_ok(entry, 0, seed),
    )


def _verify(file: LogFile) -> list[FileReport]:
    """The report of a log file, and that of its index if there is something wrong with it."""
    batches = records = size_bytes = torn_bytes = 0
    next_offset, epoch, time = file.base_offset, -1, -1
    problem: FileError | None = None
    bad: tuple[int, str] | None = None  # damage of which the end is not known yet
    index = _IndexCheck(_stored_index(file))
    walk = file.sound()
    for position, found in walk:
        fault: TailraceError | None = None
        if bad is not None:
            known = found.base_offset if isinstance(found, BatchHeader) else None
            problem = problem or _damage(file, bad, next_offset, known)
            bad = None
        if isinstance(found, BatchHeader):
            fault = _inner_fault(file, position, found, epoch, time)
            epoch, time = found.leader_epoch, found.append_time
            batches += 1
            records += found.record_count
            size_bytes = position + found.size_bytes
            next_offset = found.next_offset
            index.take(position, found)
        elif next_offset < file.durable_offset:
            bad = (position, found)
        else:
            torn_bytes = file.data_end(position) - position
            if any(isinstance(behind, BatchHeader) for _, behind in walk):
                reason = f"{found}, yet sound batches lie behind"
                fault = _corruption(file, position, reason, next_offset, None)
        if fault is not None and problem is None:
            problem = FileError(position, fault.code, fault.message)
    missing: list[FileReport] = []
    if bad is not None and file.is_followed_by_gap(next_offset, bad[0]):
        missing.append(_missing(file, next_offset))
    elif bad is not None:
        problem = problem or _damage(file, bad, next_offset, file.durable_offset)
    report = FileReport(
        file.path, problem is None, batches, records, size_bytes, torn_bytes, problem
    )
    others = [] if problem is not None else index.reports(file)
    return [report, *others, *missing]


def _damage(
    file: LogFile, bad: tuple[int, str], first_offset: int, next_offset: int | None
) -> FileError:
    """What is bad at a position, for a reason; ``next_offset``: of what is sound behind it."""
    position, reason = bad
    error = _corruption(file, position, reason, first_offset, next_offset)
    return FileError(position, error.code, error.message)


def _missing(file: LogFile, first_offset: int) -> FileReport:
    """The report of a file that should be behind this one."""
    path = f"{os.path.dirname(file.path)}/{first_offset:020}{LOG}"
    error = texts_storage.corruption_found(
        path,
        position=0,
        reason=MISSING,
        first_offset=first_offset,
        next_offset=file.durable_offset,
    )
    return FileReport(path, False, 0, 0, 0, 0, FileError(0, error.code, error.message))


class _IndexCheck:
    """An index held against the batches of its segment, in one walk over both."""

    def __init__(self, stored: tuple[Summary, Index] | None) -> None:
        self._summary = None if stored is None else stored[0]
        self._entries = iter(()) if stored is None else iter(stored[1])
        self._due = next(self._entries, None)
        self._end_seen = stored is None or stored[0].size_bytes == 0

    def take(self, position: int, found: BatchHeader) -> None:
        """The next batch."""
        if self._due == (found.base_offset, position, found.append_time):
            self._due = next(self._entries, None)
        told = self._summary
        if told is not None and told.size_bytes == position + found.size_bytes:
            self._end_seen = told.next_offset == found.next_offset

    def reports(self, file: LogFile) -> list[FileReport]:
        """What is wrong with it, after the last batch."""
        if self._summary is None or (self._due is None and self._end_seen):
            return []
        where = "its end" if self._due is None else f"an entry for offset {self._due.offset}"
        error = texts_cli.index_misfits(file.index_path, where=where)
        position = self._summary.size_bytes if self._due is None else self._due.position
        found = FileError(position, error.code, error.message)
        return [FileReport(file.index_path, False, 0, 0, 0, 0, found)]


def _corruption(
    file: LogFile, position: int, reason: str, first_offset: int, next_offset: int | None
) -> TailraceError:
    return texts_storage.corruption_found(
        file.path,
        position=position,
        reason=reason,
        first_offset=first_offset,
        next_offset=next_offset,
    )


def _inner_fault(
    file: LogFile, position: int, header: BatchHeader, epoch: int, time: int
) -> TailraceError | None:
    """What is wrong with a batch whose checks pass: its place in the log, or its columns."""
    base = header.base_offset
    if header.leader_epoch < epoch:
        reason = f"leader epoch falls from {epoch} to {header.leader_epoch}"
        return _corruption(file, position, reason, base, header.next_offset)
    if header.append_time < time:
        reason = f"append time falls from {time} to {header.append_time}"
        return _corruption(file, position, reason, base, header.next_offset)
    if header.payload_format == FORMAT_COLUMNS:
        try:
            decode_columns(file.read(header.size_bytes, position), header)
        except BatchError as error:
            return texts.corrupt_batch(
                file.topic_id.hex(), file.partition, offset=base, broker="local", reason=str(error)
            )
    return None
