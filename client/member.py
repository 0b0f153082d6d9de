"""A consumer's membership of a group: heartbeats, assignments and commits put together.

``listener.py`` says what it calls. Heartbeats come from the client's heart (``heart.py``), which
tells what it heard on the event loop; what was assigned is known here from then on, and there
(``membership.py``) a moment earlier. Both know a partition by its assignment: whoever comes late
with an older one is passed over.
"""

import copy
import logging
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import anyio

from tailrace.client.commits import (
    CommitPoint,
    Commits,
    Committed,
    Outcome,
    Points,
    check_metadata,
    fetch_committed,
    lowered,
)
from tailrace.client.coordinator import Coordinator
from tailrace.client.errands import Errands
from tailrace.client.heart_told import Reachable, Told, Unreachable
from tailrace.client.listener import Listener, MemberOptions
from tailrace.client.membership import (
    Assigned,
    Assignment,
    Failed,
    Identity,
    Left,
    Lost,
    Membership,
    Rebalanced,
    Status,
    Withdrawn,
)
from tailrace.client.pulse import Pulse
from tailrace.client.retry import reconnecting
from tailrace.client.tenure import Tenure
from tailrace.protocol import texts_client
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.shapes import TopicPartition
from tailrace.protocol.units import format_seconds

if TYPE_CHECKING:
    from tailrace.client.client import Client
    from tailrace.client.heart import Heart

__all__ = ["Listener", "Member", "MemberOptions"]

CANCELLED_CLOSE_S = 2.0
NOTICED_S = 0.05  # until a client knows that a broker is gone, after one of its connections does
GOODBYE_S = 1.0  # how long a coordinator that is gone is waited for, to say goodbye
COMMIT_SHARE = 0.8  # of the time to close: the rest is for saying goodbye
_log = logging.getLogger("tailrace.client")


