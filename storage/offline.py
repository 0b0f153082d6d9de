"""Looking at log files without a broker: what is in them, and whether it is sound.

Read-only: files are opened for reading, nothing is locked, a broker may be running. What it is
appending meanwhile may look torn. The values have the fields of the documents that
``tailrace segment`` prints (``dataclasses.asdict`` gives them).

The topic id and partition that seed the header check come from the name of the directory that
holds the file, so a file that was moved elsewhere fails it, as it should.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tailrace.protocol import texts, texts_cli
from tailrace.protocol.batch import (
    FORMAT_COLUMNS,
    HEADER_BYTES,
    BadBatch,
    BatchError,
    BatchHeader,
    Columns,
    decode_columns,
    header_ok,
    header_seed,
    parse_header,
    payload_ok,
)
from tailrace.protocol.errors import TailraceError
from tailrace.storage import checkpoint, marks
from tailrace.storage.directory import parse_partition_name
from tailrace.storage.index import Index, decode_index
from tailrace.storage.recovery import numbered
from tailrace.storage.scan import REASONS, Scanner

LOG = ".log"
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
    producer_id: int
    producer_epoch: int
    base_sequence: int
    compression: str
    control: bool
    transactional: bool
    checksum: str  # 16 hex digits
    checksum_ok: bool
    header_ok: bool


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


def place_of(path: str) -> tuple[bytes, int, int]:
    """Topic id, partition and base offset of a log file, by the names in its path.

    Raises InputError T062 if the path is no log file of a partition.
    """
    directory, _, name = os.path.abspath(path).rpartition("/")
    where = parse_partition_name(directory.rpartition("/")[2])
    bases = numbered([name], "", LOG)
    if where is None or not bases:
        reason = f"{path} is not <topic id>-<partition>/<20 digits>{LOG}"
        raise texts_cli.invalid_input(reason, hint="See: tailrace segment --help")
    return (*where, bases[0])


class LogFile:
    """One log file, open for reading, with what its name and its neighbours say of it."""

    def __init__(self, path: str) -> None:
        """Raises InputError T062 if the path is no log file of a partition."""
        self.path = path
        self.topic_id, self.partition, self.base_offset = place_of(path)
        self.seed = header_seed(self.topic_id, self.partition)
        directory = os.path.dirname(os.path.abspath(path))
        later = [at for at in numbered(os.listdir(directory), "", LOG) if at > self.base_offset]
        self.end_offset = later[0] if later else None  # where the next segment begins
        mark = read_mark(directory)
        durable = mark.offset if mark is not None else None
        if self.end_offset is not None and (durable is None or durable > self.end_offset):
            durable = self.end_offset
        self.durable_offset = durable or self.base_offset  # a bad batch below: corruption
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise texts_cli.invalid_input(
                f"{path}: {error.strerror}", hint="See: tailrace segment list DIR"
            ) from None

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, length: int, position: int) -> bytes:
        return os.pread(self._descriptor, length, position)

    def next_data(self, position: int) -> int:
        seek_data: int | None = getattr(os, "SEEK_DATA", None)
        if seek_data is None or position >= self.size():
            return min(position, self.size())
        try:
            return os.lseek(self._descriptor, position, seek_data)
        except OSError:
            return self.size()

    def sound(self) -> Iterator[tuple[int, BatchHeader | str]]:
        """Every batch that continues the log with its position, and why one does not.

        Behind something bad it goes on with the next sound batch, if there is one.
        """
        scanner = Scanner(self, self.seed)
        position, expected = 0, self.base_offset
        while expected != self.end_offset:
            found = scanner.at(position)
            if isinstance(found, BatchHeader) and found.base_offset == expected:
                yield position, found
                position, expected = position + found.size_bytes, found.next_offset
                continue
            if isinstance(found, BatchHeader):
                reason = f"offset {found.base_offset} where {expected} should follow"
                search = position
            else:
                zeros = "zeros where a batch should be"
                reason = REASONS[found.reason] if isinstance(found, BadBatch) else zeros
                search = scanner.past(position)
            below = self.end_offset if self.end_offset is not None else 1 << 63
            resume = scanner.find(search, self.size(), expected, below)
            if resume is None and scanner.data_end(position) == position:
                if expected < self.durable_offset:
                    yield position, reason
                return
            yield position, reason
            if resume is None:
                return
            position, expected = resume

    def data_end(self, position: int) -> int:
        return Scanner(self, self.seed).data_end(position)


def list_segments(directory: str) -> list[SegmentInfo]:
    """The segments of a partition's directory, or of all below a data directory."""
    found: list[SegmentInfo] = []
    for path in _log_files([directory]):
        with LogFile(path) as file:
            found.append(_segment_info(file))
    return found


