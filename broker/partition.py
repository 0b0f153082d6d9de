"""One partition: its log, its part in leading or following, and those who wait for it.

Appending, syncing and reading meet here; all of it is synchronous, so nothing needs a lock.

Invariants:
- batches enter the log in the order they were gathered: a connection's order is kept;
- ``unacked`` holds exactly the batches with acks=all between the high watermark and the log's
  end, in order of arrival; a batch leaves it once, by the watermark (S1) or by an error;
- nobody reads at or above the high watermark (S12);
- only the leader takes batches, and only its high watermark follows the log by itself;
- an offline partition serves nothing and appends nothing.
"""

import copy
import logging
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import trio

from tailrace.broker import election
from tailrace.broker.ahead import Ahead
from tailrace.broker.catalog import Leadership, Topic
from tailrace.broker.config import TopicConfig
from tailrace.broker.local_copy import LocalCopy
from tailrace.broker.metrics import TopicMetrics
from tailrace.broker.replica import IsrChange, Replica
from tailrace.broker.waiting import UNTOLD, Copier, Following, Producing, Reader, Room, Told
from tailrace.protocol import texts
from tailrace.protocol.batch_header import base_timestamp
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import ACKS_ALL, FetchPartition
from tailrace.storage.disk import NO_ROOM
from tailrace.storage.epochs import EpochStart
from tailrace.storage.log import Appended, Log, LogSlice

log = logging.getLogger("tailrace.broker.partition")

OLD_MS = 7 * 86_400_000  # event times older than that are counted, not refused (R20)

Role = Literal["leader", "follower", "none"]

Gathered = tuple[memoryview, Producing, int]


