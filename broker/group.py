"""One consumer group as values: members, who owns what, what is committed (pure).

The broker assigns, in the spirit of KIP-848: every heartbeat says what the member owns, every
answer what it shall own now. ``coordinator.py`` drives this, keeps heartbeats waiting and writes
the records.

Invariants:
- ``generation`` rises with every change of members, subscriptions or topics;
- a member's epoch rises with every change of what it shall own, and is echoed by the member: an
  older message of it never releases anything;
- ``changes`` rises with everything that has to be durable before anybody is told; nothing is ready
  to be told while ``written`` is behind it;
- a commit counts iff (member, assignment epoch) is the present owner's (KIP-1251, R36).

Not here: bytes (``group_record.py``), waiting, lag. Times are seconds of a monotonic clock, given
by the caller; ``now_ms`` is wall time. Methods raise before they change anything.
"""

import math
from collections.abc import Collection, Mapping
from typing import Literal

from tailrace.broker.assignment import Partition, assign
from tailrace.broker.group_fence import Fence
from tailrace.broker.group_members import GroupSettings, Member, Members, Who, displaced_by
from tailrace.broker.group_notices import Notices
from tailrace.broker.group_offsets import Committed, Offsets, Writes
from tailrace.broker.group_ownership import Ownership
from tailrace.broker.group_topics import Topics
from tailrace.protocol import errors, texts_group
from tailrace.protocol.fields import WireError
from tailrace.protocol.messages import (
    AssignedPartition,
    AssignedPartitionName,
    AssignedTopic,
    CommitOffsetsRequest,
    CommitOffsetsResponse,
    FetchOffsetsResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    MemberDescription,
    OwnedPartitions,
    Rebalance,
)
from tailrace.protocol.messages_group import AWAY_EPOCH, JOIN_EPOCH, LEAVE_EPOCH, NO_MEMBER
from tailrace.protocol.units import format_duration

State = Literal["empty", "assigning", "stable"]

JOINED = "member joined"
REJOINED = "member rejoined"
RETURNED = "member returned"  # by its instance id
LEFT = "member left"
EXPIRED = "session timed out"
SUBSCRIBED = "subscription changed"
TOPICS = "topics changed"
RELOADED = "coordinator restarted"


