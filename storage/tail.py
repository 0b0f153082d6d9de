"""The end of a log, where it is written: all of an append, or nothing.

Files are written first, then memory follows. What a failed write left behind is zeroed, durably,
before anything else is written there: no crash may bring back what was answered with an error.
After a failed sync nothing is written any more (R21).
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial as bind

from tailrace.protocol import texts_storage
from tailrace.protocol.errors import BrokerError
from tailrace.storage.append import Group, LogConfig
from tailrace.storage.disk import Disk
from tailrace.storage.os_sync import NotBegun
from tailrace.storage.recovery import zero
from tailrace.storage.rounds import Unsynced
from tailrace.storage.segment import Segment
from tailrace.storage.segments import Segments

WRITE_AHEAD_BYTES = 4 * 1024 * 1024  # but a segment never takes more than twice what it holds,
WRITE_AHEAD_FIRST_BYTES = 64 * 1024  # once it holds that much
_ZEROS = bytes(256 * 1024)


class Tail:
    """``append_time``: of the last batch, in ms; -1 where there is none."""

    def __init__(
        self,
        disk: Disk,
        path: str,
        segments: Segments,
        unsynced: Unsynced,
        *,
        save_index: Callable[[Segment], None],
    ) -> None:
        self.append_time = max(segment.last_append_time for segment in segments)
        self.failed: BrokerError | None = None  # a sync did
        self._disk = disk
        self._path = path
        self._segments = segments
        self._unsynced = unsynced
        self._save_index = save_index  # of a segment that was sealed
        self._stray: Callable[[], None] | None = None  # removes what a failed write left

    def ready(self) -> None:
        """Refuse after a failed sync; remove first what a failed append left, or ``OSError``."""
        if self.failed is not None:
            raise self.failed
        if self._stray is not None:
            self._stray()
            self._stray = None

    def write(self, groups: list[Group], config: LogConfig) -> None:
        """Put planned batches at the end; ``OSError``: nothing has changed."""
        active = self._segments.active
        made: list[Segment] = []
        try:
            for group in groups:
                if group.rolls:
                    made.append(Segment(self._disk, self._path, group.base_offset))
                    made[-1].create(max(config.segment_bytes, group.size_bytes))
            targets = made if groups[0].rolls else [active, *made]
            for group, segment in zip(groups, targets, strict=True):
                segment.write(group.buffers, group.size_bytes)
        except OSError:
            stray_bytes = 0 if groups[0].rolls else groups[0].size_bytes
            self._stray = bind(self._remove_stray, active, stray_bytes, made)
            with suppress(OSError):
                self.ready()
            raise
        for group, segment in zip(groups, targets, strict=True):
            if group.rolls:
                self._save_index(self._segments.roll(segment))
                self._unsynced.named()
            for header, base_offset, next_offset, append_time in group.placed:
                segment.add(
                    header.size_bytes,
                    base_offset,
                    next_offset,
                    append_time,
                    header.record_count,
                    config.index_interval_bytes,
                )
                self.append_time = append_time
            self._unsynced.wrote(segment)

    def write_ahead(self, bytes_max: int) -> int:
        """See ``Log.write_ahead``."""
        self.ready()
        active = self._segments.active
        begin = at = max(active.zeroed_bytes, active.size_bytes)
        wanted = min(WRITE_AHEAD_BYTES, max(WRITE_AHEAD_FIRST_BYTES, active.size_bytes))
        end = min(active.length, active.size_bytes + wanted, at + bytes_max)
        while at < end:
            zeros = _ZEROS[: end - at]
            active.file.write([zeros], at)
            at += len(zeros)
            active.zeroed_bytes = at
            self._unsynced.wrote_zeros(active)
        return at - begin

    @property
    def zeros_ahead(self) -> int:
        """Bytes behind the end that were written before."""
        active = self._segments.active
        return max(0, active.zeroed_bytes - active.size_bytes)

    def sync_failed(self, error: OSError) -> BrokerError:
        """Whatever a sync was for: nothing may be written any more (R21)."""
        self.failed = texts_storage.sync_failed(self._path, reason=str(error))
        return self.failed

    def _remove_stray(self, active: Segment, stray_bytes: int, made: list[Segment]) -> None:
        """Zero and sync, so that no crash can bring back what was answered with an error."""
        for segment in made:
            segment.forget()
            self._disk.remove(segment.path)
        zero(active.file, active.size_bytes, active.size_bytes + stray_bytes)
        try:
            self._disk.sync([active.file])
            self._disk.sync_directory(self._path)
        except NotBegun:
            raise  # the next append begins with it
        except OSError as error:
            raise self.sync_failed(error) from error