class Partition(LocalCopy):
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
        super().__init__(topic, number, config, log, metrics)
        self.broker_id = broker_id  # this broker's
        self.role: Role = "none"  # until the metadata store has said who leads
        self.leadership = Leadership(None, 0, ())
        # Until everything recovered is synced nothing of it is shown (S12): see ``advance``.
        self.replica = Replica(config.durability, log.start)
        self._held_copies = self.copies  # those that "auto" goes by: see ``_require``
        self.frozen = False  # takes no batches: the lead is being handed over
        self.changing = trio.Lock()  # held by whoever changes the log's end for a leader
        self.cutting = False  # a thread changes the log: nobody may read or sync it
        self.following = Following()
        self.unsynced_batches = 0
        self.ahead = Ahead()
        self.room = room
        self._gathered: list[Gathered] = []
        self._unacked: deque[tuple[int, Producing, int, Appended]] = deque()
        self._readers: dict[Reader, None] = {}  # in order of arrival
        self._copiers: dict[Copier, None] = {}  # followers that wait
        self._news: dict[str, Told] = {}  # what followers know, by broker id
        self._held = trio.Event()  # set when a follower fetched while the partition is frozen

    @property
    def high_watermark(self) -> int:
        return self.replica.high_watermark

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for a batch to be written, or committed."""
        return bool(self._unacked or self._gathered)

    @property
    def waiting_batches(self) -> int:
        """Batches whose producers wait for the high watermark."""
        return len(self._unacked)

    # ── who leads ────────────────────────────────────────────────────────────────────────────

    def lead(self, leadership: Leadership) -> None:
        """Begin the epoch in which this broker leads. Nobody may hold ``changing``."""
        assert leadership.leader == self.broker_id, "somebody else is the leader"
        assert leadership.leader_epoch > self.leadership.leader_epoch, "epochs only rise (S9)"
        assert self.log.epochs[-1].epoch == leadership.leader_epoch, "begun in the log first (R8)"
        assert not self.cutting, "a thread changes the log"
        self._give_up_lead(leadership)
        self.role, self.frozen = "leader", False
        self._news.clear()
        self._held_copies = self.copies
        self.replica.lead(
            leadership,
            epoch_start=self.log.end,
            min_isr=election.min_isr(self.config.min_isr, self.copies),
        )
        self._tell_leader(leadership)
        self.advance()

    def learn(self, leadership: Leadership) -> None:
        """The store has this now, of the epoch in which this broker leads; or had it once."""
        if self.replica.commit_change(leadership):
            self._risen()
        self.leadership = self.replica.leadership
        self._require()

    def refuse_change(self, change: IsrChange) -> None:
        """The store has not taken this change of the ISR, and had no other since."""
        if self.replica.abort_change(change):
            self._risen()

    def follow(self, leadership: Leadership) -> None:
        """Another broker leads, or nobody does: what waited here goes to whoever does.

        The same epoch again is news of the replicas alone.
        """
        current = self.leadership
        assert leadership.leader != self.broker_id, "this broker is the leader"
        assert leadership.leader_epoch >= current.leader_epoch, "epochs only rise (S9)"
        if self.role != "follower" or leadership.leader_epoch > current.leader_epoch:
            self._give_up_lead(leadership)
            self._tell_leader(leadership)
        self.role = "follower"
        self.leadership = leadership
        self.replica.follow(leadership)

    def step_down(self) -> None:
        """Lead no more, without knowing yet who will: as ``follow`` without a leader."""
        self._give_up_lead(replace(self.leadership, leader=None))

    def freeze(self) -> None:
        """Take no more batches (T032): the lead is about to be another broker's."""
        self.frozen = True

    def thaw(self) -> None:
        """Take batches again: nobody took the lead."""
        self.frozen = False

    async def holder(self) -> str:
        """Wait, while the partition is frozen, for a follower of the ISR that has everything."""
        while not (found := self.replica.holders()):
            self._held = trio.Event()
            await self._held.wait()
        return found[0]

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
        self.following = Following()
        self._refuse_all(self.not_leader())
        self._wake_everybody()

    def _tell_leader(self, leadership: Leadership) -> None:
        log.info(
            "%s[%d]: %s leads in epoch %d from offset %d",
            *(self.topic, self.number, leadership.leader, leadership.leader_epoch, self.log.end),
            extra={
                **{"event": "partition.leader_changed", "code": None, **self.where},
                **{"leader": leadership.leader, "leader_epoch": leadership.leader_epoch},
            },
        )

    def reconfigure(self, topic: Topic, config: TopicConfig) -> None:
        """Go by what the topic has now: its settings, and how many copies are wanted."""
        self.config, self.copies = config, topic.copies(self.number)
        self._require()
        self.advance()

    def _require(self) -> None:
        """As many in sync as the copies ask for. While more of them are filled, as many as before,
        until as many may be missing as before: else a topic that grows takes no writes."""
        configured, held = self.config.min_isr, min(self._held_copies, self.copies)
        spare = held - election.min_isr(configured, held)
        enough = election.min_isr(configured, self.copies) + spare
        growing = self.role == "leader" and len(self.leadership.isr) < enough
        self._held_copies = held if growing else self.copies
        need = election.min_isr(configured, self._held_copies)
        if self.replica.reconfigure(self.config.durability, need):
            self._risen()

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
        if self.role != "leader" or self.frozen:
            _refuse(gathered, self.not_leader())
            return
        if not self.replica.enough:
            gathered = self._without_acks_all(gathered)
        epoch, segments = self.leadership.leader_epoch, self.log.segment_count
        try:
            outcomes = self.log.append(
                [entry for entry, _, _ in gathered], leader_epoch=epoch, now_ms=now_ms
            )
        except OSError as error:
            # The log is as it was. Without room the broker lives on; anything else is a disk
            # that lost a write, and the partition stops rather than guess.
            if error.errno in NO_ROOM:
                _refuse(gathered, self.room.ran_out(self, error))
            else:
                broken = texts.partition_offline(self.topic, self.number, reason=str(error))
                self.fail(broken)
                _refuse(gathered, broken)
            return
        if self.log.segment_count > segments:
            self.tell_rolled()
            self.room.rolled(self)
        log_start, size_bytes = self.log.start, 0
        for (entry, producing, slot), outcome in zip(gathered, outcomes, strict=True):
            if isinstance(outcome, TailraceError):
                producing.refuse(slot, outcome)
                continue
            size_bytes += self._count(entry, outcome)
            if producing.acks == ACKS_ALL and outcome.next_offset > self.high_watermark:
                self._unacked.append((outcome.next_offset, producing, slot, outcome))
            else:
                producing.settle(slot, outcome, log_start)
        self.ahead.appended(size_bytes)
        self.room.appended(size_bytes)
        self.advance()
        for copier in self._copiers:
            copier.written(self)

    def _without_acks_all(self, gathered: list[Gathered]) -> list[Gathered]:
        """Too few replicas are in sync to promise anything: refuse those who want it (R3)."""
        isr = self.leadership.isr
        missing = [(one, "is not in sync") for one in self.leadership.replicas if one not in isr]
        error = texts.not_enough_replicas(
            *(self.topic, self.number),
            have=len(isr),
            need=self.replica.min_isr,
            missing=missing or [("another broker", "is no replica yet")],
            waited_s=0.0,
        )
        _refuse([one for one in gathered if one[1].acks == ACKS_ALL], error)
        return [one for one in gathered if one[1].acks != ACKS_ALL]

    def advance(self) -> None:
        """The log was written to or synced: let the high watermark follow."""
        end, flushed = self.log.end, self.log.flushed
        if self.role == "leader":
            if self.replica.observe_own(end, flushed):
                self._risen()
        elif self.role == "follower" and self.replica.observe_leader(
            self.following.high_watermark, end, flushed
        ):
            self._wake_readers()

    def _risen(self) -> None:
        """The high watermark rose: settle and wake whoever waited for it."""
        high_watermark, log_start = self.high_watermark, self.log.start
        unacked = self._unacked
        while unacked and unacked[0][0] <= high_watermark:
            _, producing, slot, written = unacked.popleft()
            producing.settle(slot, written, log_start)
        self._wake_readers()
        for copier in self._copiers:
            copier.moved(self)

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
        return self._expire_gathered(now) or bool(late)

    def _expire_gathered(self, now: float) -> bool:
        """Of what waits for a sync to end: it was not written. With less than acks=all nobody asked
        for anything within a time."""
        late = [one for one in self._gathered if _is_late(one[1], now)]
        if late:
            self._gathered = [one for one in self._gathered if not _is_late(one[1], now)]
        for _, producing, slot in late:
            error = texts.append_timeout(self.topic, self.number, waited_s=producing.timeout_s)
            producing.refuse(slot, error)
        return bool(late)

    def fail(self, error: TailraceError) -> None:
        """Go offline: whoever waits gets the error, and so does whoever comes."""
        self.offline = error
        self._refuse_all(error)
        self._wake_everybody()
        self.room.failed(self)

    def _refuse_all(self, error: TailraceError) -> None:
        """Whoever waits is told. What is in the log may be in a follower's, too, that leads yet."""
        doubtful = copy.copy(error)
        doubtful.details = {**error.details, "maybe_written": True}
        for _, producing, slot, _ in self._unacked:
            producing.refuse(slot, doubtful)
        self._unacked.clear()
        waiting, self._gathered = self._gathered, []
        _refuse(waiting, error)

    # ── reading ──────────────────────────────────────────────────────────────────────────────

    @property
    def shown_high_watermark(self) -> int | None:
        """What clients are told; None: they have to ask again (S11)."""
        if self.role == "leader":
            return self.replica.shown_high_watermark
        return min(self.high_watermark, self.log.end)

    def offset_not_available(self) -> TailraceError:
        """T037: what is committed is not known here yet."""
        epoch = self.leadership.leader_epoch
        return texts.offset_not_available(self.topic, self.number, epoch=epoch)

    def read(self, offset: int, bytes_max: int) -> LogSlice:
        """Whole batches from the one that holds ``offset``, below the high watermark.

        Empty at the high watermark. T033 offline, T037, T041 out of range, T035 damaged there.
        """
        if self.offline is not None:
            raise self.offline
        limit = self.shown_high_watermark
        if limit is None or self.cutting:
            raise self.offset_not_available()
        if self.log.start <= offset <= limit:
            return self.log.read(offset, bytes_max, limit)
        if offset > limit and self.role == "follower":
            raise self.offset_not_available()
        raise texts.offset_out_of_range(
            self.topic, self.number, requested=offset, start=self.log.start, end=limit
        )

    def park(self, reader: Reader) -> None:
        self._readers[reader] = None

    def unpark(self, reader: Reader) -> None:
        self._readers.pop(reader, None)

    def _wake_readers(self) -> None:
        for reader in list(self._readers):
            reader.wake()

    def _wake_everybody(self) -> None:
        """This broker does not serve them any more."""
        self._wake_readers()
        for copier in self._copiers:
            copier.written(self)
        self._held.set()

    # ── followers ────────────────────────────────────────────────────────────────────────────

    def admit(self, broker_id: str, broker_epoch: int, leader_epoch: int) -> None:
        """Let a follower fetch, or T032, T033, T045 (R2, R6)."""
        if self.offline is not None:
            raise self.offline
        if self.role != "leader":
            raise self.not_leader()
        follower, current = self.replica.followers.get(broker_id), self.leadership.leader_epoch
        if leader_epoch != current or follower is None or broker_epoch < follower.broker_epoch:
            raise self.fenced(leader_epoch)

    def fenced(self, leader_epoch: int) -> TailraceError:
        """T045, for a follower that is to ask anew."""
        current = self.leadership.leader_epoch
        return texts.epoch_fenced(self.topic, self.number, yours=leader_epoch, current=current)

    def divergence(self, last_epoch: int, offset: int) -> EpochStart | None:
        """Where a log that ends at ``offset`` with a batch of ``last_epoch`` is not this one's
        beginning (R1): its epoch, and where that ends here. T041 if it begins too late or ends too
        early for that."""
        if offset < self.log.start:
            raise self._out_of_range(offset)
        if last_epoch >= 0:
            found = self.log.end_of_epoch(last_epoch)
            if found.epoch != last_epoch or found.start_offset < offset:
                return found
        if offset > self.log.end:
            raise self._out_of_range(offset)
        return None

    def observe(self, broker_id: str, broker_epoch: int, asked: FetchPartition, now: float) -> None:
        """A follower that was admitted, and whose log is this one's beginning, has so much.

        If it said before that it has more, that may be what it says now: of two connections nobody
        knows which request was the later one. The lower counts, until all others were asked anew.
        """
        known = self.replica.followers.get(broker_id)
        if known and (asked.offset < known.end or asked.flushed_end < known.flushed):
            for copier in self._copiers:
                copier.contradicted(self, broker_id)
        if self.replica.observe_fetch(
            broker_id, asked.offset, asked.flushed_end, broker_epoch, now, asked.cleaned
        ):
            self._risen()
        self._news[broker_id] = self._news.get(broker_id, UNTOLD)._replace(
            high_watermark=asked.high_watermark
        )
        if self.frozen:
            self._held.set()

    def kept_up(self, broker_id: str, now: float) -> None:
        """Until the append of just now a follower had nothing to ask for."""
        follower = self.replica.followers.get(broker_id)
        if follower is not None and follower.counted >= follower.leader_end:
            follower.caught_up_at = max(follower.caught_up_at, now)

    def has_news(self, broker_id: str, cleaned_min: int) -> bool:
        """Whether a follower does not know how things are, batches aside."""
        now = Told(self.high_watermark, self.log.start, cleaned_min)
        return self._news.get(broker_id, UNTOLD) != now

    def told(self, broker_id: str, cleaned_min: int) -> None:
        """Now it is being told."""
        self._news[broker_id] = Told(self.high_watermark, self.log.start, cleaned_min)

    def park_copier(self, copier: Copier) -> None:
        self._copiers[copier] = None

    def unpark_copier(self, copier: Copier) -> None:
        self._copiers.pop(copier, None)

    def _out_of_range(self, offset: int) -> TailraceError:
        return texts.offset_out_of_range(
            self.topic, self.number, requested=offset, start=self.log.start, end=self.log.end
        )

    def _count(self, entry: memoryview, written: Appended) -> int:
        """How many bytes were written."""
        if written.duplicate:
            return 0
        self.unsynced_batches += 1
        self.metrics.records_in.inc(written.next_offset - written.base_offset)
        self.metrics.bytes_in.inc(len(entry))
        if base_timestamp(entry) < written.append_time - OLD_MS:
            self.metrics.old_timestamps.inc()
        return len(entry)


def _is_late(producing: Producing, now: float) -> bool:
    return producing.acks == ACKS_ALL and producing.deadline <= now


def _refuse(gathered: list[Gathered], error: TailraceError) -> None:
    for _, producing, slot in gathered:
        producing.refuse(slot, error)
