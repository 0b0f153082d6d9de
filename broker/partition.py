"""One partition: its log, its leadership, and those who wait for it.

Appending, syncing and reading meet here; all of it is synchronous, so nothing needs a lock.

Invariants:
- batches enter the log in the order they were gathered: a connection's order is kept;
- ``unacked`` holds exactly the batches with acks=all between the high watermark and the log's
  end, in order of arrival; a batch leaves it once, by the watermark (S1) or by an error;
- nobody reads at or above the high watermark (S12);
- only the leader takes batches, and only its high watermark follows the log by itself;
- an offline partition serves nothing and appends nothing.
"""

import logging
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Literal, Protocol

import trio

from tailrace.broker import election
from tailrace.broker.catalog import Leadership, Topic
from tailrace.broker.config import TopicConfig
from tailrace.broker.metrics import TopicMetrics
from tailrace.broker.replica import Replica
from tailrace.broker.world import Offload
from tailrace.protocol import texts
from tailrace.protocol.batch_header import base_timestamp
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import ACKS_ALL
from tailrace.storage.disk import NO_ROOM
from tailrace.storage.log import Appended, Log, LogSlice
from tailrace.storage.segment import Quarantine

log = logging.getLogger("tailrace.broker.partition")

AHEAD_AGAIN_BYTES = 2 * 1024 * 1024  # appended since zeros were last written ahead
AHEAD_START_BYTES = AHEAD_AGAIN_BYTES - 65_536  # one that is hardly used gets no zeros
OLD_MS = 7 * 86_400_000  # event times older than that are counted, not refused (R20)

Role = Literal["leader", "follower", "none"]


class Producing(Protocol):
    """A produce request in hand. Each slot is settled or refused once."""

    acks: int
    timeout_s: float
    deadline: float  # in trio's time

    def settle(self, slot: int, written: Appended, log_start: int) -> None: ...

    def refuse(self, slot: int, error: TailraceError) -> None: ...


class Room(Protocol):
    """The room on the disk."""

    def appended(self, size_bytes: int) -> None:
        """So much of it was taken."""
        ...

    def rolled(self, partition: "Partition") -> None:
        """A segment was closed."""
        ...

    def ran_out(self, partition: "Partition", error: OSError) -> TailraceError:
        """A write found no room: what to tell the producer."""
        ...


class Reader(Protocol):
    """Somebody who waits for records."""

    def wake(self) -> None:
        """There is more to read, or never will be. Must not raise."""
        ...


Gathered = tuple[memoryview, Producing, int]


