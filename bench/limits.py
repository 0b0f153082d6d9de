"""The limits of this machine, measured in the same run as the figures they stand beside."""

import os
import socket
import tempfile
import threading
import time
from pathlib import Path

from tailrace.protocol.packing import pack

LOOPBACK_BYTES = 1 << 30
CHUNK_BYTES = 1 << 18
SYNCS = 300
PACKS = 300


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
    values = [os.urandom(100) for _ in range(1_000)]
    began = time.perf_counter()
    for _ in range(PACKS):
        pack([None, None, None, values, None])
    return PACKS * len(values) / (time.perf_counter() - began)
