"""What is saved beside the files of a log, with sync rounds: indexes and producer snapshots.

All of it can be rebuilt from the log and spares the next start that. The newest few snapshots are
kept. One counts once no crash can take records below it: only then may the segments that it
covers be removed, or rewritten so that they cannot be replayed any more (R35).
"""

from collections.abc import Callable
from functools import partial as bind

from tailrace.storage.disk import Disk
from tailrace.storage.index import encode_index
from tailrace.storage.producers import ProducerTable, encode_producers
from tailrace.storage.recovery import numbered
from tailrace.storage.rounds import Sidecar, Unsynced
from tailrace.storage.segment import Segment

KEPT = 2
_PREFIX = "producers-"


def snapshot_path(directory: str, offset: int) -> str:
    """Of the snapshot of all producers as they were at a log end."""
    return f"{directory}/{_PREFIX}{offset:020}"


class Sidecars:
    """Of one log. ``moved`` is told whenever ``covered`` may have risen."""

    def __init__(
        self,
        disk: Disk,
        directory: str,
        unsynced: Unsynced,
        *,
        found: int,
        limit: Callable[[], int],
        moved: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._unsynced = unsynced
        self._saved = [found]  # offsets, rising
        self._limit = limit  # below it a crash takes nothing
        self._moved = moved

    def covered(self) -> int:
        """The offset of the newest snapshot that counts."""
        limit = self._limit()
        return max((at for at in self._saved if at <= limit), default=0)

    def save_producers(self, offset: int, producers: ProducerTable) -> None:
        """As they are at a log end."""
        table = producers.copy()

        def content() -> bytes:
            return encode_producers(table, offset)

        path = snapshot_path(self._directory, offset)
        self._unsynced.add(Sidecar(path, content, bind(self._written, offset)))

    def save_index(self, segment: Segment) -> None:
        """Of a segment that is sealed."""
        summary, index = segment.summary(), segment.index

        def content() -> bytes:
            return encode_index(summary, index)

        self._unsynced.add(Sidecar(segment.index_path, content, segment.set_indexed))

    def save_index_so_far(self, segment: Segment) -> None:
        """Of the active segment, which will not be appended to before the next round is over."""
        data = encode_index(segment.summary(), segment.index)
        self._unsynced.add(Sidecar(segment.index_path, lambda: data, lambda: None))

    def _written(self, offset: int) -> None:
        self._saved.append(offset)
        on_disk = numbered(self._disk.list(self._directory), _PREFIX, "")
        usable = [at for at in on_disk if at <= self.covered()]
        kept = {*usable[-KEPT:], *on_disk[-KEPT:]}
        for at in set(on_disk) - kept:
            self._disk.remove(snapshot_path(self._directory, at))
        self._saved = [at for at in self._saved if at in kept or at == 0]
        self._moved()
