"""What taking over a leader's batches will do, decided before anything is written. Pure.

The bytes stay as they are: a follower's log is its leader's, batch for batch. Every batch is
verified by both checksums, whatever the connection promised (R24), and must continue the log:
offsets without a gap, epochs and append times that never fall (S9, S10). Which sequence is next is
no question here, as the leader has answered it; the producers are taken down as a replay would.
"""

from tailrace.protocol.batch import BatchHeader, EndOfLog, scan_one
from tailrace.storage.append import LogConfig, Placing
from tailrace.storage.epochs import EpochHistory
from tailrace.storage.producers import SEQUENCES, ProducerTable, Sent
from tailrace.storage.scan import REASONS
from tailrace.storage.segment import Segment


class ReplicaRefused(Exception):
    """Bytes of a leader that cannot follow in this log. Nothing was written."""


class BeginsBelow(ReplicaRefused):
    """The leader's next batch begins below the end of this log, at ``base_offset``.

    Its batches were rewritten since, or its log starts inside of one: cut the log there first.
    """

    def __init__(self, base_offset: int, end: int) -> None:
        super().__init__(f"a batch from {base_offset} on, where {end} should follow")
        self.base_offset = base_offset


class ReplicaPlan:
    """What to write, and what becomes of epochs and producers. Made by ``Log.plan_replica``.

    Invariant: batches that were placed are the bytes from 0 on, without a gap.
    """

    def __init__(
        self,
        batches: memoryview,
        seed: int,
        config: LogConfig,
        active: Segment,
        epochs: EpochHistory,
        *,
        append_time: int,
        leader_epoch: int,
    ) -> None:
        self.begins_at = active.next_offset
        self.records = 0
        self.batches = 0
        self.epochs: EpochHistory | None = None  # as they will be; None: as they are
        self._placing = Placing(config, active)
        self.groups = self._placing.groups
        self._known = epochs
        self._epoch = epochs.before(active.next_offset)  # of the batch before
        self._epoch_max = leader_epoch
        self._time = append_time
        self._producers: list[tuple[int, int, Sent]] = []
        latest = epochs.entries[-1].start_offset if epochs.entries else -1
        self._begins_epoch = latest >= active.next_offset  # begun here, with nothing in it yet
        self._take(batches, seed)

    @property
    def end(self) -> int:
        """The log's, once it is written."""
        return self._placing.offset

    def replay(self, table: ProducerTable) -> None:
        """The batches were written: let the producers follow."""
        for producer_id, epoch, sent in self._producers:
            table.replay(producer_id, epoch, sent)

    def _take(self, data: memoryview, seed: int) -> None:
        position, end = 0, len(data)
        while position < end:
            header = scan_one(data, position, seed)
            if not isinstance(header, BatchHeader):
                reason = "cut off" if isinstance(header, EndOfLog) else REASONS[header.reason]
                raise ReplicaRefused(f"behind {self._placing.offset}: {reason}")
            self._check(header)
            base, following, time = header.base_offset, header.next_offset, header.append_time
            if header.leader_epoch != self._epoch or self._begins_epoch:
                self._begin_epoch(header.leader_epoch, base)
            self._placing.place(header, base, following, time)
            self._note_producer(header, following)
            self._time = time
            self.records += header.record_count
            self.batches += 1
            position += header.size_bytes
        self._give_bytes(data)

    def _check(self, header: BatchHeader) -> None:
        expected = self._placing.offset
        if header.base_offset != expected:
            if self.batches == 0 and header.base_offset < expected < header.next_offset:
                raise BeginsBelow(header.base_offset, expected)
            raise ReplicaRefused(f"offset {header.base_offset} where {expected} should follow")
        if not self._epoch <= header.leader_epoch <= self._epoch_max:
            raise ReplicaRefused(
                f"leader epoch {header.leader_epoch} at {expected}, between {self._epoch} and "
                f"{self._epoch_max} expected"
            )
        if header.append_time < self._time:
            raise ReplicaRefused(
                f"append time falls from {self._time} to {header.append_time} at {expected}"
            )

    def _begin_epoch(self, epoch: int, offset: int) -> None:
        """An epoch goes down where its first batch stands (R8)."""
        history = EpochHistory((self.epochs or self._known).entries)
        if history.found(epoch, offset):
            self.epochs = history
        self._epoch, self._begins_epoch = epoch, False

    def _note_producer(self, header: BatchHeader, following: int) -> None:
        sequence = header.base_sequence
        if header.producer_id < 0 or sequence < 0:
            return
        last = (sequence + header.last_offset_delta) % SEQUENCES
        sent = Sent(sequence, last, header.base_offset, following, header.append_time)
        self._producers.append((header.producer_id, header.producer_epoch, sent))

    def _give_bytes(self, data: memoryview) -> None:
        position = 0
        for group in self.groups:
            group.buffers.append(data[position : position + group.size_bytes])
            position += group.size_bytes
