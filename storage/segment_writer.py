"""Writing a new sealed segment: batches in order, runs of empty ones merged, index and summary.

The chain of offsets has no gaps. A batch without records stands for a range of which nothing is
left; neighbouring ones of one leader epoch become one, with the append time of the last. One
that stands alone stays as it was.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tailrace.protocol.batch import BatchHeader, Columns, encode_entry
from tailrace.storage.disk import Disk, File
from tailrace.storage.index import Index, Summary
from tailrace.storage.segment import OFFSETS_MAX

CHUNK_BYTES = 1024 * 1024  # written at once
SYNC_BYTES = 8 * 1024 * 1024  # the appends of others wait no longer than for so much at once


class Writer:
    """A new segment file, batch by batch, with its index and summary.

    ``origin``: a file that begins with the same bytes for as long as nothing ``changed``: only
    then is the new file made, and those bytes are copied.
    """

    def __init__(
        self,
        disk: Disk,
        path: str,
        seed: int,
        base_offset: int,
        index_interval: int,
        *,
        origin: File | None,
        pace: Callable[[int], None],
    ) -> None:
        self.index = Index(base_offset)
        self.changed = False
        self.written_bytes = 0
        self._disk = disk
        self._path = path
        self._seed = seed
        self._base_offset = base_offset
        self._next_offset = base_offset
        self._interval = index_interval
        self._origin = origin
        self._pace = pace
        self._file: File | None = None
        self._buffer = bytearray()
        self._run: _Run | None = None
        self._size_bytes = 0
        self._unsynced_bytes = 0
        self._indexed_to = 0
        self._times: tuple[int, int] | None = None  # first and last append time
        self._batches = 0
        self._records = 0
        if origin is None:
            self.change()

    def keep(self, header: BatchHeader, entry: memoryview) -> None:
        """The batch stays as it is; one without records may join others."""
        if header.record_count == 0 and not header.is_control:
            self._empty(header, entry)
        else:
            self._put(header, entry)

    def replace(self, header: BatchHeader, entry: bytes) -> None:
        """Another batch over these offsets, of as many records as the header says."""
        self.change()
        self._put(header, entry)

    def empty(self, header: BatchHeader) -> None:
        """Nothing is left of the batch but its offsets."""
        self._empty(header, None)

    def change(self) -> None:
        """The new file differs from its origin from here on."""
        if self.changed:
            return
        self.changed = True
        self._file = self._disk.open(self._path, create=True)
        position = 0
        while self._origin is not None and position < self._size_bytes:
            length = min(CHUNK_BYTES, self._size_bytes - position)
            data = self._origin.read(length, position)
            self._file.write([data], position)
            self._wrote(len(data))
            position += len(data)

    def finish(self) -> None:
        """All of it is durable on return, if anything changed. Raises ``OSError``."""
        self._end_run()
        if self._file is not None:
            self._flush()
            self._disk.sync([self._file])
            self._file.close()

    def discard(self) -> None:
        """Remove what was made."""
        if self._file is not None:
            self._file.close()
            with suppress(OSError):
                self._disk.remove(self._path)  # else recovery does

    def summary(self) -> Summary:
        first, last = self._times or (-1, -1)
        return Summary(
            self._base_offset,
            self._next_offset,
            self._size_bytes,
            first,
            last,
            self._batches,
            self._records,
        )

    def _empty(self, header: BatchHeader, entry: memoryview | None) -> None:
        run = self._run
        if run is not None and run.leader_epoch == header.leader_epoch:
            run.next_offset = header.next_offset
            run.append_time = header.append_time
            run.entry = None
            return
        self._end_run()
        self._run = _Run(
            header.base_offset, header.next_offset, header.leader_epoch, header.append_time, entry
        )

    def _end_run(self) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        entry: memoryview | bytes | None = run.entry
        if entry is None:
            self.change()
            entry = empty_batch(
                self._seed, run.base_offset, run.next_offset, run.leader_epoch, run.append_time
            )
        self._append(entry, run.base_offset, run.next_offset, run.append_time, 0)

    def _put(self, header: BatchHeader, entry: memoryview | bytes) -> None:
        self._end_run()
        self._append(
            entry, header.base_offset, header.next_offset, header.append_time, header.record_count
        )

    def _append(
        self,
        entry: memoryview | bytes,
        base_offset: int,
        next_offset: int,
        append_time: int,
        records: int,
    ) -> None:
        assert base_offset == self._next_offset, "the chain is dense"
        position = self._size_bytes
        if position >= self._indexed_to:
            self.index.add(base_offset, position, append_time)
            self._indexed_to = position + self._interval
        self._times = (append_time if self._times is None else self._times[0], append_time)
        self._size_bytes += len(entry)
        self._next_offset = next_offset
        self._batches += 1
        self._records += records
        if self.changed:
            self._buffer += entry
            if len(self._buffer) >= CHUNK_BYTES:
                self._flush()

    def _flush(self) -> None:
        assert self._file is not None, "made with the first change"
        if self._buffer:
            self._file.write([self._buffer], self._size_bytes - len(self._buffer))
            self._wrote(len(self._buffer))
            self._buffer = bytearray()

    def _wrote(self, size_bytes: int) -> None:
        self.written_bytes += size_bytes
        self._unsynced_bytes += size_bytes
        if self._unsynced_bytes >= SYNC_BYTES:
            assert self._file is not None, "it was written to"
            self._disk.sync([self._file])
            self._unsynced_bytes = 0
        self._pace(size_bytes)


@dataclass(slots=True)
class _Run:
    """Neighbouring batches without records, of one leader epoch."""

    base_offset: int
    next_offset: int
    leader_epoch: int
    append_time: int  # of the last
    entry: memoryview | None  # its bytes as they were, where it is one that was empty before


def empty_batch(
    seed: int, base_offset: int, next_offset: int, leader_epoch: int, append_time: int
) -> bytes:
    """A batch without records over [base_offset, next_offset), at most 2^31 of them.

    It names no producer; its timestamps, which say nothing, are its append time.
    """
    assert 0 < next_offset - base_offset <= OFFSETS_MAX
    nothing = Columns(max(append_time, 0), None, [], None, [], None)
    return encode_entry(
        seed,
        nothing,
        base_offset=base_offset,
        last_offset_delta=next_offset - base_offset - 1,
        leader_epoch=leader_epoch,
        append_time=append_time,
    )
