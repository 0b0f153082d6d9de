"""Room that is kept back for the day the disk is full (R28).

A file of real zeros in the data directory. When nothing else is left it is removed: then there is
room to start, to shorten a retention, to delete a topic and to write down what retention removed.
Whoever removes it keeps producers away until it is back, or they would take the room at once.
"""

from contextlib import suppress

from tailrace.storage import checkpoint
from tailrace.storage.disk import Disk

SHARE = 0.01  # of the file system, at most
_CHUNK = bytes(256 * 1024)


class Ballast:
    """One data directory's. Its methods block; never two of them at once."""

    def __init__(self, disk: Disk, directory: str, bytes_max: int) -> None:
        self._disk = disk
        self._directory = directory
        self._path = f"{directory}/ballast"
        _, total_bytes = disk.usage(directory)
        self.size_bytes = min(bytes_max, int(total_bytes * SHARE))
        self.held = self._is_whole()

    @property
    def missing_bytes(self) -> int:
        """What must be free besides before writes are allowed again."""
        return 0 if self.held else self.size_bytes

    def drop(self) -> None:
        """Give the room up. Raises ``OSError``; BrokerError T093 if a sync fails."""
        self.held = False
        self._disk.remove(self._path)
        checkpoint.sync_names(self._disk, self._directory)

    def fill(self) -> None:
        """Take the room. Raises ``OSError`` (no room, say): then nothing of it stays taken."""
        try:
            file = self._disk.open(self._path + checkpoint.TEMPORARY, create=True)
            try:
                for at in range(0, self.size_bytes, len(_CHUNK)):
                    file.write([_CHUNK[: self.size_bytes - at]], at)
                self._disk.sync([file])
            finally:
                file.close()
            self._disk.rename(self._path + checkpoint.TEMPORARY, self._path)
        except OSError:
            with suppress(OSError):
                self._disk.remove(self._path + checkpoint.TEMPORARY)
            raise
        self.held = True

    def _is_whole(self) -> bool:
        if self.size_bytes == 0:
            return True  # nothing to hold
        try:
            file = self._disk.open(self._path)
        except FileNotFoundError:
            return False
        try:
            return file.size() >= self.size_bytes
        finally:
            file.close()
