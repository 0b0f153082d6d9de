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
from collections.abc import Mapping
from typing import Literal

from tailrace.broker.assignment import Partition
from tailrace.broker.group_balance import Balance
from tailrace.broker.group_fence import Fence
from tailrace.broker.group_members import GroupSettings, Member, Members, Who
from tailrace.broker.group_offsets import Committed, Offsets, Writes
from tailrace.broker.group_roster import LEFT, Roster
from tailrace.broker.group_topics import TopicShapes
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
from tailrace.protocol.messages_group import JOIN_EPOCH, NO_MEMBER

State = Literal["empty", "assigning", "stable"]

TOPICS = "topics changed"
RELOADED = "coordinator restarted"


class Group:
    """One group. A new one has nothing to be written: it begins to exist with its first member or
    commit.
    """

    def __init__(self, name: str, settings: GroupSettings, topics: TopicShapes) -> None:
        self.name = name
        self.written = 0  # the value of ``changes`` that is durable; the coordinator's to set
        self.members = Members(name, settings)
        self.balance = Balance(settings, self.members, topics)
        self.ownership = self.balance.ownership
        self._offsets = Offsets()
        self._fence = Fence(name, settings.broker_id, self.members, self.ownership)
        self._roster = Roster(self.members, self.balance, self._fence)
        self._wake_at = -math.inf  # nothing is due before, as of ``_wake_for`` changes
        self._wake_for = -1

    # ── what it is ───────────────────────────────────────────────────────────────────────────

    @property
    def generation(self) -> int:
        """Rises with every change of members, subscriptions or topics."""
        return self.balance.generation

    @property
    def changes(self) -> int:
        """Rises with everything that has to be durable before anybody is told of it."""
        return self.balance.changes

    @property
    def offsets(self) -> Mapping[Partition, Committed]:
        """What is committed, durably."""
        return self._offsets.committed

    @property
    def dirty(self) -> bool:
        """Whether there is something to be written before anybody may be told."""
        return self.changes != self.written

    @property
    def void(self) -> bool:
        """Whether nothing was ever stored of it: it does not exist."""
        return not self.generation and not self.offsets

    @property
    def stable(self) -> bool:
        """Whether no partition is on its way."""
        return self.balance.stable

    @property
    def state(self) -> State:
        if not len(self.members):
            return "empty"
        return "stable" if self.stable else "assigning"

    def topics(self) -> tuple[str, ...]:
        """Names of those that its members subscribe to, or that it has commits of; sorted."""
        committed = {topic_id for topic_id, _ in self.offsets}
        names = {
            self.balance.topics.names[one] for one in committed if one in self.balance.topics.names
        }
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
        self._roster.heartbeat(now, request, who)

    def ready(self, request: HeartbeatRequest) -> bool:
        """Whether there is news for the member that sent this, and it may be told."""
        if self.dirty:
            return False
        member = self.members.get(request.member_id)
        return (
            member is None
            or member.epoch != request.member_epoch
            or member.told_stable != self.stable
            or self.balance.notices.newest > _told(member, request)
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
            partitions=self.balance.partitions,
            rebalances=(
                ()
                if member is None or going
                else self.balance.notices.since(_told(member, request))
            ),
        )

    def hold_s(self, request: HeartbeatRequest) -> float:
        """How long a heartbeat may wait: as asked, at most a third of its session."""
        return min(request.wait_ms, request.session_timeout_ms // 3) / 1000

    def leave(self, now: float, member_id: str, *, reason: str = LEFT) -> None:
        """A member goes for good; one that is not there is fine."""
        self._roster.leave(now, member_id, reason)

    def expire(self, now: float) -> list[Member]:
        """Do what is due by ``now``: sessions and withdrawals that have run out, the first
        assignment. Returns the members that were thrown out.
        """
        if now < self.next_deadline():
            return []
        expired = self._roster.expire(now)
        if self.balance.gather_until <= now:
            self.balance.gather_until = math.inf
            self.balance.assign(now)
        if self.ownership.force(now, self.generation):
            self.balance.changed(now)
        self._wake_for = -1
        return expired

    def next_deadline(self) -> float:
        """``expire`` has nothing to do before; it may turn out to have nothing to do then."""
        if self._wake_for != self.changes:
            self._wake_for = self.changes
            self._wake_at = min(
                self.members.first_expiry(),
                self.ownership.first_deadline(),
                self.balance.gather_until,
            )
        return self._wake_at

    def reloaded(self, now: float) -> None:
        """All records of it were replayed (``group_record.restore``, ``applied``): its members go
        on without noticing. What was on its way is decided anew, with all of its time.
        """
        self.balance.resume(now, RELOADED)

    def fresh_sessions(self, now: float) -> None:
        """Nobody is late: the broker itself was away (restarted, stopped, its machine asleep)."""
        for member in self.members:
            member.expires_at = max(member.expires_at, now + member.session_timeout_ms / 1000)
        self.ownership.grace(now)

    def take_ended(self) -> list[Rebalance]:
        """The rebalances that ended since this was asked last, for log and metrics; bounded."""
        return self.balance.notices.take()

    # ── topics ───────────────────────────────────────────────────────────────────────────────

    def topics_changed(self, now: float, topics: TopicShapes) -> list[Partition]:
        """Topics came, went or grew. Returns committed offsets of topics that are gone, forgotten
        already: their records are to be removed. ``topics``: all, never only part of them.
        """
        subscribed = self.members.topics()
        before, self.balance.topics = self.balance.topics.of(subscribed), topics
        orphans = sorted(key for key in self.offsets if key[0] not in topics.names)
        self._offsets.forget(orphans)
        if topics.of(subscribed) != before:
            self.balance.begin(now, TOPICS)
            self.balance.first_seen(subscribed)
            gone = [key for key in self.ownership.holdings if not topics.exists(*key)]
            self.ownership.forget(sorted(gone))
            self.balance.assign(now)
        return orphans

    # ── committed offsets ────────────────────────────────────────────────────────────────────

    def check_commit(self, request: CommitOffsetsRequest, now_ms: int) -> Writes:
        """What a commit makes of the offsets. Write ``puts``, then call ``applied`` and answer by
        ``commit_response``; in the order of the checks, as each reckons with those before it.

        Raises ``GroupNotEmpty`` T044 for a commit from outside while there are members.
        """
        if request.member_id == NO_MEMBER:
            self.check_empty()
        refused: dict[int, WireError] = {}
        for place, one in enumerate(request.partitions):
            error = self._fence.commit(request.member_id, one, self.balance.topics)
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

    def _assigned(self, member: Member) -> tuple[AssignedTopic, ...]:
        """What it is told; kept until it changes."""
        if member.assigned is None:
            topics: dict[bytes, list[AssignedPartition]] = {}
            for key, since in self.ownership.assigned(member.member_id):
                one = AssignedPartition(key[1], since, self.balance.added_later(key))
                topics.setdefault(key[0], []).append(one)
            member.assigned = tuple(
                AssignedTopic(self.balance.topics.names[topic_id], topic_id, tuple(partitions))
                for topic_id, partitions in topics.items()
            )
        return member.assigned


def _told(member: Member, request: HeartbeatRequest) -> int:
    """The newest rebalance that is no news to a member: told, or from before it came."""
    return max(request.told_generation, member.joined - 1)