class Member:
    """See the module. ``join`` first, ``leave`` last; after that it may join again."""

    def __init__(self, client: "Client", options: MemberOptions, listener: Listener) -> None:
        self.options = options
        self.member_id = str(uuid.UUID(int=client.random.getrandbits(128), version=4))
        self.rebalancing = False  # partitions of the group are on their way
        self.trouble: str | None = None  # why the coordinator cannot be reached, if so
        self.coordinator = Coordinator(client, options.group)
        self._client = client
        self._listener = listener
        self._commits = Commits(client, self.coordinator, self.member_id)
        self._tenure = Tenure(self._commits.ledger)
        self._releasing: dict[Assignment, CommitPoint] = {}  # given up when that is committed
        self._pulse: Pulse | None = None  # while it is a member
        self._answered = anyio.Event()
        self._left = anyio.Event()
        self._failure: TailraceError | None = None
        self._idle = self._leaving = False
        self._errands = Errands(client)

    @property
    def last_commit(self) -> int | None:
        """When a commit was stored last, ms since the epoch."""
        return self._commits.last

    @property
    def assignments(self) -> Mapping[TopicPartition, Assignment]:
        """What it has: neither lost nor given up."""
        return self._tenure.assignments

    def known_committed(self, at: TopicPartition) -> int:
        """What it has committed itself of a partition since it was assigned, -1: nothing."""
        return self._tenure.known_committed(at)

    # ── joining and leaving ──────────────────────────────────────────────────────────────────

    async def join(self) -> None:
        """Become a member; returns after the first answer, ``assigned`` may have been called.

        Raises GroupConfigMismatch T070, ConfigError T082 (a timeout outside the broker's limits,
        too many members), InvalidName T013, RequestTimeout T034 after ``request_timeout``,
        ConnectError T005, or T001 without descriptors or threads. Cancelled: it is no member.
        """
        assert self._pulse is None, "it is a member already"
        client, limit_s = self._client, self._client.options.request_timeout
        began = client.clock.now()
        address = await self.coordinator.address(timeout=limit_s)
        self._answered, self._left, self._failure = anyio.Event(), anyio.Event(), None
        pulse = Pulse(Membership(self._identity()), client.random)
        self._heart.add(pulse, self.coordinator, address, self._told)
        self._pulse = pulse
        client.cluster.watch(self._cluster_changed)
        try:
            with anyio.move_on_after(limit_s - (client.clock.now() - began)):
                await self._answered.wait()
            if not self._answered.is_set():
                where = f"{address} ({self.trouble})" if self.trouble else str(address)
                raise texts_client.request_timeout(
                    f"join group '{self.options.group}'",
                    address=where,
                    waited_s=client.clock.now() - began,
                )
            if self._failure is not None:
                raise copy.copy(self._failure)
        except BaseException:
            self._end()
            raise
        if self.options.commit_interval:
            self._errands.start(self._commit_often, self.options.commit_interval)

    async def leave(self, *, for_good: bool = False) -> None:
        """Commit what is ``committable``, and go; within ``close_timeout``. Safe to call again.

        The leave is sent at once, so that others have the partitions within milliseconds; with an
        instance id, unless it is ``for_good``, they wait for its return instead, for
        ``session_timeout``. Nothing is called for what it had. Never raises for a broker that does
        not answer: what could not be committed is logged at ERROR. Cancelled: 2 s more, shielded.
        """
        if self._pulse is None or self._leaving:
            return
        self._leaving = True
        self._pulse.membership.for_good = for_good
        self._errands.close()
        points = self._unstored()
        limit_s = self.options.close_timeout
        try:
            with anyio.move_on_after(limit_s):
                await self._part(points, limit_s)
        except anyio.get_cancelled_exc_class():
            if self._client.runtime.alive():
                with anyio.move_on_after(CANCELLED_CLOSE_S, shield=True):
                    await self._part(points, CANCELLED_CLOSE_S)
            raise
        finally:
            self._log_end(points)
            self._end()

    async def _part(self, points: Points, limit_s: float) -> None:
        """Commit, then say goodbye, whatever became of the commit."""
        try:
            await self._store(points, timeout=limit_s * COMMIT_SHARE)
        except TailraceError as error:
            self._log_failure(error)
        if self._pulse is not None and not self._pulse.over:
            self._heart.leave(self._pulse)
            # Nothing is lost if a coordinator that is gone never hears of it.
            with anyio.move_on_after(math.inf if self.trouble is None else GOODBYE_S):
                await self._left.wait()

    def _end(self) -> None:
        """It is no member any more."""
        pulse, self._pulse = self._pulse, None
        self._errands.close()
        if pulse is not None:
            self._heart.remove(pulse)
            self._client.cluster.unwatch(self._cluster_changed)
        self._tenure.clear()
        self._releasing = {}
        self.rebalancing = self._idle = self._leaving = False
        self.trouble = None

    def _identity(self) -> Identity:
        options = self.options
        return Identity(
            group=options.group,
            member_id=self.member_id,
            instance_id=options.instance_id,
            topics=tuple(sorted(options.topics)),
            session_timeout_ms=round(options.session_timeout * 1000),
            rebalance_timeout_ms=round(options.rebalance_timeout * 1000),
        )

    @property
    def _heart(self) -> "Heart":
        return self._client.heart(self.options.heartbeat)

    # ── what happens to it ───────────────────────────────────────────────────────────────────

    def _told(self, told: Told) -> None:
        """By the heart, on the loop."""
        match told:
            case Assigned(partitions):
                self._assigned(partitions)
            case Withdrawn(partitions):
                self._withdraw(partitions)
            case Lost(partitions, reason):
                self.rebalancing = True  # until an answer tells how the group stands now
                self._lose(partitions, reason)
            case Rebalanced(rebalance):
                self._listener.rebalanced(rebalance)
            case Status():
                self._status(told)
            case Unreachable():
                self._unreachable(told)
            case Reachable():
                self.trouble = None
            case Failed(error):
                self._fail(error)
            case Left():
                self._left.set()

    def _assigned(self, partitions: Sequence[Assignment]) -> None:
        self._tenure.take(partitions)
        self._listener.assigned(partitions)

    def _withdraw(self, partitions: Sequence[Assignment]) -> None:
        assert self._pulse is not None
        here = [one for one in partitions if self._tenure.has(one)]
        for one in partitions:
            if one not in here:  # a commit has found out first that it went away
                self._heart.release(self._pulse, one)
        if here:
            self._tenure.withdrawn.update(one.at for one in here)
            self._errands.start(self._expire, here)
            self._listener.withdrawn([one.at for one in here])

    async def _expire(self, partitions: Sequence[Assignment]) -> None:
        """The coordinator takes what was not released within ``rebalance_timeout``."""
        await anyio.sleep(self.options.rebalance_timeout)
        limit = format_seconds(self.options.rebalance_timeout)
        # One that was released and came back is equal to what it was, but it is not that one.
        late = [one for one in partitions if self.assignments.get(one.at) is one]
        self._lose(late, f"it was not released within {limit} s (rebalance_timeout)")

    def _lose(self, partitions: Iterable[Assignment], reason: str) -> None:
        """They are somebody else's, as far as they still were this member's."""
        lost = [one for one in partitions if self._tenure.has(one)]
        withdrawn = [one for one in lost if one.at in self._tenure.withdrawn]
        for one in lost:
            self._tenure.drop(one, reason)
        if lost:
            self._listener.lost([one.at for one in lost], reason)
        for one in withdrawn:  # last: it may be assigned again at once
            if self._pulse is not None:
                self._heart.release(self._pulse, one)

    def _status(self, status: Status) -> None:
        self.rebalancing = not status.stable
        idle = status.stable and not status.held and status.members > status.partitions
        if idle and not self._idle:
            self._listener.idle(status.partitions, status.members)
        self._idle = idle
        self._answered.set()
        self._listener.status_changed()

    def _unreachable(self, told: Unreachable) -> None:
        self.trouble = told.reason
        if told.broken:
            self._errands.start(self._tell_unreachable, told)

    async def _tell_unreachable(self, told: Unreachable) -> None:
        """C11, unless the client finds the same by its own connections, and says so."""
        await anyio.sleep(NOTICED_S)
        if self.trouble is not None and self._client.health().state == "ok":
            text = reconnecting(str(told.address), told.reason, told.attempt, told.delay_s)
            _log.warning(text, extra={"event": "client.reconnecting", "code": None})
            self._client.events.emit(
                "reconnecting",
                told.reason,
                address=str(told.address),
                attempt=told.attempt,
                next_seconds=told.delay_s,
            )

    def _cluster_changed(self) -> None:
        if (failure := self._client.cluster.failure) is not None:
            self._errands.start(self._give_up_all, failure)
        elif self.trouble is not None and self._client.health().state == "ok":
            self._heart.hurry()

    async def _give_up_all(self, failure: TailraceError) -> None:
        """``max_outage`` has passed (T005): others may have what nobody can commit here."""
        if self._pulse is not None:
            self._fail(failure)

    def _fail(self, error: TailraceError) -> None:
        self._failure = error
        if self._answered.is_set():
            self._log_unstored(self._unstored())
            self._end()
            self._left.set()  # nobody is there to say goodbye to
            self._listener.failed(error)
        else:
            self._answered.set()

    # ── giving up partitions ─────────────────────────────────────────────────────────────────

    def released(self, at: TopicPartition) -> None:
        """Nothing of a withdrawn partition is in hand any more.

        What ``committable`` says of it now is committed, then it is given up; both go on in the
        background. A partition that is not withdrawn (any more) is passed over.
        """
        assignment = self.assignments.get(at)
        if assignment is None or at not in self._tenure.withdrawn:
            return
        point = self._listener.committable().get(at)
        points = self._tenure.points({} if point is None else {at: point})
        if not self._commits.ledger.due(points):
            self._give_up(assignment)
            return
        if not self._releasing:
            self._errands.start(self._store_and_give_up)
        for one, its_point in points.items():
            self._releasing.pop(one, None)  # of an equal one that was lost meanwhile
            self._releasing[one] = its_point

    async def _store_and_give_up(self) -> None:
        """All that were released meanwhile by one commit."""
        while self._releasing:
            points = dict(self._releasing)
            await self._store_anyway(points)
            sent = set(map(id, points))
            self._releasing = {one: p for one, p in self._releasing.items() if id(one) not in sent}
            for assignment in points:
                self._give_up(assignment)

    def _give_up(self, assignment: Assignment) -> None:
        # By identity: one that was lost and came back is equal to what it was.
        if self._pulse is not None and self.assignments.get(assignment.at) is assignment:
            self._tenure.drop(assignment, "it was given up")
            self._heart.release(self._pulse, assignment)

    # ── commits ──────────────────────────────────────────────────────────────────────────────

    async def commit(
        self, points: Mapping[TopicPartition, CommitPoint], metadata: str = "", *, lower: bool
    ) -> None:
        """Store these, up to 1,000 in one request; returns when they are durable.

        ``lower``: whether a point below what is committed already is an error (ConfigError T082,
        the others are stored); else it is passed over. Raises PartitionLost T040 for partitions
        that went away (once, then UsageError T055: not assigned), ConfigError T082 for ``metadata``
        above 4,096 bytes, RequestTimeout T034 after ``request_timeout``, and what ended the
        membership. Cancelled: they may be stored.
        """
        check_metadata(metadata)
        if self._failure is not None:
            raise copy.copy(self._failure)
        self._tenure.check(points)
        ours = self._tenure.points(points)
        timeout = self._client.options.request_timeout
        outcome = await self._store(ours, metadata, only_due=not lower, timeout=timeout)
        kept = {one.at for one in ours} - {one.at for one in outcome.refused}
        gone = {at: point for at, point in points.items() if at not in kept}
        if (lost := self._tenure.lost(gone, self.options.group)) is not None:
            raise lost
        if outcome.error is not None:
            raise outcome.error
        for one, stored in outcome.stored.items():
            if lower and stored > ours[one].offset:
                raise lowered(one.at, ours[one].offset, stored, self.options.group)

    async def committed(
        self, partitions: Iterable[TopicPartition], *, timeout: float
    ) -> dict[TopicPartition, Committed | None]:
        """What the group has committed, None: nothing. Waits while the coordinator loads.

        Raises RequestTimeout T034 after ``timeout`` seconds (``math.inf``: waits through every
        outage), ConnectError T005.
        """
        ids: dict[TopicPartition, bytes] = {}
        for at in partitions:
            assignment = self.assignments.get(at)
            if assignment is None:
                ids[at] = (await self._client.cluster.topic(at.topic)).topic_id
            else:
                ids[at] = assignment.topic_id
        return await fetch_committed(self.coordinator, ids, timeout=timeout)

    async def _store(
        self, points: Points, metadata: str = "", *, only_due: bool = True, timeout: float
    ) -> Outcome:
        outcome = await self._commits.store(points, metadata, only_due=only_due, timeout=timeout)
        self._lose(outcome.refused, outcome.reason)
        return outcome

    async def _commit_often(self, interval_s: float) -> None:
        while self._client.cluster.failure is None:
            await anyio.sleep(interval_s)
            await self._commit_due()

    def commit_soon(self) -> None:
        """Store what is ``committable``, in the background."""
        self._errands.start(self._commit_due)

    async def _commit_due(self) -> None:
        points = self._tenure.points(self._listener.committable())
        if self._commits.ledger.due(points):
            await self._store_anyway(points)

    async def _store_anyway(self, points: Points) -> None:
        """Through every outage. What cannot be stored is read again by whoever comes next."""
        try:
            outcome = await self._store(points, timeout=math.inf)
        except TailraceError as error:
            self._log_failure(error)
        else:
            if outcome.error is not None:
                self._log_failure(outcome.error)

    def _log_failure(self, error: TailraceError) -> None:
        _log.warning(
            "group '%s': offsets not committed: %s",
            self.options.group,
            error,
            extra={"event": "consumer.not_committed", "code": error.code},
        )

    def _unstored(self) -> Points:
        """What is processed, also of what is being given up."""
        going = {one: point for one, point in self._releasing.items() if self._tenure.has(one)}
        return {**going, **self._tenure.points(self._listener.committable())}

    def _log_unstored(self, points: Points) -> bool:
        """Whether some of it could not be committed: that is told."""
        left = self._tenure.due(points)
        if left:
            _log.error(
                "group '%s': offsets of %s were not committed before the end: they are read again",
                self.options.group,
                ", ".join(left),
                extra={"event": "consumer.not_committed", "code": None},
            )
        return bool(left)

    def _log_end(self, points: Points) -> None:
        """What is left of it that it could not settle."""
        if not self._log_unstored(points) and not self._left.is_set():
            _log.warning(
                "group '%s': left without an answer; what it had moves after session_timeout",
                self.options.group,
                extra={"event": "consumer.left", "code": None},
            )
