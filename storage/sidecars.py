"""What is saved beside the files of a log, with sync rounds: indexes and producer snapshots.

All of it can be rebuilt from the log and spares the next start that. While a segment grows, hints
are written for the next start: often enough that it has little to walk through, seldom enough that
they are a small share of what is written. The newest few snapshots are kept. One counts once no
crash can take records below it: only then may the segments that it covers be removed, or
rewritten so that they cannot be replayed any more (R35).
"""

from collections.abc import Callable
from functools import partial as bind

from tailrace.storage.disk import Disk
from tailrace.storage.index import encode_index
from tailrace.storage.producers import ProducerTable, encode_producers
from tailrace.storage.recovery import Recovered, numbered
from tailrace.storage.resume import NAMES, encode_resume
from tailrace.storage.rounds import Hint, Sidecar, Unsynced
from tailrace.storage.segment import Segment

KEPT = 2
# When a hint is due, by what was appended since the last one. It takes 20 us, and 2 us for each
# producer; a walk takes 3 us for each batch, and the disk's latency if it is not in the page cache.
SAVE_BYTES = 1024 * 1024  # in small segments an eighth of them
SAVE_BATCHES = 100  # or so many
SAVE_BATCHES_PER_PRODUCER = 2  # and not before so many
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
        self._saved = [found.snapshot]  # offsets, rising
        self._base = found.segments[-1].base_offset  # of the active segment
        self._bytes = found.hinted_bytes  # of it, when a hint was last written
        self._batches = found.hinted_batches
        self._slot = found.slot  # of the newest hint
        self._limit = limit  # below it a crash takes nothing
        self._moved = moved

    def covered(self) -> int:
        """The offset of the newest snapshot that counts."""
        limit = self._limit()
        return max((at for at in self._saved if at <= limit), default=0)

    def appended(self, active: Segment, producers: ProducerTable) -> None:
        """The log grew: save what is worth it by now. No append before the next round is over."""
        if active.base_offset != self._base:
            self._base, self._bytes, self._batches = active.base_offset, 0, 0
            self.save_producers(active.next_offset, producers)
            return
        grown_bytes = active.size_bytes - self._bytes
        grown_batches = active.batches - self._batches
        enough_bytes = min(SAVE_BYTES, active.length // 8)
        if grown_bytes < enough_bytes and grown_batches < SAVE_BATCHES:
            return
        if grown_batches >= SAVE_BATCHES_PER_PRODUCER * len(producers):
            self._hint(active, producers)

    def _hint(self, active: Segment, producers: ProducerTable) -> None:
        self._bytes, self._batches = active.size_bytes, active.batches
        summary, entries, table = active.summary(), active.index.content(), producers.copy()

        def content() -> bytes:
            return encode_resume(summary, entries, table)

        if not self._unsynced.hints:  # else the one that waits was not written, and never will be
            self._slot = 1 - self._slot
        self._unsynced.hint(Hint(f"{self._directory}/{NAMES[self._slot]}", content))

    def save_so_far(self, active: Segment, producers: ProducerTable) -> None:
        """At a clean stop: all that the next start needs. No append before the next round."""
        data = encode_index(active.summary(), active.index)
        self._unsynced.add(Sidecar(active.index_path, lambda: data, lambda: None))
        self.save_producers(active.next_offset, producers)

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

    def _written(self, offset: int) -> None:
        self._saved.append(offset)
        on_disk = numbered(self._disk.list(self._directory), _PREFIX, "")
        usable = [at for at in on_disk if at <= self.covered()]
        kept = {*usable[-KEPT:], *on_disk[-KEPT:]}
        for at in set(on_disk) - kept:
            self._disk.remove(snapshot_path(self._directory, at))
        self._saved = [at for at in self._saved if at in kept or at == 0]
        self._moved()
