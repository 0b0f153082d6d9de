"""What one append will do, decided before anything is written. Pure but for the bytes it patches.

Every batch is verified, held against its producer's sequence, given its offsets and patched in
place; batches that do not fit any more begin a new segment. A refused batch or a duplicate takes
nothing; later ones of the same producer see that. Nothing of the log changes here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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

    def __post_init__(self) -> None:
        assert 0 < self.segment_bytes <= SEGMENT_BYTES_MAX, "positions are 32 bits wide"


@dataclass(frozen=True, slots=True)
class Appended:
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


@dataclass(slots=True)
class Group:
    """Batches that go into one segment, in one gathered write."""

    base_offset: int  # of the first
    rolls: bool  # a new segment begins with them
    buffers: list[memoryview] = field(default_factory=list[memoryview])
    placed: list[Placed] = field(default_factory=list[Placed])
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Context:
    """What a plan needs to know of its log."""

    topic: str
    partition: int
    seed: int
    config: LogConfig
    leader_epoch: int
    now_ms: int
    append_time: int  # max of the clock and the batch before (R20)


class AppendPlan:
    """The outcome of planning: a result per batch, and what to write."""

    def __init__(self, context: Context, active: Segment, producers: ProducerPlan) -> None:
        self._context = context
        self._producers = producers
        self._offset = active.next_offset
        self._base = active.base_offset  # of the segment that the next batch goes into
        self._position = active.size_bytes
        self._length = active.length
        self._since = active.first_append_time
        self.results: list[Appended | TailraceError] = []
        self.groups: list[Group] = []

    def take(self, batches: Sequence[memoryview]) -> None:
        for entry in batches:
            try:
                self.results.append(self._place(entry))
            except TailraceError as error:
                self.results.append(error)

    def _place(self, entry: memoryview) -> Appended:
        context = self._context
        header = verify_produced(
            entry,
            context.seed,
            context.now_ms,
            context.config.timestamp_ahead_max_ms,
            topic=context.topic,
            partition=context.partition,
        )
        self._check_size(header)
        if (sent := self._producers.check(header)) is not None:
            return Appended(sent.base_offset, sent.next_offset, sent.append_time, duplicate=True)
        base, time = self._offset, context.append_time
        patch(
            entry,
            seed=context.seed,
            base_offset=base,
            leader_epoch=context.leader_epoch,
            append_time=time,
        )
        placed = Placed(header, base, base + header.last_offset_delta + 1)
        group = self._group(placed)
        group.buffers.append(entry)
        group.placed.append(placed)
        group.size_bytes += len(entry)
        self._position += len(entry)
        self._offset = placed.next_offset
        self._producers.add(header, base, time)
        return Appended(base, placed.next_offset, time)

    def _group(self, placed: Placed) -> Group:
        """The group that the batch joins: the last one, unless a segment ends before it."""
        rolls = self._position > 0 and self._is_full(placed)
        if rolls:
            self._base, self._position = placed.base_offset, 0
            self._length, self._since = self._context.config.segment_bytes, -1
        if self._since < 0:
            self._since = self._context.append_time
        if rolls or not self.groups:
            self.groups.append(Group(placed.base_offset, rolls))
        return self.groups[-1]

    def _is_full(self, placed: Placed) -> bool:
        age_max = self._context.config.segment_age_ms
        return (
            self._position + placed.header.size_bytes > self._length
            or placed.next_offset - self._base > OFFSETS_MAX
            or (age_max is not None and self._context.append_time - self._since >= age_max > 0)
        )

    def _check_size(self, header: BatchHeader) -> None:
        """Refuse what surely holds a record above the limit; columns stay closed."""
        if header.compression != "none":
            return
        limit = self._context.config.record_bytes_max
        size = (header.size_bytes - HEADER_BYTES) // header.record_count
        if size > limit + RECORD_OVERHEAD_BYTES:
            raise texts.record_too_large(
                self._context.topic, self._context.partition, size=size, limit=limit
            )
