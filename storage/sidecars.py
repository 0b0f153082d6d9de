"""What is saved beside the files of a log, with sync rounds: indexes and producer snapshots.

All of it can be rebuilt from the log and spares the next start that. It is saved when a segment is
sealed, and while one grows: often enough that a start has little to walk through, seldom enough
that it is a small share of what is written. The newest few snapshots are kept. One counts once no
crash can take records below it: only then may the segments that it covers be removed, or
rewritten so that they cannot be replayed any more (R35).
"""

from collections.abc import Callable
from functools import partial as bind

from tailrace.storage.disk import Disk
from tailrace.storage.index import ENTRY_BYTES, encode_index
from tailrace.storage.producers import PRODUCER_BYTES_MAX, ProducerTable, encode_producers
from tailrace.storage.recovery import Recovered, numbered
from tailrace.storage.rounds import Sidecar, Unsynced
from tailrace.storage.segment import Segment

KEPT = 2
SAVE_BYTES = 8 * 1024 * 1024  # appended since the last time
SAVE_BATCHES = 1_000  # a walk takes 3 us for each, which counts where they are small
SAVE_SHARE = 16  # so many times what is saved has to be appended before it is saved again
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
        found: Recovered,
        limit: Callable[[], int],
        moved: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._unsynced = unsynced
        self._saved = [found.producers_from]  # offsets, rising
        self._base = found.segments[-1].base_offset  # of the active segment
        self._bytes = found.saved_bytes  # of it, when its index was last saved
        self._batches = found.saved_batches
        self._waiting: Sidecar | None = None  # the snapshot that was asked for last
        self._limit = limit  # below it a crash takes nothing
        self._moved = moved

    def covered(self) -> int:
        """The offset of the newest snapshot that counts."""
        limit = self._limit()
        return max((at for at in self._saved if at <= limit), default=0)

    def appended(self, active: Segment, producers: ProducerTable) -> None:
        """The log grew: save what is worth it by now."""
        if active.base_offset != self._base:
            self._base, self._bytes, self._batches = active.base_offset, 0, 0
            self.save_producers(active.next_offset, producers)
            return
        grown_bytes = active.size_bytes - self._bytes
        if grown_bytes < SAVE_BYTES and active.batches - self._batches < SAVE_BATCHES:
            return
        cost_bytes = len(active.index) * ENTRY_BYTES + len(producers) * PRODUCER_BYTES_MAX
        if grown_bytes >= SAVE_SHARE * cost_bytes:
            self.save_so_far(active, producers)

    def save_so_far(self, active: Segment, producers: ProducerTable) -> None:
        """All that a start from here on would need. No append before the next round is over."""
        self._bytes, self._batches = active.size_bytes, active.batches
        data = encode_index(active.summary(), active.index)
        self._unsynced.add(Sidecar(active.index_path, lambda: data, lambda: None))
        if self._waiting is not None:
            self._unsynced.withdraw(self._waiting)
        self._waiting = self.save_producers(active.next_offset, producers)

    def save_producers(self, offset: int, producers: ProducerTable) -> Sidecar:
        """As they are at a log end."""
        table = producers.copy()

        def content() -> bytes:
            return encode_producers(table, offset)

        path = snapshot_path(self._directory, offset)
        sidecar = Sidecar(path, content, bind(self._written, offset))
        self._unsynced.add(sidecar)
        return sidecar

    def save_index(self, segment: Segment) -> None:
        """Of a segment that is sealed."""
        summary, index = segment.summary(), segment.index

        def content() -> bytes:
            return encode_index(summary, index)

        self._unsynced.add(Sidecar(segment.index_path, content, segment.set_indexed))

    def _written(self, offset: int) -> None:
        self._saved.append(offset)
        on_disk = numbered(self._disk.list(self._directory), _PREFIX, "")
        usable = [at for at in on_disk if at <= self.covered()]
        kept = {*usable[-KEPT:], *on_disk[-KEPT:]}
        for at in set(on_disk) - kept:
            self._disk.remove(snapshot_path(self._directory, at))
        self._saved = [at for at in self._saved if at in kept or at == 0]
        self._moved()
