"""What the tests of the log share: batches, logs in a directory, disks that misbehave."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from tailrace.protocol.batch import encode_batch, header_seed, parse_header
from tailrace.protocol.errors import CorruptBatch, TailraceError
from tailrace.storage.disk import File, OsDisk, OsFile
from tailrace.storage.log import Appended, Log, LogConfig
from tailrace.storage.segment import Quarantine

TOPIC_ID = bytes(range(16))
PARTITION = 3
SEED = header_seed(TOPIC_ID, PARTITION)
EPOCH = 1
SMALL = LogConfig(segment_bytes=2000, index_interval_bytes=250)
ALL = 1 << 30


class QuickDisk(OsDisk):
    """Real files without the wait: syncs count, but do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs = 0

    def sync(self, files: Sequence[File]) -> None:
        self.syncs += 1

    def sync_directory(self, path: str) -> None:
        pass


class FullFile(OsFile):
    """A file on a disk that gets full in the middle of a write."""

    disk: "FullDisk"
    high = 0  # bytes below were written before, and take no more space

    def write(self, buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
        data = b"".join(buffers)
        end = position + len(data)
        fresh = max(0, end - max(position, self.high))
        left = self.disk.bytes_left
        granted = fresh if left is None else min(fresh, left)
        kept = data[: len(data) - fresh + granted]
        super().write([kept], position)
        self.high = max(self.high, position + len(kept))
        if left is not None:
            self.disk.bytes_left = left - granted
        if granted < fresh:
            raise OSError(errno.ENOSPC, "No space left on device", self.path)


class FullDisk(QuickDisk):
    """Takes ``bytes_left`` more bytes; None: any number."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_left: int | None = None
        self.failing_syncs = 0

    def open(self, path: str, *, create: bool = False) -> OsFile:
        file = FullFile(path, os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600))
        file.disk = self
        return file

    def sync(self, files: Sequence[File]) -> None:
        super().sync(files)
        if self.failing_syncs:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, "Input/output error")


def batch(
    *values: bytes,
    producer: tuple[int, int, int] = (-1, -1, -1),
    timestamp: int = 1,
    seed: int = SEED,
) -> memoryview:
    """A producer's batch. ``producer``: id, epoch, base sequence."""
    producer_id, producer_epoch, base_sequence = producer
    data = encode_batch(
        seed,
        values=list(values or (b"value",)),
        timestamps=timestamp,
        producer_id=producer_id,
        producer_epoch=producer_epoch,
        base_sequence=base_sequence,
    )
    return memoryview(bytearray(data))


def open_log(
    path: Path,
    *,
    disk: OsDisk | None = None,
    config: LogConfig = SMALL,
    clean: bool = False,
    full: bool = False,
    now_ms: int = 0,
    suspect: bool = False,
) -> Log:
    return Log.open(
        disk or QuickDisk(),
        f"{path}/log",
        topic_id=TOPIC_ID,
        partition=PARTITION,
        config=config,
        now_ms=now_ms,
        clean=clean,
        verify="full" if full else "tail",
        suspect=suspect,
        topic="orders",
        broker="n1",
    )


def append(log: Log, *batches: memoryview, now_ms: int = 0) -> list[Appended]:
    """Append what must succeed."""
    results = log.append(batches or [batch()], leader_epoch=EPOCH, now_ms=now_ms)
    assert not any(isinstance(result, TailraceError) for result in results), results
    return [result for result in results if isinstance(result, Appended)]


def refused(log: Log, entry: memoryview, now_ms: int = 0) -> str:
    """The code with which one batch is refused."""
    (result,) = log.append([entry], leader_epoch=EPOCH, now_ms=now_ms)
    assert isinstance(result, TailraceError), result
    return result.code


def fill(log: Log, count: int, size: int = 50) -> None:
    """Append so many one-record batches, each with its own value and time."""
    for number in range(count):
        value = f"{log.end}-{number}".encode().ljust(size, b".")
        append(log, batch(value), now_ms=1000 + log.end)


def entries(log: Log, bytes_max: int = 300) -> dict[int, bytes]:
    """Every readable batch by base offset, read slice by slice."""
    found: dict[int, bytes] = {}
    at = log.start
    while at < log.end:
        try:
            part = log.read(at, bytes_max, log.end)
        except CorruptBatch as error:
            at = int(str(error.details["next_offset"]))
            continue
        assert part.next_offset > at
        data = b"".join(bytes(piece.view()) for piece in part.ranges)
        assert len(data) == part.length
        position = 0
        while position < len(data):
            header = parse_header(data, position)
            found[header.base_offset] = data[position : position + header.size_bytes]
            position += header.size_bytes
        at = part.next_offset
    return found


def holes(log: Log) -> list[tuple[int, int]]:
    """The quarantined offset ranges."""
    return [span(hole) for hole in log.quarantined]


def span(hole: Quarantine) -> tuple[int, int]:
    return hole.first_offset, hole.next_offset


def files(path: Path) -> dict[str, bytes]:
    """Everything in the log's directory."""
    return {file.name: file.read_bytes() for file in sorted((path / "log").iterdir())}


def restore(path: Path, saved: dict[str, bytes]) -> None:
    """Put a log's directory back as it was saved."""
    folder = path / "log"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    for name, data in saved.items():
        (folder / name).write_bytes(data)