class Group:
    """One group. A new one has nothing to be written: it begins to exist with its first member or
    commit.
    """

    def __init__(self, name: str, settings: GroupSettings, topics: Topics) -> None:
        self.name = name
        self.generation = 0
        self.changes = 0
        self.written = 0  # the value of ``changes`` that is durable; the coordinator's to set
        self.members = Members(name, settings)
        self.ownership = Ownership(self.members, self._bump)
        self.known: dict[bytes, int] = {}  # partitions of a topic when it was first subscribed
        self.subscribed: set[str] = set()  # every topic name that ever was
        self.epochs = 0  # the newest epoch any member was given
        self._settings = settings
        self._topics = topics
        self._partitions = 0  # of the subscribed topics
        self._notices = Notices()
        self._offsets = Offsets()
        self._gather_until: float | None = None  # the first assignment waits for more to join
        self._wake_at: float | None = None  # nothing is due before; None: to be looked for
        self._fence = Fence(name, settings.broker_id, self.members, self.ownership)

    # ── what it is ───────────────────────────────────────────────────────────────────────────

    @property
    def offsets(self) -> Mapping[Partition, Committed]:
        """What is committed, durably."""
        return self._offsets.committed

    @property
    def dirty(self) -> bool:
        """Whether there is something to be written before anybody may be told."""
        return self.changes != self.written

    @property
    def stable(self) -> bool:
        """Whether no partition is on its way."""
        return self._gather_until is None and self.ownership.stable

    @property
    def state(self) -> State:
        if not len(self.members):
            return "empty"
        return "stable" if self.stable else "assigning"

    def topics(self) -> tuple[str, ...]:
        """Names of those that its members subscribe to, or that it has commits of; sorted."""
        committed = {topic_id for topic_id, _ in self.offsets}
        names = {self._topics.names[one] for one in committed if one in self._topics.names}
        return tuple(sorted(names | self.members.topics()))

    def owner(self, topic_id: bytes, partition: int) -> str | None:
        """The id of the member that has it now."""
        holding = self.ownership.holdings.get((topic_id, partition))
        return None if holding is None else holding.owner

    def describe_members(self, now: float, now_ms: int) -> tuple[MemberDescription, ...]:
        """Sorted by member id."""
        return tuple(
            MemberDescription(
                member_id=member.member_id,
                instance_id=member.instance_id,
                client_id=member.who.client_id,
                host=member.who.host,
                version=member.who.version,
                assigned=tuple(
                    AssignedPartitionName(topic.topic, one.partition)
                    for topic in self._assigned(member)
                    for one in topic.partitions
                ),
                last_heartbeat=now_ms - round((now - member.heard_at) * 1000),
            )
            for member in sorted(self.members, key=lambda member: member.member_id)
        )

    # ── heartbeats ───────────────────────────────────────────────────────────────────────────

    def heartbeat(self, now: float, request: HeartbeatRequest, who: Who) -> None:
        """A member is there, comes or goes. Answer it by ``answer`` once it is ``ready``.

        Raises ``GroupFenced`` T042, ``GroupConfigMismatch`` T070, ``ConfigError`` T082.
        """
        match request.member_epoch:
            case epoch if epoch > JOIN_EPOCH:
                self._beat(now, request, who)
            case epoch if epoch == JOIN_EPOCH:
                self._join(now, request, who)
            case epoch if epoch == LEAVE_EPOCH:
                self.leave(now, request.member_id)
            case epoch if epoch == AWAY_EPOCH:
                self._go_away(now, request.member_id)
            case epoch:
                raise self._fence.member(request.member_id, f"there is no epoch {epoch}")

    def ready(self, request: HeartbeatRequest) -> bool:
        """Whether there is news for the member that sent this, and it may be told."""
        if self.dirty:
            return False
        member = self.members.get(request.member_id)
        return (
            member is None
            or member.epoch != request.member_epoch
            or member.told_stable != self.stable
            or self._notices.newest > _told(member, request)
        )

    def answer(self, request: HeartbeatRequest) -> HeartbeatResponse:
        """What holds now for the member that sent this; not while ``dirty``.

        Raises ``GroupFenced`` T042 if it was thrown out while its heartbeat was waiting.
        """
        member = self.members.get(request.member_id)
        going = request.member_epoch < JOIN_EPOCH
        if member is None and not going:
            raise self._fence.member(request.member_id)
        assert not self.dirty, "told before it was written"
        stable = self.stable
        if member is not None:
            member.told_stable = stable
        return HeartbeatResponse(
            member_epoch=request.member_epoch if member is None or going else member.epoch,
            generation=self.generation,
            interval_ms=0 if member is None else member.interval_ms,
            assigned=() if member is None or going else self._assigned(member),
            stable=stable,
            members=len(self.members),
            partitions=self._partitions,
            rebalances=(
                () if member is None or going else self._notices.since(_told(member, request))
            ),
        )

    def hold_s(self, request: HeartbeatRequest) -> float:
        """How long a heartbeat may wait: as asked, at most a third of its session."""
        return min(request.wait_ms, request.session_timeout_ms // 3) / 1000

    def leave(self, now: float, member_id: str, *, reason: str = LEFT) -> None:
        """A member goes for good; one that is not there is fine."""
        member = self.members.get(member_id)
        if member is not None:
            self._begin(now, reason)
            self._remove(member, "it left" if reason == LEFT else reason)
            self._assign(now)

    def expire(self, now: float) -> list[Member]:
        """Do what is due by ``now``: sessions and withdrawals that have run out, the first
        assignment. Returns the members that were thrown out.
        """
        if now < self.next_deadline():
            return []
        expired = self.members.expired(now)
        if expired:
            self._begin(now, EXPIRED)
        for member in expired:
            session = format_duration(member.session_timeout_ms / 1000)
            self._remove(member, f"it was silent for its session_timeout of {session}")
        forced = self.ownership.force(now, self.generation)
        gathered = self._gather_until is not None and self._gather_until <= now
        if gathered:
            self._gather_until = None
        if expired or gathered:
            self._assign(now)
        elif forced:
            self._changed(now)
        self._wake_at = None
        return expired

    def next_deadline(self) -> float:
        """``expire`` has nothing to do before; it may turn out to have nothing to do then."""
        if self._wake_at is None:
            self._wake_at = min(
                self.members.first_expiry(),
                self.ownership.first_deadline(),
                math.inf if self._gather_until is None else self._gather_until,
            )
        return self._wake_at

    def reloaded(self, now: float) -> None:
        """All records of it were replayed (``group_record.restore``, ``applied``): its members go
        on without noticing. What was on its way is decided anew, with all of its time.
        """
        if len(self.members):
            self._notices.begin(now, RELOADED, self.ownership.owners())
            self._assign(now)

    def fresh_sessions(self, now: float) -> None:
        """Nobody is late: the broker itself was away (restarted, stopped, its machine asleep)."""
        for member in self.members:
            member.expires_at = max(member.expires_at, now + member.session_timeout_ms / 1000)

    def take_ended(self) -> list[Rebalance]:
        """The rebalances that ended since this was asked last, for log and metrics; bounded."""
        return self._notices.take()

    # ── topics ───────────────────────────────────────────────────────────────────────────────

    def topics_changed(self, now: float, topics: Topics) -> list[Partition]:
        """Topics came, went or grew. Returns committed offsets of topics that are gone, forgotten
        already: their records are to be removed. ``topics``: all, never only part of them.
        """
        subscribed = self.members.topics()
        before, self._topics = self._topics.of(subscribed), topics
        orphans = sorted(key for key in self.offsets if key[0] not in topics.names)
        self._offsets.forget(orphans)
        if topics.of(subscribed) != before:
            self._begin(now, TOPICS)
            self._first_seen(subscribed)
            gone = [key for key in self.ownership.holdings if not topics.exists(*key)]
            self.ownership.forget(sorted(gone))
            self._assign(now)
        return orphans

    # ── committed offsets ────────────────────────────────────────────────────────────────────

    def check_commit(self, request: CommitOffsetsRequest, now_ms: int) -> Writes:
        """What a commit makes of the offsets. Write ``puts``, then call ``applied`` and answer by
        ``commit_response``; in the order of the checks, as each reckons with those before it.

        Raises ``GroupNotEmpty`` T044 for a commit from outside while there are members.
        """
        if request.member_id == NO_MEMBER and len(self.members):
            raise texts_group.group_not_empty(self.name, members=self.members.ids())
        refused: dict[int, WireError] = {}
        for place, one in enumerate(request.partitions):
            error = self._fence.commit(request.member_id, one, self._topics)
            if error is not None:
                refused[place] = errors.to_wire(error)
        return self._offsets.check(request.partitions, refused, now_ms)

    def commit_response(
        self, request: CommitOffsetsRequest, writes: Writes
    ) -> CommitOffsetsResponse:
        """The answer to a commit whose ``writes`` are durable."""
        return CommitOffsetsResponse(self._offsets.results(request.partitions, writes))

    def check_reset(self, targets: Mapping[Partition, int], now_ms: int) -> Writes:
        """As ``check_commit``, but lower offsets count, too. Raises ``GroupNotEmpty`` T044."""
        self.check_empty()
        return self._offsets.reset(targets, now_ms)

    def check_empty(self) -> None:
        """Raise ``GroupNotEmpty`` T044 if there are members."""
        if len(self.members):
            raise texts_group.group_not_empty(self.name, members=self.members.ids())

    def applied(self, puts: Mapping[Partition, Committed]) -> None:
        """They are durable, or were replayed."""
        self._offsets.applied(puts)

    def failed(self) -> None:
        """An append failed: every commit that was checked and is not applied did not happen."""
        self._offsets.failed()

    def fetch(self, asked: tuple[OwnedPartitions, ...] | None) -> FetchOffsetsResponse:
        """What is committed."""
        return FetchOffsetsResponse(self._offsets.fetch(asked))

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    def _beat(self, now: float, request: HeartbeatRequest, who: Who) -> None:
        """A member goes on. An older epoch is fine, but decides nothing newer."""
        member = self.members.get(request.member_id)
        if member is None or member.away:
            raise self._fence.member(request.member_id)
        if request.member_epoch > member.epoch:
            reason = f"it speaks of epoch {request.member_epoch}, its newest is {member.epoch}"
            raise self._fence.member(request.member_id, reason)
        if request.member_epoch == member.epoch and _differs(member, request):
            self._resubscribe(now, member, request, who)
        member.heard(now)
        if self.ownership.leaving(member.member_id):
            owned = _owned(request)
            if self.ownership.confirm(member, request.member_epoch, owned, self.generation):
                self._changed(now)

    def _join(self, now: float, request: HeartbeatRequest, who: Who) -> None:
        """A member comes: new, anew under its old id, or in place of one with its instance id."""
        member = self.members.get(request.member_id)
        old = self.members.of_instance(request.instance_id)
        if old is member:
            old = None
        if old is not None and request.member_id in old.displaced:
            reason = f"its instance id is member '{old.member_id}' now"
            raise self._fence.member(request.member_id, reason)
        replaced = [one for one in (member, old) if one is not None]
        self.members.check(request, who, replaced)
        kept = self.ownership.held(request.member_id) & _owned(request)
        if (
            member is not None
            and old is None
            and not member.away
            and not _differs(member, request)
            and kept == self.ownership.held(member.member_id)
        ):
            member.heard(now)  # its first answer was lost
            return
        self._begin(now, JOINED if not replaced else REJOINED if old is None else RETURNED)
        if not len(self.members) and self._settings.assign_delay_s > 0:
            self._gather_until = now + self._settings.assign_delay_s
        fresh = Member(
            member_id=request.member_id,
            instance_id=request.instance_id,
            who=who,
            topics=request.topics,
            session_timeout_ms=request.session_timeout_ms,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            epoch=0,
            joined=self.generation,
        )
        if member is not None:
            self.ownership.let_go(member.member_id, kept)
            self.members.remove(member.member_id)
            fresh.displaced = member.displaced
        self.members.add(fresh)
        if old is not None:
            displaced_by(fresh, old)
            self.ownership.hand_over(old.member_id, fresh, self.generation)
            self._remove(old, f"its instance id is member '{fresh.member_id}' now")
        fresh.heard(now)
        self._bump(fresh)
        self._first_seen(fresh.topics)
        self._assign(now)

    def _resubscribe(self, now: float, member: Member, request: HeartbeatRequest, who: Who) -> None:
        self.members.check(request, who, [member])
        if member.topics != request.topics:
            self._begin(now, SUBSCRIBED)
        member.topics = request.topics
        member.session_timeout_ms = request.session_timeout_ms
        member.rebalance_timeout_ms = request.rebalance_timeout_ms
        self._first_seen(member.topics)
        self._assign(now)

    def _go_away(self, now: float, member_id: str) -> None:
        """A static member stops for a while: it keeps what it has, but reads nothing."""
        member = self.members.get(member_id)
        if member is None or member.instance_id is None:
            self.leave(now, member_id)
        elif not member.away:
            member.away = True
            member.heard(now)
            self.ownership.confirm(member, member.epoch, set(), self.generation)
            self._changed(now)

    def _remove(self, member: Member, reason: str) -> None:
        self.ownership.let_go(member.member_id)
        self.members.remove(member.member_id)
        self._fence.remember(member.member_id, reason)

    def _begin(self, now: float, reason: str) -> None:
        """Before anything of a change is done."""
        self.generation += 1
        self._notices.begin(now, reason, self.ownership.owners())

    def _assign(self, now: float) -> None:
        """After a change: decide who shall have what."""
        if not len(self.members):
            self._gather_until = None
        topics = self._topics.of(self.members.topics())
        self._partitions = sum(shape.partitions for shape in topics.values())
        if self._gather_until is None:
            wish, loose = self.ownership.wish()
            targets = assign(
                {shape.topic_id: range(shape.partitions) for shape in topics.values()},
                {
                    member.member_id: frozenset(
                        topics[name].topic_id for name in member.topics if name in topics
                    )
                    for member in self.members
                },
                wish,
                loose,
            )
            self.ownership.aim(now, self.generation, targets)
        self._changed(now)

    def _changed(self, now: float) -> None:
        """After everything that has to be written."""
        self.changes += 1
        self._wake_at = None
        if self.stable:
            clients = {member.member_id: member.who.client_id for member in self.members}
            self._notices.end(
                now, self.generation, self.ownership.owners(), self._topics.names, clients
            )

    def _bump(self, member: Member) -> None:
        self.epochs += 1
        member.epoch = self.epochs
        member.assigned = None

    def _first_seen(self, names: Collection[str]) -> None:
        """Take down what existed when a topic was subscribed first: the rest was added later, and
        so was a whole topic whose name had been waited for (C15).
        """
        for name, shape in self._topics.of(names).items():
            if shape.topic_id not in self.known:
                self.known[shape.topic_id] = 0 if name in self.subscribed else shape.partitions
        self.subscribed.update(names)
        self.known = {
            one: number for one, number in self.known.items() if one in self._topics.names
        }

    def _assigned(self, member: Member) -> tuple[AssignedTopic, ...]:
        """What it is told; kept until it changes."""
        if member.assigned is None:
            topics: dict[bytes, list[AssignedPartition]] = {}
            for (topic_id, number), since in self.ownership.assigned(member.member_id):
                later = number >= self.known[topic_id]
                topics.setdefault(topic_id, []).append(AssignedPartition(number, since, later))
            member.assigned = tuple(
                AssignedTopic(self._topics.names[topic_id], topic_id, tuple(partitions))
                for topic_id, partitions in topics.items()
            )
        return member.assigned


def _told(member: Member, request: HeartbeatRequest) -> int:
    """The newest rebalance that is no news to a member: told, or from before it came."""
    return max(request.told_generation, member.joined - 1)


def _differs(member: Member, request: HeartbeatRequest) -> bool:
    return (
        member.topics != request.topics
        or member.session_timeout_ms != request.session_timeout_ms
        or member.rebalance_timeout_ms != request.rebalance_timeout_ms
    )


def _owned(request: HeartbeatRequest) -> set[Partition]:
    return {(topic.topic_id, number) for topic in request.owned for number in topic.partitions}
