"""The one seam between the log and the operating system.

Everything the log does to files goes through a ``Disk``, so that the simulation can put in one
that forgets what was not synced. Contract, beyond the method docstrings:

- errors are ``OSError``s, as the system gives them;
- written bytes are visible to ``view`` at once, and durable only after ``sync``;
- a created, renamed or removed name is durable only after ``sync_directory`` of its parent (R22);
- nothing is ever stored through a map and no mapped range is ever cut off (R29, R30).
"""

import errno
import fcntl
import mmap
import os
import shutil
from collections.abc import Sequence
from typing import Protocol

from tailrace.storage.os_sync import Kept, Syncer

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
IOV_MAX = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else 16  # POSIX's least
CACHE_PROBE_BYTES = 64 * 1024  # half of the usual readahead: a cached stretch is no smaller
RWF_NOWAIT: int | None = getattr(os, "RWF_NOWAIT", None)  # Linux
SEEK_DATA: int | None = getattr(os, "SEEK_DATA", None)
SEEK_HOLE: int | None = getattr(os, "SEEK_HOLE", None)


class File(Protocol):
    """One open file, read and written by position."""

    @property
    def path(self) -> str: ...

    def fileno(self) -> int:
        """The descriptor for ``sendfile``, or -1 where the file is not the system's."""
        ...

    def size(self) -> int:
        """Length in bytes, holes included."""
        ...

    def write(self, buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
        """Write all the buffers from ``position`` on, gathered; may leave a part on error."""
        ...

    def read(self, length: int, position: int) -> bytes:
        """Up to ``length`` bytes; fewer only at the end of the file."""
        ...

    def view(self, position: int, length: int) -> memoryview:
        """A read-only window on the file's bytes, which must lie within its size."""
        ...

    def cached(self, position: int, length: int) -> bool:
        """Whether that range can be read without waiting for the device."""
        ...

    def next_data(self, position: int) -> int:
        """A position at or after this one below which all bytes are zero; the size if no more data.

        Skips holes where the system can tell; may return ``position`` itself at any time.
        """
        ...

    def next_hole(self, position: int) -> int:
        """About where the data that stands at a position ends; the size if nobody can tell."""
        ...

    def resize(self, length: int) -> None:
        """Grow sparse, or cut; cut only a file of which no view was ever taken."""
        ...

    def close(self) -> None:
        """Close; views already taken stay valid. One that is dropped unclosed closes itself."""
        ...


class Disk(Protocol):
    """A file system, by absolute path."""

    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing (0600); ``create`` makes a missing file, else
        ``FileNotFoundError``."""
        ...

    def sync(self, files: Sequence[File]) -> None:
        """Make everything written to these files durable. Called from a worker thread.

        After an error nothing is known about the files: never retry (R21), see
        ``checkpoint.syncing``.
        """
        ...

    def sync_directory(self, path: str) -> None:
        """Make the names in a directory durable.

        ``NotBegun``, an ``OSError``, is no failed sync: it could not be tried, and may be later.
        """
        ...

    def sync_together(self, files: Sequence[File], directories: Sequence[str]) -> None:
        """Make the contents of files and the names in directories durable, in any order.

        Cheaper than one after another where there are many. Errors are those of ``sync``.
        """
        ...

    def make_directory(self, path: str) -> None:
        """Make one directory (0700) under an existing parent; one that exists is fine."""
        ...

    def rename(self, source: str, target: str) -> None:
        """Replace ``target`` atomically."""
        ...

    def remove(self, path: str) -> None:
        """Remove one file; a missing one is fine."""
        ...

    def remove_directory(self, path: str) -> None:
        """Remove a directory and all in it; a missing one is fine."""
        ...

    def list(self, path: str) -> list[str]:
        """Names in a directory, sorted; ``[]`` if it does not exist."""
        ...

    def exists(self, path: str) -> bool: ...

    def usage(self, path: str) -> tuple[int, int]:
        """(free, total) bytes of the file system that holds ``path``."""
        ...

    def lock(self, path: str, content: str) -> "Lock":
        """Take an exclusive lock and write who holds it, or ``BlockingIOError``."""
        ...


class Lock(Protocol):
    def release(self) -> None: ...


class OsFile:
    """A file of the operating system."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._map: mmap.mmap | None = None  # made on first view, of the size at that time

    @property
    def path(self) -> str:
        return self._path

    def fileno(self) -> int:
        return self._descriptor

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def write(self, buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
        pending = [memoryview(buffer) for buffer in buffers if len(buffer)]
        while pending:
            written = os.pwritev(self._descriptor, pending[:IOV_MAX], position)
            position += written
            while pending and written >= len(pending[0]):
                written -= len(pending.pop(0))
            if written:
                pending[0] = pending[0][written:]

    def read(self, length: int, position: int) -> bytes:
        return os.pread(self._descriptor, length, position)

    def view(self, position: int, length: int) -> memoryview:
        if length == 0:
            return memoryview(b"")
        if self._map is None or len(self._map) < position + length:
            # An older map is left to whoever holds a view of it: closing it would fail (R30).
            self._map = mmap.mmap(self._descriptor, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        return memoryview(self._map)[position : position + length]

    def cached(self, position: int, length: int) -> bool:
        if RWF_NOWAIT is None:
            return True  # the system cannot tell
        probe = [bytearray(1)]
        end = position + length - 1
        try:
            for at in (*range(position, end, CACHE_PROBE_BYTES), end):
                os.preadv(self._descriptor, probe, at, RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True  # the file system cannot tell (EOPNOTSUPP): do not go the slow way for all
        return True

    def next_data(self, position: int) -> int:
        size = self.size()
        if SEEK_DATA is None or position >= size:
            return min(position, size)
        try:
            return os.lseek(self._descriptor, position, SEEK_DATA)
        except OSError as error:
            return size if error.errno == errno.ENXIO else position

    def next_hole(self, position: int) -> int:
        size = self.size()
        if SEEK_HOLE is None or position >= size:
            return size
        try:
            return os.lseek(self._descriptor, position, SEEK_HOLE)
        except OSError:
            return size

    def resize(self, length: int) -> None:
        assert self._map is None or length >= len(self._map), "a mapped range may not be cut (R30)"
        os.ftruncate(self._descriptor, length)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._map = None

    def __del__(self) -> None:
        self.close()


class OsLock:
    """A lock that the system gives up when the process ends, however it ends."""

    def __init__(self, descriptor: int, syncer: Syncer, kept: Kept) -> None:
        self._descriptor = descriptor
        self._syncer = syncer
        self._kept = kept

    def release(self) -> None:
        if self._descriptor >= 0:
            self._syncer.forget(self._kept)
            os.close(self._descriptor)
            self._descriptor = -1


class OsDisk:
    """The real file system. Syncs of many files below a locked directory are cheaper."""

    def __init__(self) -> None:
        self._syncer = Syncer()

    def open(self, path: str, *, create: bool = False) -> OsFile:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        return OsFile(path, os.open(path, flags, 0o600))

    def sync(self, files: Sequence[File]) -> None:
        self._syncer.files([file.fileno() for file in files])

    def sync_directory(self, path: str) -> None:
        self._syncer.directory(path)

    def sync_together(self, files: Sequence[File], directories: Sequence[str]) -> None:
        self._syncer.together([file.fileno() for file in files], directories)

    def make_directory(self, path: str) -> None:
        if not os.path.isdir(path):
            os.mkdir(path, 0o700)

    def rename(self, source: str, target: str) -> None:
        os.replace(source, target)

    def remove(self, path: str) -> None:
        if os.path.lexists(path):
            os.unlink(path)

    def remove_directory(self, path: str) -> None:
        if os.path.isdir(path):
            shutil.rmtree(path)

    def list(self, path: str) -> list[str]:
        return sorted(os.listdir(path)) if os.path.isdir(path) else []

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def usage(self, path: str) -> tuple[int, int]:
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize

    def lock(self, path: str, content: str) -> OsLock:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        try:  # over what is there: that takes no room, which a full disk would not have again
            os.ftruncate(descriptor, os.pwrite(descriptor, content.encode(), 0))
            kept = self._syncer.keep(os.path.dirname(path), descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return OsLock(descriptor, self._syncer, kept)
