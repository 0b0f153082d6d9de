"""What a consumer holds as a member of its group: partitions come, go, and are committed.

It is the ``Listener`` of the membership (``member.py``); the feed and its readers ask it what may
be committed and tell it when a record in hand is done. Invariants:

- a partition is read only after its committed offset is known (S25), and only while it is held;
- one that is withdrawn hands out nothing more, and is released when nothing of it is in hand; no
  other partition waits for that (C14);
- what is lost before it was committed is told once, to whoever reads or commits next (T040);
- with ``commit="manual"`` a partition that is withdrawn waits for the commit of what was handed
  out, if this consumer commits at all, and only a commit is told what was lost.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import anyio

from tailrace.client.commit_calls import CommitCalls
from tailrace.client.commits import CommitPoint
from tailrace.client.consumer_options import GroupOptions
from tailrace.client.errands import Errands
from tailrace.client.holding import Holding, Place
from tailrace.client.losses import Losses
from tailrace.client.member import Member, MemberOptions
from tailrace.client.membership import Assignment
from tailrace.client.metrics import instruments
from tailrace.client.partition_buffer import PartitionBuffer
from tailrace.client.patience import watch
from tailrace.client.progress import Loss
from tailrace.client.retry import Backoff
from tailrace.client.starting import explained, find_places
from tailrace.protocol import texts_group
from tailrace.protocol.errors import OffsetOutOfRange, PartitionLost, TailraceError
from tailrace.protocol.messages_group import Rebalance
from tailrace.protocol.shapes import TopicPartition

if TYPE_CHECKING:
    from tailrace.client.feed import Feed

_log = logging.getLogger("tailrace.client")


class Holdings:
    """See the module."""

    def __init__(self, feed: "Feed", options: GroupOptions, *, close_timeout: float) -> None:
        self.options = options
        self.one_by_one = options.commit_interval == 0 or options.max_processing is not None
        self.closed = False
        self.trouble: str | None = None  # why partitions that were assigned cannot be read yet
        self.losses = Losses(feed, options)
        self.calls = CommitCalls(feed, self)
        self._feed = feed
        self._errands = Errands(feed.client)
        self._expected: dict[TopicPartition, Assignment] = {}  # not read yet
        self._held: dict[TopicPartition, Holding] = {}
        self._leaving: dict[TopicPartition, Holding] = {}  # withdrawn, with a record in hand
        self._changed: anyio.Event | None = None  # of what is expected, while somebody waits
        self._released: dict[TopicPartition, Holding] = {}  # their last commit may be on its way
        self._releasing: dict[TopicPartition, CommitPoint] | None = None
        self._begun = False  # partitions came, or the group was stable without any for this member
        self._stepping_out = False
        self._giving_back = False  # what is assigned meanwhile goes with the rest
        automatic = options.commit == "after"
        self._commits_each = automatic and options.commit_interval == 0
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
                    await self.change()
        except BaseException:
            self.abandon()
            await self.member.leave()
            raise
        if self.options.max_processing is not None:
            limit_s = self.options.max_processing
            self._errands.start(watch, self._feed.client, self, limit_s)

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
        automatic = self.options.commit == "after"
        if automatic and (late := self.losses.take(processed=True)):
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
        """Whether partitions are about to come: the first ones, or those that were assigned."""
        well = self.trouble is None and self.member.trouble is None
        return well and bool(self._expected or not self._begun)

    # ── Listener: partitions come ────────────────────────────────────────────────────────────

    def assigned(self, partitions: Sequence[Assignment]) -> None:
        """Ask where to begin with these, and read them."""
        if not (self.closed or self._giving_back):
            self._expected.update((one.at, one) for one in partitions)
            self._errands.start(self._take_over, tuple(partitions))

    async def _take_over(self, assignments: Sequence[Assignment]) -> None:
        backoff = Backoff(self._feed.client.random)
        while mine := [a for a in assignments if self._expected.get(a.at) is a]:
            try:
                places = await find_places(self._feed, self.member, mine)
            except TailraceError as error:
                if not any(self._expected.get(one.at) is one for one in mine):
                    return  # all of them went meanwhile, and with them what could fail
                if not error.retriable or error.code == "T005":
                    self.failed(error)
                    return
                self.trouble = error.message
                instruments.retried(error.code)
                await anyio.sleep(backoff.next())
                continue
            self.trouble = None
            for assignment in mine:
                if self._expected.get(assignment.at) is assignment:
                    self._hold(assignment, places[assignment.at])
            self._tell_change()

    def _hold(self, assignment: Assignment, place: Place) -> None:
        del self._expected[assignment.at]
        self._released.pop(assignment.at, None)
        self._begun = True
        buffer = self._feed.add(assignment.at, assignment.topic_id, place.position, stop=place.stop)
        self._held[assignment.at] = Holding(assignment, buffer, place)
        if place.wrong is not None:
            self._feed.fetcher.refused(buffer, place.wrong)

    async def change(self) -> None:
        """Wait until partitions came or went, or a record in hand is done."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def _tell_change(self) -> None:
        """Whoever waits for partitions, or for the end, looks again."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()
        self._feed.wake()

    # ── Listener: partitions go ──────────────────────────────────────────────────────────────

    def withdrawn(self, partitions: Sequence[TopicPartition]) -> None:
        """Hand out no more of these; release them when nothing of them is in hand."""
        for at in partitions:
            if self._expected.pop(at, None) is not None:
                self.member.released(at)
        self._stop_reading(partitions)
        self.look()
        self._tell_change()
        left = {at.topic for at in (*self._held, *self._expected)}
        self._errands.start(self._find_topics, {at.topic for at in partitions} - left)

    async def _find_topics(self, topics: Iterable[str]) -> None:
        """T010 if one of these was deleted: nobody else would tell this member."""
        for topic in sorted(topics):
            self._feed.client.cluster.invalidate(topic)
            try:
                await self._feed.client.cluster.topic(topic)
            except TailraceError as error:
                if not error.retriable:
                    self.failed(error)

    def lost(self, partitions: Sequence[TopicPartition], reason: str) -> None:
        """These are another member's already."""
        self._stop_reading(partitions)
        for at in partitions:
            self._expected.pop(at, None)
            holding = self._leaving.pop(at, None) or self._released.pop(at, None)
            if holding is not None:
                self.losses.note(holding, self._stands_at(holding), reason)
        self._tell_change()

    def _stop_reading(self, partitions: Iterable[TopicPartition]) -> None:
        """What is at hand of them is discarded unseen; where they stand is kept."""
        holdings = [self._held.pop(at) for at in partitions if at in self._held]
        self._feed.remove([holding.buffer for holding in holdings])
        for holding in holdings:
            holding.leaving = True
            self._leaving[holding.buffer.at] = holding

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
            for at, holding in free.items():
                self.member.released(at)
                del self._leaving[at]
                if self.options.commit == "after":
                    self._released[at] = holding
                elif self._reached(holding) > self._stands_at(holding):
                    reason = "it was withdrawn before the first commit"
                    self.losses.note(holding, self._stands_at(holding), reason)
                holding.buffer.forget()
        finally:
            self._releasing = None

    def _busy(self, holding: Holding) -> bool:
        """Whether it would be too early to release it."""
        if holding.told or holding.holder is None:
            return False
        if holding.busy_since is not None:
            return True
        waits = self.options.commit == "manual" and self.calls.used
        return waits and self._reached(holding) > self._stands_at(holding)

    def _reached(self, holding: Holding) -> int:
        """How far it was handed out; by ``run``, how far it is finished: it drops the rest."""
        point = holding.processed if self._feed.read_by == "run()" else None
        return holding.buffer.position if point is None else point.offset

    def _stands_at(self, holding: Holding) -> int:
        return max(holding.stands_at, self.member.known_committed(holding.buffer.at))

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
        if not self._held and not self._expected:
            self._errands.start(self._find_topics, self._feed.options.topics)
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

    def committable(self) -> dict[TopicPartition, CommitPoint]:
        """How far each partition is processed, as far as that is news.

        Nothing with ``commit="manual"``.
        """
        if self.options.commit == "manual":
            return {}
        if self._releasing is not None:
            return self._releasing
        found: dict[TopicPartition, CommitPoint] = {}
        for holding in self.all():
            point = holding.processed
            if point is not None and point.offset > holding.began.position:
                found[holding.buffer.at] = point
        return found

    def status_changed(self) -> None:
        """It may be the end of a rebalance, and with it of reading."""
        self._begun = self._begun or not self.member.rebalancing
        self._tell_change()

    def failed(self, error: TailraceError) -> None:
        """Nothing more can be read."""
        self._feed.fetcher.fail(error)
        self._tell_change()

    # ── for readers, and for those who commit ────────────────────────────────────────────────

    def all(self) -> list[Holding]:
        """What it reads, and what it has not released yet."""
        return [*self._held.values(), *self._leaving.values()]

    def find(self, at: TopicPartition) -> Holding | None:
        """One of them."""
        return self._held.get(at) or self._leaving.get(at)

    async def processed(self) -> None:
        """The record in hand is done: the next one is asked for."""
        if self._leaving:
            self.look()
        if self._commits_each:
            await self.calls.before_next()

    def all_processed(self) -> None:
        """``run`` has nothing in hand; the next record, and with it a commit, may be long away."""
        if self._commits_each:
            self.member.commit_soon()

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

    def partition_lost(self, losses: Mapping[TopicPartition, Loss]) -> PartitionLost:
        """T040."""
        return self.losses.error(losses)

    # ── leaving for a moment (``patience.py``) ───────────────────────────────────────────────

    def pause_all(self) -> None:
        """Hand out nothing more, until ``step_in``."""
        self._stepping_out = self._giving_back = True
        self._expected.clear()
        self._stop_reading(list(self._held))
        self._tell_change()

    async def step_out(self, reason: str) -> None:
        """Commit what is processed, and leave; what is still in hand is lost."""
        await self.member.leave(for_good=True)
        for holding in self._leaving.values():
            self.losses.note(holding, self._stands_at(holding), reason)
        self._leaving.clear()
        self._tell_change()

    async def step_in(self) -> None:
        """Join again; raises what ``Member.join`` raises."""
        self._giving_back = False
        await self.member.join()
        self.trouble, self._stepping_out = None, False
        self._tell_change()
