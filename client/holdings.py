"""What a consumer holds as a member of its group: partitions come, go, and are committed.

It is the ``Listener`` of the membership (``member.py``); the feed and its readers ask it what may
be committed and tell it when a record in hand is done. Invariants:

- a partition is read only after its committed offset is known (S25), and only while it is held;
- one that is withdrawn hands out nothing more, and is released when nothing of it is in hand; no
  other partition waits for that (C14);
- what is lost before it was committed is told once, to whoever reads or commits next (T040).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from tailrace.client.commits import CommitPoint
from tailrace.client.consumer_options import GroupOptions
from tailrace.client.errands import Errands
from tailrace.client.member import Member, MemberOptions
from tailrace.client.membership import Assignment
from tailrace.client.partition_buffer import PartitionBuffer, point_after
from tailrace.client.progress import Loss
from tailrace.client.reading import Source
from tailrace.client.records import Batch, TopicPartition
from tailrace.client.retry import Backoff
from tailrace.client.starting import Place, checked_offset, explained, find_places
from tailrace.protocol import texts_client, texts_group
from tailrace.protocol.errors import OffsetOutOfRange, PartitionLost, TailraceError
from tailrace.protocol.messages_group import Rebalance
from tailrace.protocol.texts import partition_name

if TYPE_CHECKING:
    from tailrace.client.feed import Feed

_log = logging.getLogger("tailrace.client")


@dataclass(eq=False, slots=True)
class Holding:
    """One partition that the group gave to this consumer."""

    assignment: Assignment
    buffer: PartitionBuffer
    began: Place
    source: Source | None = None  # who reads it, None: nobody yet
    sent: int = -1  # the highest offset that was committed by a call
    told: bool = False  # that it was lost, or all that was handed out is committed

    @property
    def stands_at(self) -> int:
        """What is not above this is no news to the coordinator."""
        return max(self.sent, self.began.position)


class Holdings:
    """See the module."""

    def __init__(self, feed: "Feed", options: GroupOptions, *, close_timeout: float) -> None:
        self.options = options
        self.one_by_one = options.commit_interval == 0 or options.max_processing is not None
        self.closed = False
        self.trouble: str | None = None  # why partitions that were assigned cannot be read yet
        self._feed = feed
        self._errands = Errands(feed.client)
        self._expected: dict[TopicPartition, Assignment] = {}  # not read yet
        self._held: dict[TopicPartition, Holding] = {}
        self._leaving: dict[TopicPartition, Holding] = {}  # withdrawn, with a record in hand
        self._changed: anyio.Event | None = None  # of what is expected, while somebody waits
        self._releasing: dict[TopicPartition, CommitPoint] | None = None
        self._losers: dict[Source, None] = {}  # with something lost that was not told yet
        self._stepping_out = False
        automatic = options.commit == "after"
        self.member = Member(
            feed.client,
            MemberOptions(
                group=options.name,
                topics=tuple(sorted(feed.options.topics)),
                session_timeout=options.session_timeout,
                rebalance_timeout=options.rebalance_timeout,
                heartbeat=options.heartbeat,
                instance_id=options.instance_id,
                commit_interval=options.commit_interval if automatic else None,
                close_timeout=close_timeout,
            ),
            self,
        )

    # ── joining and leaving ──────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Join, and wait until what was assigned at once can be read.

        Raises what ``Member.join`` raises. Cancelled: it is no member.
        """
        await self.member.join()
        try:
            with anyio.move_on_after(self._feed.client.options.request_timeout):
                while self._expected and self._feed.fetcher.failure is None:
                    self._changed = anyio.Event()
                    await self._changed.wait()
        except BaseException:
            self.abandon()
            await self.member.leave()
            raise
        if self.options.max_processing is not None:
            self._errands.start(self._watch_processing, self.options.max_processing)

    def abandon(self) -> None:
        """Nothing came of it."""
        self.closed = True
        self._errands.close()

    async def close(self) -> None:
        """Commit what is processed (C12), leave; PartitionLost T040 if some was too late.

        Ends within ``close_timeout``. Cancelled: 2 s more, shielded. Safe to call again.
        """
        if self.closed:
            return
        self.closed = True
        self._errands.close()
        await self.member.leave()
        if late := self._take_losses(processed=True):
            raise late

    @property
    def settled(self) -> bool:
        """Whether all that it will be assigned, as far as is known, is here."""
        return not (self._expected or self.member.rebalancing or self._stepping_out)

    @property
    def giving_up(self) -> bool:
        """Whether somebody waits for a record in hand. Any thread may ask."""
        return bool(self._leaving)

    @property
    def expecting(self) -> bool:
        """Whether partitions were assigned whose places are still being asked for."""
        return bool(self._expected) and self.trouble is None

    # ── Listener: partitions come ────────────────────────────────────────────────────────────

    def assigned(self, partitions: Sequence[Assignment]) -> None:
        """Ask where to begin with these, and read them."""
        if not self.closed:
            self._expected.update((one.at, one) for one in partitions)
            self._errands.start(self._take_over, tuple(partitions))

    async def _take_over(self, assignments: Sequence[Assignment]) -> None:
        backoff = Backoff(self._feed.client.random)
        while mine := [a for a in assignments if self._expected.get(a.at) is a]:
            try:
                places = await find_places(self._feed, self.member, mine)
            except TailraceError as error:
                if not error.retriable or error.code == "T005":
                    self.failed(error)
                    return
                self.trouble = error.message
                await anyio.sleep(backoff.next())
                continue
            self.trouble = None
            for assignment in mine:
                if self._expected.get(assignment.at) is assignment:
                    self._hold(assignment, places[assignment.at])
            self._tell_change()

    def _hold(self, assignment: Assignment, place: Place) -> None:
        del self._expected[assignment.at]
        buffer = self._feed.add(assignment.at, assignment.topic_id, place.position, stop=place.stop)
        self._held[assignment.at] = Holding(assignment, buffer, place)
        if place.wrong is not None:
            self._feed.fetcher.refused(buffer, place.wrong)

    def _tell_change(self) -> None:
        """Whoever waits for partitions, or for the end, looks again."""
        if self._changed is not None:
            self._changed.set()
        self._feed.wake()

    # ── Listener: partitions go ──────────────────────────────────────────────────────────────

    def withdrawn(self, partitions: Sequence[TopicPartition]) -> None:
        """Hand out no more of these; release them when nothing of them is in hand."""
        for at in partitions:
            if self._expected.pop(at, None) is not None:
                self.member.released(at)
            elif (holding := self._held.get(at)) is not None:
                self._stop_reading(holding)
        self.look()
        self._tell_change()

    def lost(self, partitions: Sequence[TopicPartition], reason: str) -> None:
        """These are another member's already."""
        for at in partitions:
            self._expected.pop(at, None)
            if (holding := self._held.get(at)) is not None:
                self._stop_reading(holding)
            if (holding := self._leaving.pop(at, None)) is not None:
                self._note_loss(holding, reason)
        self._tell_change()

    def _stop_reading(self, holding: Holding) -> None:
        """What is at hand of it is discarded unseen; where it stands is kept."""
        at = holding.buffer.at
        holding.source = self._feed.remove(holding.buffer)
        self._leaving[at] = self._held.pop(at)

    def look(self) -> None:
        """A record is done, or committed: what was withdrawn may be free by now."""
        if self._stepping_out:
            self._tell_change()
            return
        free = {at: holding for at, holding in self._leaving.items() if not self._busy(holding)}
        if not free:
            return
        self._releasing = self.committable()  # once for all of them
        try:
            for at in free:
                self.member.released(at)
                del self._leaving[at]
        finally:
            self._releasing = None

    def _busy(self, holding: Holding) -> bool:
        holder = None if holding.source is None else holding.source.holder
        return (
            not holding.told
            and holder is not None
            and (holder.busy_since(holding.buffer) is not None)
        )

    def _note_loss(self, holding: Holding, reason: str) -> None:
        """Keep what was not committed until somebody can be told."""
        source, buffer = holding.source, holding.buffer
        if holding.told or source is None or source.holder is None:
            return
        first = source.holder.unprocessed(buffer)
        handed_out = buffer.position
        committed = max(self.member.known_committed(buffer.at), holding.stands_at)
        processed = handed_out if first is None else first.offset
        if handed_out <= committed:
            return
        loss = Loss(handed_out, processed > committed, reason)
        if self._feed.read_by == "run()":
            error = self.partition_lost({buffer.at: loss})
            _log.warning("%s", error, extra={"event": "consumer.lost", "code": error.code})
        else:
            source.lost[buffer.at] = loss
            self._losers[source] = None

    def _take_losses(
        self, partitions: Iterable[TopicPartition] | None = None, *, processed: bool = False
    ) -> PartitionLost | None:
        """T040 for what was lost and not told yet: of some partitions, or of all."""
        chosen = None if partitions is None else set(partitions)
        found: dict[TopicPartition, Loss] = {}
        for source in list(self._losers):
            for at in list(source.lost):
                if chosen is None or at in chosen:
                    found[at] = source.lost.pop(at)
            if not source.lost:
                del self._losers[source]
        found = {at: loss for at, loss in found.items() if loss.processed or not processed}
        return self.partition_lost(found) if found else None

    def partition_lost(self, losses: Mapping[TopicPartition, Loss]) -> PartitionLost:
        """T040."""
        offsets = {at: loss.offset for at, loss in losses.items()}
        reason = next(iter(losses.values())).reason
        return texts_group.partition_lost(offsets, group=self.options.name, reason=reason)

    # ── Listener: the rest ───────────────────────────────────────────────────────────────────

    def rebalanced(self, rebalance: Rebalance) -> None:
        """Log C14's line, and tell the hooks."""
        moved = [(one.topic, one.partitions, one.client_id) for one in rebalance.moved]
        text = texts_group.rebalanced(
            moved, more=rebalance.more, reason=rebalance.reason, took_ms=rebalance.took_ms
        )
        name = self.options.name
        extra = {"event": "consumer.rebalanced", "code": None, "group": name}
        _log.info("%s", text, extra=extra)
        by_client: dict[str, list[TopicPartition]] = {}
        for topic, numbers, client_id in moved:
            places = by_client.setdefault(client_id, [])
            places += [TopicPartition(topic, number) for number in numbers]
        self._feed.client.events.emit(
            "rebalanced",
            rebalance.reason,
            **{"group": name, "generation": rebalance.generation, "moved": by_client},
            took_ms=rebalance.took_ms,
        )
        self._tell_change()

    def idle(self, partitions: int, members: int) -> None:
        """Log T071."""
        notice = texts_group.member_idle(
            group=self.options.name,
            member=self._feed.client.options.client_id,
            partitions=partitions,
            members=members,
        )
        _log.warning("%s", notice, extra={"event": "consumer.idle", "code": notice.code})
        self._tell_change()

    def failed(self, error: TailraceError) -> None:
        """Nothing more can be read."""
        self._feed.fetcher.fail(error)
        self._tell_change()

    # ── commits ──────────────────────────────────────────────────────────────────────────────

    def committable(self) -> dict[TopicPartition, CommitPoint]:
        """How far each partition is processed; nothing with ``commit="manual"``."""
        if self.options.commit == "manual":
            return {}
        if self._releasing is not None:
            return self._releasing
        return {h.buffer.at: p for h in self._all() if (p := self._processed(h)) is not None}

    def _all(self) -> list[Holding]:
        return [*self._held.values(), *self._leaving.values()]

    def _processed(self, holding: Holding) -> CommitPoint | None:
        """Up to the first record in hand. None: nobody has read of it yet."""
        buffer = holding.buffer
        source = holding.source or self._feed.source_of(buffer)
        if source is None or source.holder is None:
            return None
        first = source.holder.unprocessed(buffer)
        return self._under(holding, buffer.point(buffer.position) if first is None else first)

    def _handed_out(self, holding: Holding) -> CommitPoint | None:
        """With the record in hand; of ``run`` only what is finished."""
        if self._feed.read_by == "run()":
            return self._processed(holding)
        return self._under(holding, holding.buffer.point(holding.buffer.position))

    def _under(self, holding: Holding, point: CommitPoint) -> CommitPoint:
        return point._replace(assignment_epoch=holding.assignment.assignment_epoch)

    async def processed(self) -> None:
        """The record in hand is done: the next one is asked for."""
        if self._leaving:
            self.look()
        if self.options.commit_interval == 0:
            await self._commit_before_next()

    async def _commit_before_next(self) -> None:
        """``commit_interval=0``: waits through outages, like reading."""
        backoff = Backoff(self._feed.client.random)
        while points := {
            holding: point
            for holding in self._all()
            if self.options.commit == "after"
            and (point := self._processed(holding)) is not None
            and point.offset > holding.stands_at
        }:
            try:
                await self._commit(points, "", lower=False)
            except TailraceError as error:
                if isinstance(error, PartitionLost) or not error.retriable or error.code == "T005":
                    raise
                await anyio.sleep(backoff.next())
            self._feed.check()

    async def commit(self, offsets: Mapping[TopicPartition, int] | None, metadata: str) -> None:
        """See ``Consumer.commit``."""
        if late := self._take_losses(offsets):
            raise late
        if offsets is None:
            handed_out = {holding: self._handed_out(holding) for holding in self._all()}
            points = {h: p for h, p in handed_out.items() if p and p.offset > h.stands_at}
        else:
            points = {
                holding: self._under(holding, holding.buffer.point(checked_offset(offset)))
                for at, offset in offsets.items()
                for holding in [self._holding(at)]
            }
        await self._commit(points, metadata, lower=offsets is not None)

    async def commit_batch(self, buffer: PartitionBuffer, batch: Batch[Any, Any]) -> None:
        """See ``Batch.commit``."""
        if late := self._take_losses([buffer.at]):
            raise late
        holding = self._holding(buffer.at, buffer)
        point = point_after(batch[-1], batch.next_offset) if len(batch) else None
        point = self._under(holding, point or CommitPoint(batch.next_offset))
        await self._commit({holding: point}, "", lower=False)

    async def commit_of(self, buffer: PartitionBuffer, next_offset: int | None) -> None:
        """See ``PartitionStream.commit``."""
        if late := self._take_losses([buffer.at]):
            raise late
        holding = self._holding(buffer.at, buffer)
        offset = buffer.position if next_offset is None else checked_offset(next_offset)
        point = self._under(holding, buffer.point(offset))
        await self._commit({holding: point}, "", lower=next_offset is not None)

    def _holding(self, at: TopicPartition, buffer: PartitionBuffer | None = None) -> Holding:
        """Of a partition, and of no later assignment than the one ``buffer`` belongs to."""
        for holding in (self._held.get(at), self._leaving.get(at)):
            if holding is not None and (buffer is None or holding.buffer is buffer):
                return holding
        raise texts_client.not_assigned(*at)

    async def _commit(
        self, points: Mapping[Holding, CommitPoint], metadata: str, *, lower: bool
    ) -> None:
        if not points:
            return
        by_name = {holding.buffer.at: point for holding, point in points.items()}
        try:
            await self.member.commit(by_name, metadata, lower=lower)
        except PartitionLost as error:
            for holding in points:
                if holding.buffer.at in error.offsets:
                    holding.told = True
            self._take_losses(error.offsets)
            raise
        for holding, point in points.items():
            holding.sent = max(holding.sent, point.offset)
            if holding.buffer.at in self._leaving and point.offset >= holding.buffer.position:
                holding.told = True  # nothing is left that could be lost
        self.look()

    async def committed(self) -> dict[TopicPartition, int | None]:
        """See ``Consumer.committed``."""
        timeout_s = self._feed.client.options.request_timeout
        found = await self.member.committed([*self._held, *self._expected], timeout=timeout_s)
        return {at: None if one is None else one.offset for at, one in found.items()}

    async def explain(self, buffer: PartitionBuffer, error: OffsetOutOfRange) -> OffsetOutOfRange:
        """T041 in terms of the group (C18)."""
        held = self._held.get(buffer.at)
        began = held.began if held is not None and held.buffer is buffer else None
        return await explained(self._feed, buffer.at, error, self.options.name, began)

    # ── a record that is in hand for too long ────────────────────────────────────────────────

    async def _watch_processing(self, limit_s: float) -> None:
        """``max_processing``: hand back what stands still."""
        while True:
            await anyio.sleep(limit_s / 4)
            now = self._feed.client.clock.now()
            stuck = [
                holding
                for holding in self._held.values()
                if (since := self._since(holding)) is not None and now - since > limit_s
            ]
            if stuck:
                await self._step_out(stuck, limit_s)

    def _since(self, holding: Holding) -> float | None:
        source = self._feed.source_of(holding.buffer)
        holder = None if source is None else source.holder
        return None if holder is None else holder.busy_since(holding.buffer)

    async def _step_out(self, stuck: Sequence[Holding], limit_s: float) -> None:
        """Leave, so that somebody else gets the partition, and come back.

        The other partitions finish what is in hand first, up to ``rebalance_timeout``: what this
        member does with them ends as if they were withdrawn.
        """
        reason = f"a record was in hand for more than max_processing {limit_s:g} s"
        _log.warning(
            "handing back %s: %s",
            ", ".join(partition_name(*holding.buffer.at) for holding in stuck),
            reason,
            extra={"event": "consumer.handed_back", "code": None},
        )
        self._stepping_out = True
        for holding in list(self._held.values()):
            self._stop_reading(holding)
        with anyio.move_on_after(self.options.rebalance_timeout):
            while any(self._busy(h) for h in self._leaving.values() if h not in stuck):
                self._changed = anyio.Event()
                await self._changed.wait()
        await self.member.leave()
        self._expected.clear()
        for holding in self._leaving.values():
            self._note_loss(holding, reason)
        self._leaving.clear()
        backoff = Backoff(self._feed.client.random)
        while True:
            try:
                await self.member.join()
                break
            except TailraceError as error:
                if not error.retriable or error.code == "T005":
                    self.failed(error)
                    return
                self.trouble = error.message
                await anyio.sleep(backoff.next())
        self.trouble = None
        self._stepping_out = False
        self._tell_change()
