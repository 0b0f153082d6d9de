"""The committed offsets of one group (pure).

Invariants:
- ``committed`` holds only what is durable: it changes by ``applied`` alone;
- a commit never lowers an offset, also not one that is still on its way to the disk (S24); only a
  reset does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tailrace.broker.assignment import Partition
from tailrace.protocol.fields import WireError
from tailrace.protocol.messages import (
    CommitPartition,
    CommitResult,
    CommittedOffset,
    OwnedPartitions,
)

NOTHING = -1


@dataclass(frozen=True, slots=True)
class Committed:
    """What is committed of one partition."""

    offset: int  # the next one to be read
    leader_epoch: int  # of the record before it; -1 here and below: not known
    timestamp: int
    append_time: int
    committed_at: int  # ms since the epoch
    metadata: str


@dataclass(slots=True)
class Writes:
    """What one request makes of the offsets: to be written, then ``applied``."""

    puts: dict[Partition, Committed] = field(default_factory=dict[Partition, Committed])
    errors: dict[int, WireError] = field(default_factory=dict[int, WireError])  # by place


class Offsets:
    """All of one group's."""

    def __init__(self) -> None:
        self.committed: dict[Partition, Committed] = {}
        self._pending: dict[Partition, Committed] = {}  # checked, not yet durable; the newest

    def check(
        self,
        partitions: Sequence[CommitPartition],
        errors: Mapping[int, WireError],
        now_ms: int,
    ) -> Writes:
        """What is to be written, as the newest. ``errors``: by place, those refused already."""
        writes = Writes(errors=dict(errors))
        for place, one in enumerate(partitions):
            if place in errors:
                continue
            key = (one.topic_id, one.partition)
            present = self._newest(key)
            if present is not None and not _moves(present, one):
                continue
            writes.puts[key] = self._pending[key] = Committed(
                one.offset, one.leader_epoch, one.timestamp, one.append_time, now_ms, one.metadata
            )
        return writes

    def reset(self, targets: Mapping[Partition, int], now_ms: int) -> Writes:
        """Put offsets where an admin wants them."""
        puts = {key: Committed(offset, -1, -1, -1, now_ms, "") for key, offset in targets.items()}
        self._pending.update(puts)
        return Writes(puts)

    def applied(self, puts: Mapping[Partition, Committed]) -> None:
        """They are durable."""
        for key, value in puts.items():
            self.committed[key] = value
            if self._pending.get(key) is value:
                del self._pending[key]

    def failed(self) -> None:
        """What was on its way did not get there: nothing of it counts."""
        self._pending.clear()

    def forget(self, keys: Iterable[Partition]) -> None:
        """Their topics are gone."""
        for key in keys:
            self.committed.pop(key, None)
            self._pending.pop(key, None)

    def results(
        self, partitions: Sequence[CommitPartition], writes: Writes
    ) -> tuple[CommitResult, ...]:
        """One per partition, in order: what is committed now."""
        return tuple(
            CommitResult(
                one.topic_id,
                one.partition,
                writes.errors.get(place),
                self._offset((one.topic_id, one.partition)),
            )
            for place, one in enumerate(partitions)
        )

    def fetch(self, asked: Sequence[OwnedPartitions] | None) -> tuple[CommittedOffset, ...]:
        """What is committed of each; None: of all, sorted."""
        keys = (
            sorted(self.committed)
            if asked is None
            else [(topic.topic_id, number) for topic in asked for number in topic.partitions]
        )
        return tuple(_answer(key, self.committed.get(key)) for key in keys)

    def _newest(self, key: Partition) -> Committed | None:
        return self._pending.get(key) or self.committed.get(key)

    def _offset(self, key: Partition) -> int:
        present = self.committed.get(key)
        return NOTHING if present is None else present.offset


def _moves(present: Committed, wanted: CommitPartition) -> bool:
    """Whether a commit changes anything: further on, or other words at the same place."""
    if wanted.offset != present.offset:
        return wanted.offset > present.offset
    return wanted.metadata != present.metadata


def _answer(key: Partition, value: Committed | None) -> CommittedOffset:
    if value is None:
        return CommittedOffset(*key, NOTHING, -1, -1, -1, -1, "")
    return CommittedOffset(
        *key,
        value.offset,
        value.leader_epoch,
        value.timestamp,
        value.append_time,
        value.committed_at,
        value.metadata,
    )
