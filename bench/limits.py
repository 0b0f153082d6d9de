"""The limits of this machine, measured in the same run as the figures they stand beside.

    python -m tailrace.bench.limits

Paths, of the system ``machine``: ``loopback`` (bytes/s), ``fdatasync`` (4 KiB, one after another),
``disk-write`` (1 MiB each, one sync at the end), ``pack`` and ``unpack`` (msgpack columns of 100 B
values, records/s), ``memcpy`` (64 MiB, out of the cache).
"""

import os
import socket
import tempfile
import threading
import time
from pathlib import Path

from tailrace.bench.workbench import Workbench, parser, workbench
from tailrace.protocol.packing import pack, unpack

LOOPBACK_BYTES = 1 << 30
CHUNK_BYTES = 1 << 18
SYNCS = 300
PACKS = 300
DISK_BYTES = 256 << 20
COPIED_BYTES = 64 << 20
COPIES = 10
COLUMN_RECORDS = 1_000


def loopback_bytes_per_s() -> float:
    """One sender and one receiver thread over 127.0.0.1, 256 KiB a call."""
    listener = socket.create_server(("127.0.0.1", 0))
    buffer = bytearray(CHUNK_BYTES)

    def receive() -> None:
        connection, _ = listener.accept()
        with connection:
            while connection.recv_into(buffer):
                pass

    thread = threading.Thread(target=receive)
    thread.start()
    data = bytes(CHUNK_BYTES)
    with socket.create_connection(listener.getsockname()) as sender:
        began = time.perf_counter()
        for _ in range(LOOPBACK_BYTES // CHUNK_BYTES):
            sender.sendall(data)
    thread.join()
    listener.close()
    return LOOPBACK_BYTES / (time.perf_counter() - began)


def fdatasyncs_per_s(folder: Path) -> float:
    """4 KiB appended to blocks already written, then fdatasync, one after another."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        os.pwrite(file.fileno(), bytes(4096 * SYNCS), 0)
        os.fsync(file.fileno())
        began = time.perf_counter()
        for number in range(SYNCS):
            os.pwrite(file.fileno(), b"x" * 4096, number * 4096)
            os.fdatasync(file.fileno())
        return SYNCS / (time.perf_counter() - began)


def packed_records_per_s() -> float:
    """Columns of 1,000 values of 100 B packed by msgpack: the codec's bound on a producer."""
    columns = _columns()
    began = time.perf_counter()
    for _ in range(PACKS):
        pack(columns)
    return PACKS * COLUMN_RECORDS / (time.perf_counter() - began)


def unpacked_records_per_s() -> float:
    """The same, unpacked: the codec's bound on a consumer."""
    packed = pack(_columns())
    began = time.perf_counter()
    for _ in range(PACKS):
        unpack(packed, items_max=2 * COLUMN_RECORDS)
    return PACKS * COLUMN_RECORDS / (time.perf_counter() - began)


def _columns() -> list[object]:
    return [None, None, None, [os.urandom(100) for _ in range(COLUMN_RECORDS)], None]


def disk_written_per_s(folder: Path) -> float:
    """Bytes per second into blocks that are new to the file, with one sync at the end."""
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for _ in range(DISK_BYTES // len(block)):
            os.write(file.fileno(), block)
        os.fdatasync(file.fileno())
        return DISK_BYTES / (time.perf_counter() - began)


def file_written_per_s(folder: Path, size_bytes: int) -> float:
    """Bytes per second into a new file, 256 KiB a call, without a sync: the page cache's limit."""
    chunk = os.urandom(CHUNK_BYTES)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        for number in range(size_bytes // len(chunk)):
            os.pwrite(file.fileno(), chunk, number * len(chunk))
        return size_bytes / (time.perf_counter() - began)


def copied_bytes_per_s() -> float:
    """Memory copied that no cache holds."""
    source, target = os.urandom(1 << 20) * (COPIED_BYTES >> 20), memoryview(bytearray(COPIED_BYTES))
    target[:] = source  # touched
    began = time.perf_counter()
    for _ in range(COPIES):
        target[:] = source
    return COPIES * COPIED_BYTES / (time.perf_counter() - began)


def measure(bench: Workbench) -> None:
    figures = (
        ("loopback", loopback_bytes_per_s(), "bytes/s"),
        ("fdatasync", fdatasyncs_per_s(bench.folder), "/s"),
        ("disk-write", disk_written_per_s(bench.folder), "bytes/s"),
        ("pack", packed_records_per_s(), "records/s"),
        ("unpack", unpacked_records_per_s(), "records/s"),
        ("memcpy", copied_bytes_per_s(), "bytes/s"),
    )
    for path, value, unit in figures:
        bench.tell(path, value, unit, system="machine")


if __name__ == "__main__":
    with workbench(parser(__doc__ or "").parse_args()) as made:
        measure(made)
