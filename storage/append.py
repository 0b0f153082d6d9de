"""What one append will do, decided before anything is written. Pure but for the bytes it patches.

Every batch is verified, held against its producer's sequence, given its offsets and patched in
place; batches that do not fit any more begin a new segment. A refused batch or a duplicate takes
nothing; later ones of the same producer see that. Nothing of the log changes here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tailrace.protocol import texts
from tailrace.protocol.batch import HEADER_BYTES, BatchHeader, patch, verify_produced
from tailrace.protocol.errors import TailraceError
from tailrace.storage.producers import ProducerPlan
from tailrace.storage.segment import OFFSETS_MAX, SEGMENT_BYTES_MAX, Segment

RECORD_OVERHEAD_BYTES = 64  # of the columns' msgpack around a single record


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Settings of one log, some of them the topic's."""

    segment_bytes: int = 128 * 1024 * 1024
    segment_age_ms: int | None = 86_400_000  # None: by size alone
    timestamp_ahead_max_ms: float = 3_600_000
    record_bytes_max: int = 1024 * 1024
    index_interval_bytes: int = 4096
    synced: bool = True  # False (durability "os"): no sync rounds come, and nothing waits for one

    def __post_init__(self) -> None:
        assert 0 < self.segment_bytes <= SEGMENT_BYTES_MAX, "positions are 32 bits wide"


class Appended(NamedTuple):
    """Where a batch stands: its first offset, the one behind its last, its append time in ms."""

    base_offset: int
    next_offset: int
    append_time: int
    duplicate: bool = False  # it was written before; nothing was written now


class Placed(NamedTuple):
    """A batch that is to be written."""

    header: BatchHeader
    base_offset: int
    next_offset: int
    append_time: int


class Group:
    """Batches that go into one segment, in one gathered write."""

    __slots__ = ("base_offset", "buffers", "placed", "rolls", "size_bytes")

    def __init__(self, base_offset: int, *, rolls: bool) -> None:
        self.base_offset = base_offset  # of the first
        self.rolls = rolls  # a new segment begins with them
        self.buffers: list[memoryview] = []
        self.placed: list[Placed] = []
        self.size_bytes = 0


class Placing:
    """Where batches go, one behind the other: which begin a new segment."""

    __slots__ = ("_base", "_config", "_length", "_since", "groups", "offset", "position")

    def __init__(self, config: LogConfig, active: Segment) -> None:
        self.groups: list[Group] = []
        self.offset = active.next_offset  # of the next batch
        self.position = active.size_bytes
        self._config = config
        self._base = active.base_offset  # of the segment that the next batch goes into
        self._length = active.length
        self._since = active.first_append_time

    def place(self, header: BatchHeader, base: int, following: int, append_time: int) -> Group:
        """The group that the batch joins: the last one, unless a segment ends before it."""
        size_bytes = header.size_bytes
        rolls = self.position > 0 and self._is_full(size_bytes, following, append_time)
        if rolls:
            self._base, self.position = base, 0
            self._length, self._since = self._config.segment_bytes, -1
        if self._since < 0:
            self._since = append_time
        if rolls or not self.groups:
            self.groups.append(Group(base, rolls=rolls))
        group = self.groups[-1]
        group.placed.append(Placed(header, base, following, append_time))
        group.size_bytes += size_bytes
        self.position += size_bytes
        self.offset = following
        return group

    def _is_full(self, size_bytes: int, following: int, append_time: int) -> bool:
        age_max = self._config.segment_age_ms
        return (
            self.position + size_bytes > self._length
            or following - self._base > OFFSETS_MAX
            or (age_max is not None and append_time - self._since >= age_max)
        )


class AppendPlan:
    """The outcome of planning: a result per batch, and what to write."""

    def __init__(
        self,
        name: tuple[str, int],
        seed: int,
        config: LogConfig,
        active: Segment,
        producers: ProducerPlan,
        *,
        leader_epoch: int,
        now_ms: int,
        append_time: int,
    ) -> None:
        self.producers = producers
        self.results: list[Appended | TailraceError] = []
        self._placing = Placing(config, active)
        self._name = name
        self._seed = seed
        self._config = config
        self._leader_epoch = leader_epoch
        self._now_ms = now_ms
        self._append_time = append_time

    @property
    def groups(self) -> list[Group]:
        """What is to be written."""
        return self._placing.groups

    def take(self, batches: Sequence[memoryview]) -> None:
        """Plan these batches, in order."""
        for entry in batches:
            try:
                self.results.append(self._place(entry))
            except TailraceError as error:
                self.results.append(error)

    def _place(self, entry: memoryview) -> Appended:
        topic, partition = self._name
        ahead_max = self._config.timestamp_ahead_max_ms
        header = verify_produced(
            entry, self._seed, self._now_ms, ahead_max, topic=topic, partition=partition
        )
        self._check_size(header)
        if (sent := self.producers.check(header)) is not None:
            return Appended(sent.base_offset, sent.next_offset, sent.append_time, duplicate=True)
        base, time = self._placing.offset, self._append_time
        patch(
            entry,
            seed=self._seed,
            base_offset=base,
            leader_epoch=self._leader_epoch,
            append_time=time,
        )
        following = base + header.last_offset_delta + 1
        self._placing.place(header, base, following, time).buffers.append(entry)
        self.producers.add(header, base, time)
        return Appended(base, following, time)

    def _check_size(self, header: BatchHeader) -> None:
        """Refuse what surely holds a record above the limit; columns stay closed."""
        limit = self._config.record_bytes_max
        if header.size_bytes <= limit or header.compression != "none":
            return
        size = (header.size_bytes - HEADER_BYTES) // header.record_count
        if size > limit + RECORD_OVERHEAD_BYTES:
            topic, partition = self._name
            raise texts.record_too_large(topic, partition, size=size, limit=limit)
