"""The bytes of one simulated file: what is written, what is durable, and what a crash leaves.

The current bytes live in an anonymous map, so that a sparse file costs what was touched, views
are free and see later writes, as with a real map. Beside them stand the durable bytes of every
page written since the last sync (``_undo``) and, if crash outcomes are wanted, the writes
themselves in order (``_pending``).

Invariants: nothing but zeros lies at or above ``high``; a page without an entry in ``_undo`` and
``_stuck`` is durable as it is; ``_undo`` and ``_stuck`` share no page.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

from tailrace.simulation.chance import Pick

PAGE = 4096
SECTOR = 512
ZEROS = bytes(PAGE)
HUGE_PAGE = 2 << 20


@dataclass(frozen=True, slots=True)
class Write:
    """One write not yet synced."""

    position: int
    data: bytes

    @property
    def end(self) -> int:
        return self.position + len(self.data)


@dataclass(frozen=True, slots=True)
class Resize:
    """One change of length not yet synced."""

    size: int


class Content:
    """See the module. ``ordered`` keeps the writes, for crash outcomes other than all or none."""

    def __init__(self, *, ordered: bool) -> None:
        self.size = 0
        self.high = 0
        self._ordered = ordered
        self._map: mmap.mmap | None = None
        self._durable_size = 0
        self._undo: dict[int, bytes | None] = {}  # page -> durable bytes; None: zeros
        self._stuck: dict[int, bytes | None] = {}  # the same, where a failed sync gave up
        self._pending: list[Write | Resize] = []

    @property
    def dirty(self) -> bool:
        """Whether a sync would have anything to do."""
        return bool(self._undo) or self._durable_size != self.size

    @property
    def pending(self) -> Sequence[Write | Resize]:
        return self._pending

    def write(self, buffers: Sequence[bytes | bytearray | memoryview], position: int) -> None:
        """Write the buffers from ``position`` on."""
        end = position + sum(len(buffer) for buffer in buffers)
        if end == position:
            return
        self._touch(position, end)
        data = self._reserve(end)
        at = position
        for buffer in buffers:
            data[at : at + len(buffer)] = buffer
            at += len(buffer)
        self.size = max(self.size, end)
        self.high = max(self.high, end)
        if self._ordered:
            self._pending.append(Write(position, data[position:end]))

    def read(self, length: int, position: int) -> bytes:
        """Up to ``length`` bytes; fewer at the end."""
        end = min(position + length, self.size)
        if end <= position or self._map is None:
            return b""
        return self._map[position:end]

    def view(self, position: int, length: int) -> memoryview:
        """A read-only window; stays valid whatever happens to the file."""
        assert 0 <= position <= position + length <= self.size, "a view beyond the file"
        if length == 0 or self._map is None:
            return memoryview(b"")
        return memoryview(self._map)[position : position + length].toreadonly()

    def resize(self, size: int) -> None:
        """Grow by zeros, or cut."""
        if size < self.size:
            if size < self.high:
                self._touch(size, self.high)
                self._reserve(size)[size : self.high] = bytes(self.high - size)
            self.high = min(self.high, size)
        elif size:
            self._reserve(size)
        self.size = size
        if self._ordered:
            self._pending.append(Resize(size))

    def sync(self) -> None:
        """Everything written so far is durable, but for pages an earlier failure gave up."""
        self._undo.clear()
        self._pending.clear()
        self._durable_size = self.size

    def sync_failed(self) -> None:
        """As Linux does it: the pages are marked clean, yet are not on the disk (fsyncgate)."""
        self._stuck.update(self._undo)
        self._undo.clear()
        self._pending.clear()

    def durable(self, position: int, length: int) -> bytes:
        """What a reader finds after a power cut that keeps nothing of what was not synced."""
        end = min(position + length, self._durable_size)
        found = bytearray()
        while position < end:
            page, at = divmod(position, PAGE)
            until = min(end, (page + 1) * PAGE)
            found += self._durable_page(page)[at : at + until - position]
            position = until
        return bytes(found)

    def durable_size(self) -> int:
        return self._durable_size

    def flip(self, position: int, mask: int) -> None:
        """Bit rot: changed on the disk and in the cache alike."""
        assert self._map is not None
        assert 0 <= position < self.size
        self._map[position] ^= mask
        for kept in (self._undo, self._stuck):
            if page := kept.get(position // PAGE):
                at = position % PAGE
                kept[position // PAGE] = page[:at] + bytes([page[at] ^ mask]) + page[at + 1 :]

    def after_crash(self, pick: Pick) -> "Content":
        """What is on the disk after a power cut; this content stays as it is."""
        left = Content(ordered=self._ordered)
        left.size = self._durable_size
        left.high = min(self.high, self._durable_size)
        if left.size:
            data = left._reserve(left.size)
            if self._map is not None:
                data[: left.high] = self._map[: left.high]
            for kept in (self._undo, self._stuck):
                for page, old in kept.items():
                    self._restore(left, page, old)
        for change in self._pending:
            if isinstance(change, Resize):
                if pick(2):
                    left.resize(change.size)
            else:
                _keep_some(left, change, pick)
        left.sync()
        return left

    @staticmethod
    def _restore(left: "Content", page: int, old: bytes | None) -> None:
        start, end = page * PAGE, min((page + 1) * PAGE, left.size)
        if start < end and left._map is not None:
            left._map[start:end] = (old or ZEROS)[: end - start]
            left.high = max(left.high, end) if old else left.high

    def _durable_page(self, page: int) -> bytes:
        for kept in (self._undo, self._stuck):
            if page in kept:
                return kept[page] or ZEROS
        found = self._map[page * PAGE : (page + 1) * PAGE] if self._map is not None else b""
        return found.ljust(PAGE, b"\0")

    def _touch(self, position: int, end: int) -> None:
        """Keep the durable bytes of the pages that are about to change."""
        fresh = -(-self.high // PAGE)  # pages from here on were never written
        for page in range(position // PAGE, -(-end // PAGE)):
            if page in self._undo:
                continue
            if page in self._stuck:
                self._undo[page] = self._stuck.pop(page)
            elif page >= fresh:
                self._undo[page] = None
            else:
                self._undo[page] = self._durable_page(page)

    def _reserve(self, size: int) -> mmap.mmap:
        """The map, at least ``size`` bytes long. An outgrown one is left to those who view it."""
        if self._map is None or len(self._map) < size:
            capacity = max(size, PAGE, 2 * len(self._map) if self._map is not None else 0)
            grown = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if capacity >= HUGE_PAGE:
                grown.madvise(mmap.MADV_NOHUGEPAGE)  # one byte written shall not cost 2 MiB
            if self._map is not None:
                grown[: self.high] = self._map[: self.high]
            self._map = grown
        return self._map


def _keep_some(left: Content, write: Write, pick: Pick) -> None:
    """One write that was under way at a power cut: any of the outcomes that a disk may have."""
    first_page, last_page = write.position // PAGE, (write.end - 1) // PAGE
    first_sector, last_sector = write.position // SECTOR, (write.end - 1) // SECTOR
    outcomes = ["dropped", "kept"]
    if write.end > left.size:
        outcomes.append("grown")
    if first_sector < last_sector:
        outcomes.append("sectors")
    if first_page < last_page:
        outcomes.append("pages")
    outcome = outcomes[pick(len(outcomes))]
    if outcome == "kept":
        left.write([write.data], write.position)
    elif outcome == "grown":
        left.resize(write.end)
    elif outcome == "sectors":
        cut = (first_sector + 1 + pick(last_sector - first_sector)) * SECTOR
        left.write([write.data[: cut - write.position]], write.position)
    elif outcome == "pages":
        for page in range(first_page, last_page + 1):
            if pick(2):
                start = max(write.position, page * PAGE)
                end = min(write.end, (page + 1) * PAGE)
                left.write([write.data[start - write.position : end - write.position]], start)