class Partition:
    def __init__(
        self,
        topic: Topic,
        number: int,
        config: TopicConfig,
        log: Log,
        metrics: TopicMetrics,
        room: Room,
        *,
        broker_id: str,
    ) -> None:
        self.topic = topic.name
        self.internal = topic.internal
        self.topic_id = topic.topic_id
        self.number = number
        self.copies = len(topic.partitions[number].replicas)  # as many are wanted
        self.config = config
        self.log = log
        self.metrics = metrics
        self.broker_id = broker_id  # this broker's
        self.role: Role = "none"  # until the metadata store has said who leads
        self.leadership = Leadership(None, 0, ())
        # Until everything recovered is synced nothing of it is shown (S12): see ``advance``.
        self.replica = Replica(config.durability, log.start)
        self.offline: TailraceError | None = None
        self.unsynced_batches = 0
        self.ahead_bytes = AHEAD_START_BYTES  # written since zeros were last written ahead
        self._room = room
        self._gathered: list[Gathered] = []
        self._unacked: deque[tuple[int, Producing, int, Appended]] = deque()
        self.maintenance = trio.Lock()  # held by whoever removes or rewrites segments
        self._verifying = trio.Lock()
        self._readers: dict[Reader, None] = {}  # in order of arrival
        self._told: set[Quarantine] = set()

    def __repr__(self) -> str:
        return f"<Partition {self.topic}[{self.number}]>"

    @property
    def high_watermark(self) -> int:
        return self.replica.high_watermark

    @property
    def serving(self) -> bool:
        return self.offline is None

    @property
    def waiting_batches(self) -> int:
        """Batches whose producers wait for the high watermark."""
        return len(self._unacked)

    # ── who leads ────────────────────────────────────────────────────────────────────────────

    def lead(self, leadership: Leadership) -> None:
        """Begin the epoch in which this broker leads."""
        assert leadership.leader == self.broker_id, "somebody else is the leader"
        assert leadership.leader_epoch > self.leadership.leader_epoch, "epochs only rise (S9)"
        assert self.log.epochs[-1].epoch == leadership.leader_epoch, "begun in the log first (R8)"
        self._give_up_lead(leadership)
        self.role = "leader"
        self.replica.lead(
            leadership,
            epoch_start=self.log.end,
            min_isr=election.min_isr(self.config.min_isr, self.copies),
        )
        self._tell_leader(leadership)
        self.advance()

    def follow(self, leadership: Leadership) -> None:
        """Another broker leads, or nobody does: what waited here goes to whoever does.

        The same epoch again is news of the replicas alone.
        """
        current = self.leadership
        assert leadership.leader != self.broker_id, "this broker is the leader"
        assert leadership.leader_epoch >= current.leader_epoch, "epochs only rise (S9)"
        if self.role != "follower" or leadership.leader != current.leader:
            self._give_up_lead(leadership)
            self._tell_leader(leadership)
        self.role = "follower"
        self.leadership = leadership

    def step_down(self) -> None:
        """Lead no more, without knowing yet who will: as ``follow`` without a leader."""
        self._give_up_lead(replace(self.leadership, leader=None))
        self.role = "none"

    def not_leader(self) -> TailraceError:
        """T032, for whoever takes this broker for the leader."""
        leader = self.leadership.leader
        return texts.not_leader(
            self.topic,
            self.number,
            broker=self.broker_id,
            leader=leader if leader != self.broker_id else None,
        )

    def _give_up_lead(self, leadership: Leadership) -> None:
        """Let everybody who waits for this broker as it was look for the leader."""
        self.leadership = leadership
        self.role = "none"
        self.replica.follow(leadership)
        self._refuse_all(self.not_leader())
        self._wake_readers()

    def _tell_leader(self, leadership: Leadership) -> None:
        log.info(
            "%s[%d]: %s leads in epoch %d from offset %d",
            *(self.topic, self.number, leadership.leader, leadership.leader_epoch, self.log.end),
            extra={
                **{"event": "partition.leader_changed", "code": None, **self._name},
                **{"leader": leadership.leader, "leader_epoch": leadership.leader_epoch},
            },
        )

    @property
    def _name(self) -> dict[str, object]:
        """The fields of a log line that say which it is."""
        return {"topic": self.topic, "partition": self.number}

    def reconfigure(self, config: TopicConfig) -> None:
        self.config = config
        self.replica.reconfigure(config.durability, election.min_isr(config.min_isr, self.copies))
        self.advance()

    # ── producing ────────────────────────────────────────────────────────────────────────────

    def gather(self, entry: memoryview, producing: Producing, slot: int) -> bool:
        """Keep a batch for the next append; whether it is the first one kept."""
        self._gathered.append((entry, producing, slot))
        return len(self._gathered) == 1

    def roll(self, now_ms: int) -> None:
        """Begin a new segment early (the simulation likes that)."""
        with suppress(OSError):
            self.log.roll_if_old(now_ms + self.config.segment_age_ms)

    def append(self, now_ms: int) -> None:
        """Write all that was gathered, with one gathered write, and settle what may be."""
        gathered, self._gathered = self._gathered, []
        if self.offline is not None:
            _refuse(gathered, self.offline)
            return
        if self.role != "leader":
            _refuse(gathered, self.not_leader())
            return
        epoch, segments = self.leadership.leader_epoch, self.log.segment_count
        try:
            outcomes = self.log.append(
                [entry for entry, _, _ in gathered], leader_epoch=epoch, now_ms=now_ms
            )
        except OSError as error:
            # The log is as it was. Without room the broker lives on; anything else is a disk
            # that lost a write, and the partition stops rather than guess.
            if error.errno in NO_ROOM:
                _refuse(gathered, self._room.ran_out(self, error))
            else:
                broken = texts.partition_offline(self.topic, self.number, reason=str(error))
                self.fail(broken)
                _refuse(gathered, broken)
            return
        if self.log.segment_count > segments:
            self.tell_rolled()
            self._room.rolled(self)
        log_start, before_bytes = self.log.start, self.ahead_bytes
        for (entry, producing, slot), outcome in zip(gathered, outcomes, strict=True):
            if isinstance(outcome, TailraceError):
                producing.refuse(slot, outcome)
                continue
            self._count(entry, outcome)
            if producing.acks == ACKS_ALL and outcome.next_offset > self.high_watermark:
                self._unacked.append((outcome.next_offset, producing, slot, outcome))
            else:
                producing.settle(slot, outcome, log_start)
        self._room.appended(self.ahead_bytes - before_bytes)
        self.advance()

    def tell_rolled(self) -> None:
        """Log that a new segment was begun."""
        log.info(
            "%s[%d]: new segment, %d in all",
            *(self.topic, self.number, self.log.segment_count),
            extra={"event": "segment.rolled", "code": None, **self._name},
        )

    def advance(self) -> None:
        """Let the high watermark follow the log; settle and wake whoever waited for it."""
        if self.role != "leader":
            return
        if not self.replica.observe_own(self.log.end, self.log.flushed):
            return
        high_watermark, log_start = self.high_watermark, self.log.start
        unacked = self._unacked
        while unacked and unacked[0][0] <= high_watermark:
            _, producing, slot, written = unacked.popleft()
            producing.settle(slot, written, log_start)
        self._wake_readers()

    def expire(self, now: float) -> bool:
        """Give up on batches that are not committed in their time; whether there were any."""
        late = [one for one in self._unacked if one[1].deadline <= now]
        for one in late:
            self._unacked.remove(one)
            _, producing, slot, written = one
            error = texts.commit_timeout(
                self.topic,
                self.number,
                offset=written.base_offset,
                waited_s=producing.timeout_s,
            )
            producing.refuse(slot, error)
        return bool(late)

    def fail(self, error: TailraceError) -> None:
        """Go offline: whoever waits gets the error, and so does whoever comes."""
        self.offline = error
        self._refuse_all(error)
        self._wake_readers()

    def _refuse_all(self, error: TailraceError) -> None:
        """Whoever waits here is told."""
        for _, producing, slot, _ in self._unacked:
            producing.refuse(slot, error)
        self._unacked.clear()
        gathered, self._gathered = self._gathered, []
        _refuse(gathered, error)

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    def read(self, offset: int, bytes_max: int) -> LogSlice:
        """Whole batches from the one that holds ``offset``, below the high watermark.

        Empty at the high watermark. T033 offline, T041 out of range, T035 damaged there.
        """
        if self.offline is not None:
            raise self.offline
        if not self.log.start <= offset <= self.high_watermark:
            raise texts.offset_out_of_range(
                self.topic,
                self.number,
                requested=offset,
                start=self.log.start,
                end=self.high_watermark,
            )
        return self.log.read(offset, bytes_max, self.high_watermark)

    def unreadable(self, error: OSError) -> TailraceError:
        """What a reader is told when a file could not be read; the partition stays online."""
        log.error(
            "%s[%d] cannot be read: %s",
            *(self.topic, self.number, error),
            extra={"event": "partition.unreadable", "code": "T033", "topic": self.topic},
        )
        return texts.partition_offline(self.topic, self.number, reason=str(error))

    async def verify(self, offset: int, offload: Offload) -> None:
        """Verify the segment that holds ``offset``, in a thread, if that was not done (R24)."""
        async with self._verifying:  # many may wait for the same segment: it is read once
            work = self.log.verify_pending(offset)
            if work is not None:
                await offload.run(work)
                self.tell_damage()

    async def doubt(self, offset: int, offload: Offload) -> None:
        """Somebody found damage in the segment that holds ``offset``: fence it in (R25)."""
        offset = max(offset, self.log.start)
        self.log.doubt(offset)
        if offset < self.log.end:
            await self.verify(offset, offload)

    def tell_damage(self) -> None:
        """Log and count every damaged range once, whenever it was found (R24, R25)."""
        for damage in self.log.quarantined:
            if damage in self._told:
                continue
            self._told.add(damage)
            self.metrics.corrupt_batches.inc()
            error = texts.corruption_found(
                damage.file,
                position=damage.position,
                reason=damage.reason,
                first_offset=damage.first_offset,
                next_offset=damage.next_offset,
            )
            log.error("%s", error, extra={"event": "log.corruption", "code": error.code})

    def damage(self) -> list[str]:
        """Its damaged ranges, for people."""
        return [
            f"{texts.partition_name(self.topic, self.number)}: offsets {one.first_offset:,} to"
            f" {one.next_offset - 1:,} are damaged and not served"
            for one in self.log.quarantined
            if one.next_offset > self.log.start
        ]

    def park(self, reader: Reader) -> None:
        self._readers[reader] = None

    def unpark(self, reader: Reader) -> None:
        self._readers.pop(reader, None)

    def _wake_readers(self) -> None:
        for reader in list(self._readers):
            reader.wake()

    def _count(self, entry: memoryview, written: Appended) -> None:
        if not written.duplicate:
            self.unsynced_batches += 1
            self.metrics.records_in.inc(written.next_offset - written.base_offset)
            self.metrics.bytes_in.inc(len(entry))
            self.ahead_bytes += len(entry)
            if base_timestamp(entry) < written.append_time - OLD_MS:
                self.metrics.old_timestamps.inc()


def _refuse(gathered: list[Gathered], error: TailraceError) -> None:
    for _, producing, slot in gathered:
        producing.refuse(slot, error)
