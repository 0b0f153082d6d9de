"""The real disk with three abilities more: to be full, to belong to the dead, and to forget.

A test broker on a data directory shall lose unsynced bytes in ``restart(crash=True)``, as the one
in memory does. The page cache cannot be told to forget, so what each write replaced is kept until
the file is synced, and a crash puts it back. Names are not taken back.
"""

import errno
import os
import threading
from collections.abc import Sequence

from tailrace.simulation.life import Life
from tailrace.storage.disk import File, OsDisk, OsFile, OsLock


class Unsynced:
    """What the writes since the last sync replaced, per file, in order. Outlives processes."""

    def __init__(self) -> None:
        self._writes: dict[str, list[tuple[int, bytes]]] = {}
        self._lock = threading.Lock()

    def wrote(self, path: str, position: int, replaced: bytes) -> None:
        with self._lock:
            self._writes.setdefault(path, []).append((position, replaced))

    def synced(self, path: str) -> None:
        with self._lock:
            self._writes.pop(path, None)

    def renamed(self, source: str, target: str) -> None:
        with self._lock:
            self._writes.pop(target, None)
            if source in self._writes:
                self._writes[target] = self._writes.pop(source)

    def take_back(self, disk: OsDisk) -> None:
        """What a power cut does that keeps nothing."""
        for path, writes in self._writes.items():
            if disk.exists(path):
                file = disk.open(path)
                for position, replaced in reversed(writes):
                    file.write([replaced], position)
                file.close()
        self._writes.clear()


class ProbedFile(OsFile):
    """A file of a ``ProbedDisk``."""

    def __init__(self, disk: "ProbedDisk", path: str, descriptor: int) -> None:
        super().__init__(path, descriptor)
        self._disk = disk

    def write(self, buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
        self._disk.life.check()
        if self._disk.full:
            raise OSError(errno.ENOSPC, "No space left on device", self.path)
        length = sum(len(buffer) for buffer in buffers)
        self._disk.unsynced.wrote(self.path, position, self.read(length, position))
        super().write(buffers, position)

    def resize(self, length: int) -> None:
        self._disk.life.check()
        super().resize(length)


class ProbedDisk(OsDisk):
    """``OsDisk`` for one process of a test broker."""

    def __init__(self, unsynced: Unsynced, life: Life) -> None:
        super().__init__()
        self.unsynced = unsynced
        self.life = life
        self.full = False

    def open(self, path: str, *, create: bool = False) -> ProbedFile:
        self.life.check()
        opened = super().open(path, create=create)
        file = ProbedFile(self, path, os.dup(opened.fileno()))
        opened.close()
        return file

    def sync(self, files: Sequence[File]) -> None:
        self.life.check()
        super().sync(files)
        for file in files:
            self.unsynced.synced(file.path)

    def rename(self, source: str, target: str) -> None:
        self.life.check()
        super().rename(source, target)
        self.unsynced.renamed(source, target)

    def remove(self, path: str) -> None:
        self.life.check()
        super().remove(path)
        self.unsynced.synced(path)

    def remove_directory(self, path: str) -> None:
        self.life.check()
        super().remove_directory(path)

    def make_directory(self, path: str) -> None:
        self.life.check()
        super().make_directory(path)

    def usage(self, path: str) -> tuple[int, int]:
        free, total = super().usage(path)
        return (0 if self.full else free), total

    def lock(self, path: str, content: str) -> OsLock:
        self.life.check()
        return super().lock(path, content)
