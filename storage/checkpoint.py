"""Small files that are replaced whole: indexes, epochs, producer snapshots, marks (R22, R23).

Layout, big-endian: magic ``TRCP``, u16 kind, u16 version, u64 length of the body, u64 xxh3-64 over
these 16 bytes and the body, the body (docs/log_format.md).

- A file is written beside its name, synced, renamed, and its directory synced: a crash leaves the
  old one or the new one.
- A file that is missing, cut, damaged, or of another kind or version reads as None. Whoever reads
  one must be able to rebuild it: None never means "empty" (R26).
"""

import struct
from collections.abc import Generator
from contextlib import contextmanager
from enum import IntEnum

import xxhash

from tailrace.protocol import texts_storage
from tailrace.storage.disk import NO_ROOM, Disk, File
from tailrace.storage.os_sync import NotBegun

MAGIC = b"TRCP"
VERSION = 1
TEMPORARY = ".tmp"
BODY_BYTES_MAX = 1 << 30  # a claimed length is checked against the file's before it is believed
_HEADER = struct.Struct(">4sHHQ")
_CHECKSUM = struct.Struct(">Q")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size


class Kind(IntEnum):
    """What a checkpoint file holds, so that a misplaced one is not believed."""

    INDEX = 1
    EPOCHS = 2
    PRODUCERS = 3
    START = 4
    FLUSHED = 5
    CLEANED = 6
    CLOCK = 7
    RESUME = 8
    RESET = 9


def encode(kind: Kind, body: bytes | bytearray) -> bytes:
    """The whole file."""
    header = _HEADER.pack(MAGIC, kind, VERSION, len(body))
    return b"".join((header, _CHECKSUM.pack(_digest(header, body)), body))


def decode(kind: Kind, data: bytes | memoryview) -> memoryview | None:
    """The body, or None if this is not a sound file of that kind."""
    if len(data) < HEADER_BYTES:
        return None
    header, body = bytes(data[: _HEADER.size]), memoryview(data)[HEADER_BYTES:]
    if header != _HEADER.pack(MAGIC, kind, VERSION, len(body)):
        return None
    (checksum,) = _CHECKSUM.unpack_from(data, _HEADER.size)
    return body if checksum == _digest(header, body) else None


def header_fits(kind: Kind, head: bytes, size_bytes: int) -> bool:
    """Whether a file of that size that begins so can be one of that kind; nothing is checked."""
    expected = _HEADER.pack(MAGIC, kind, VERSION, max(0, size_bytes - HEADER_BYTES))
    return head[: _HEADER.size] == expected


def read(disk: Disk, path: str, kind: Kind) -> memoryview | None:
    """The body of a checkpoint file, or None if it must be rebuilt. Raises other ``OSError``s."""
    try:
        file = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        size = file.size()
        return decode(kind, file.read(size, 0)) if size <= BODY_BYTES_MAX else None
    finally:
        file.close()


def write(disk: Disk, path: str, data: bytes) -> None:
    """Replace the file at ``path`` durably. On an ``OSError`` the old one is still there."""
    file = stage(disk, path, data)
    try:
        disk.sync([file])
    finally:
        file.close()
    publish(disk, path)
    disk.sync_directory(parent(path))


def replace(disk: Disk, path: str, data: bytes) -> None:
    """``write``, for who tries again: on an ``OSError`` (no room, say) that is right, the old file
    is still there, or (``NotBegun``) the new one, which need not last. A failed sync is nothing
    to go on from: BrokerError T093 (R21)."""
    file = stage(disk, path, data)
    try:
        disk.sync([file])
    except OSError as error:
        raise texts_storage.sync_failed(path, reason=str(error)) from error
    finally:
        file.close()
    publish(disk, path)
    sync_names(disk, parent(path))


def sync_names(disk: Disk, directory: str) -> None:
    """Names made or removed in the directory are durable on return. BrokerError T093 if not: they
    may be those that somebody else waits for (R21). ``NotBegun``: call it again."""
    try:
        disk.sync_directory(directory)
    except NotBegun:
        raise
    except OSError as error:
        raise texts_storage.sync_failed(directory, reason=str(error)) from error


@contextmanager
def syncing(path: str) -> Generator[None]:
    """Around syncs of what is at or below the path. One that fails is final: BrokerError T093
    (R21). ``OSError``, if it was for want of something: whoever tries again writes anew what was to
    be synced, or opens it as ``suspect``."""
    try:
        yield
    except OSError as error:
        if isinstance(error, NotBegun) or error.errno in NO_ROOM:
            raise
        raise texts_storage.sync_failed(path, reason=str(error)) from error


def stage(disk: Disk, path: str, data: bytes) -> File:
    """Write the file beside its name; the caller syncs it, then calls ``publish``."""
    file = disk.open(path + TEMPORARY, create=True)
    try:
        if file.size() > len(data):
            file.resize(0)  # left behind by a crash
        file.write([data], 0)
    except OSError:
        file.close()
        raise
    return file


def publish(disk: Disk, path: str) -> None:
    """Give the staged and synced file its name; the caller syncs the directory."""
    disk.rename(path + TEMPORARY, path)


def parent(path: str) -> str:
    """The directory of a path."""
    return path.rpartition("/")[0]


def _digest(header: bytes, body: bytes | bytearray | memoryview) -> int:
    hasher = xxhash.xxh3_64(header)
    hasher.update(body)
    return hasher.intdigest()