def dump(path: str) -> Iterator[tuple[BatchInfo, Columns | None]]:
    """Every batch of a log file and, where its bytes are sound, its records.

    A batch with a bad check is shown by what its header claims; bytes that are no batch at all
    are passed over (``verify`` names them). Stops at the end of the log.
    """
    with LogFile(path) as file:
        for position, found in file.sound():
            head = file.read(HEADER_BYTES, position)
            try:
                header = parse_header(head) if isinstance(found, str) else found
            except BatchError:
                continue
            entry = memoryview(file.read(header.size_bytes, position))
            info = _batch_info(position, header, entry, file.seed)
            columns: Columns | None = None
            if info.checksum_ok and header.payload_format == FORMAT_COLUMNS:
                try:
                    columns = decode_columns(entry, header)
                except BatchError:
                    columns = None
            yield info, columns


def verify(paths: Sequence[str]) -> list[FileReport]:
    """Verify log files, or all below directories, down to the columns of every batch."""
    reports: list[FileReport] = []
    for path in _log_files(paths):
        with LogFile(path) as file:
            reports.append(_verify(file))
    return reports


def index_entries(path: str) -> list[IndexInfo]:
    """The index of a segment: its file's if that is sound, else made from the log file.

    ``path``: the index or the log file.
    """
    stem = path.removesuffix(".index").removesuffix(LOG)
    with LogFile(stem + LOG) as file:
        found = None
        if os.path.exists(f"{stem}.index"):
            with open(f"{stem}.index", "rb") as index_file:
                found = decode_index(index_file.read(), file.base_offset)
        index = found[1] if found is not None else Index(file.base_offset)
        if found is None:
            due = 0
            for position, batch in file.sound():
                if isinstance(batch, BatchHeader) and position >= due:
                    index.add(batch.base_offset, position, batch.append_time)
                    due = position + INTERVAL_BYTES
    return [IndexInfo(*entry) for entry in index]


def read_mark(directory: str) -> marks.Mark | None:
    """The flushed mark of a partition's directory, None if it is missing or damaged."""
    try:
        with open(marks.flushed_path(directory), "rb") as file:
            data = file.read(4096)
    except OSError:
        return None
    body = checkpoint.decode(checkpoint.Kind.FLUSHED, data)
    return None if body is None else marks.decode_mark(body)


def _log_files(paths: Sequence[str]) -> list[str]:
    found: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        for directory, folders, names in os.walk(path):
            folders.sort()
            if parse_partition_name(os.path.basename(os.path.abspath(directory))) is not None:
                found += [f"{directory}/{at:020}{LOG}" for at in numbered(names, "", LOG)]
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
        sealed=file.end_offset is not None,
    )


def _batch_info(position: int, header: BatchHeader, entry: memoryview, seed: int) -> BatchInfo:
    whole = len(entry) >= header.size_bytes
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


def _verify(file: LogFile) -> FileReport:
    batches = records = size_bytes = torn_bytes = 0
    next_offset, epoch, time = file.base_offset, -1, -1
    problem: FileError | None = None
    walk = file.sound()
    for position, found in walk:
        fault: TailraceError | None = None
        if isinstance(found, BatchHeader):
            fault = _inner_fault(file, position, found, epoch, time)
            epoch, time = found.leader_epoch, found.append_time
            batches += 1
            records += found.record_count
            size_bytes = position + found.size_bytes
            next_offset = found.next_offset
        elif next_offset < file.durable_offset:
            fault = _corruption(file, position, found, next_offset)
        else:
            torn_bytes = file.data_end(position) - position
            if any(isinstance(behind, BatchHeader) for _, behind in walk):
                reason = f"{found}, yet sound batches lie behind"
                fault = _corruption(file, position, reason, next_offset)
        if fault is not None and problem is None:
            problem = FileError(position, fault.code, fault.message)
    return FileReport(file.path, problem is None, batches, records, size_bytes, torn_bytes, problem)


def _corruption(file: LogFile, position: int, reason: str, first_offset: int) -> TailraceError:
    return texts.corruption_found(
        file.path, position=position, reason=reason, first_offset=first_offset, next_offset=None
    )


def _inner_fault(
    file: LogFile, position: int, header: BatchHeader, epoch: int, time: int
) -> TailraceError | None:
    """What is wrong with a batch whose checks pass: its place in the log, or its columns."""
    base = header.base_offset
    if header.leader_epoch < epoch:
        reason = f"leader epoch falls from {epoch} to {header.leader_epoch}"
        return _corruption(file, position, reason, base)
    if header.append_time < time:
        reason = f"append time falls from {time} to {header.append_time}"
        return _corruption(file, position, reason, base)
    if header.payload_format == FORMAT_COLUMNS:
        try:
            decode_columns(file.read(header.size_bytes, position), header)
        except BatchError as error:
            return texts.corrupt_batch(
                file.topic_id.hex(), file.partition, offset=base, broker="local", reason=str(error)
            )
    return None
