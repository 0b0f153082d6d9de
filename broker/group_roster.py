"""Who comes to one group, who goes, who goes on: every heartbeat, decided (pure).

- An older epoch of a member proves that it lives, but decides nothing newer: messages may overtake
  each other.
- Epoch 0 begins a member's life anew. What it says it still owns stays its own; the rest of what it
  had is free, and comes to whoever gets it under a new assignment epoch.
- A member with the instance id of another takes over what that one had, and the other is refused
  from then on: also when it tries to take over in return.

Methods raise before they change anything.
"""

from tailrace.broker.assignment import Partition
from tailrace.broker.group_balance import Balance
from tailrace.broker.group_fence import Fence
from tailrace.broker.group_members import Member, Members, Who, displaced_by
from tailrace.protocol.messages import HeartbeatRequest
from tailrace.protocol.messages_group import AWAY_EPOCH, JOIN_EPOCH, LEAVE_EPOCH
from tailrace.protocol.units import format_duration

JOINED = "member joined"
REJOINED = "member rejoined"
RETURNED = "member returned"  # one with an instance id
LEFT = "member left"
EXPIRED = "session timed out"
SUBSCRIBED = "subscription changed"


class Roster:
    """The comings and goings of one group."""

    def __init__(self, members: Members, balance: Balance, fence: Fence) -> None:
        self._members = members
        self._balance = balance
        self._ownership = balance.ownership
        self._fence = fence

    def heartbeat(self, now: float, request: HeartbeatRequest, who: Who) -> None:
        """Raises ``GroupFenced`` T042, ``GroupConfigMismatch`` T070, ``ConfigError`` T082,
        ``InvalidName`` T013.
        """
        match request.member_epoch:
            case epoch if epoch > JOIN_EPOCH:
                self._beat(now, request, who)
            case epoch if epoch == JOIN_EPOCH:
                self._join(now, request, who)
            case epoch if epoch == LEAVE_EPOCH:
                self.leave(now, request.member_id, LEFT)
            case epoch if epoch == AWAY_EPOCH:
                self._go_away(now, request.member_id)
            case epoch:
                raise self._fence.member(request.member_id, f"there is no epoch {epoch}")

    def leave(self, now: float, member_id: str, reason: str) -> None:
        """A member goes for good; one that is not there is fine."""
        member = self._members.get(member_id)
        if member is not None:
            self._balance.begin(now, reason)
            self._remove(member, "it left" if reason == LEFT else reason)
            self._balance.assign(now)

    def expire(self, now: float) -> list[Member]:
        """Remove those whose session is over, all of them in one rebalance."""
        expired = self._members.expired(now)
        if expired:
            self._balance.begin(now, EXPIRED)
            for member in expired:
                session = format_duration(member.session_timeout_ms / 1000)
                self._remove(member, f"it was silent for its session_timeout of {session}")
            self._balance.assign(now)
        return expired

    def _beat(self, now: float, request: HeartbeatRequest, who: Who) -> None:
        """A member goes on. An older epoch is fine, but decides nothing newer."""
        member = self._members.get(request.member_id)
        if member is None:
            raise self._fence.member(request.member_id)
        if member.away:
            raise self._fence.member(member.member_id, "it said that it goes away")
        if request.member_epoch > member.epoch:
            reason = f"it speaks of epoch {request.member_epoch}, its newest is {member.epoch}"
            raise self._fence.member(request.member_id, reason)
        if request.member_epoch == member.epoch and _differs(member, request):
            self._resubscribe(now, member, request, who)
        member.heard(now)
        if self._ownership.leaving(member.member_id):
            owned = _owned(request)
            if self._ownership.confirm(
                member, request.member_epoch, owned, self._balance.generation
            ):
                self._balance.changed(now)

    def _join(self, now: float, request: HeartbeatRequest, who: Who) -> None:
        """A member comes: new, anew under its old id, or in place of one with its instance id."""
        member = self._members.get(request.member_id)
        old = self._members.of_instance(request.instance_id)
        if old is member:
            old = None
        if old is not None and request.member_id in old.displaced:
            reason = f"its instance id is member '{old.member_id}' now"
            raise self._fence.member(request.member_id, reason, replaced=True)
        replaced = [one for one in (member, old) if one is not None]
        self._members.check(request, who, replaced)
        kept = self._ownership.held(request.member_id) & _owned(request)
        if (
            member is not None
            and old is None
            and not member.away
            and member.instance_id == request.instance_id
            and not _differs(member, request)
            and kept == self._ownership.held(member.member_id)
        ):
            member.heard(now)  # its first answer was lost
            return
        back = old is not None or (member is not None and member.away)
        self._balance.begin(now, RETURNED if back else REJOINED if member is not None else JOINED)
        if not len(self._members):
            self._balance.gather(now)
        fresh = Member(
            member_id=request.member_id,
            instance_id=request.instance_id,
            who=who,
            topics=self._members.kept(request.topics),
            session_timeout_ms=request.session_timeout_ms,
            rebalance_timeout_ms=request.rebalance_timeout_ms,
            epoch=0,
            joined=self._balance.generation,
        )
        if member is not None:
            self._ownership.let_go(member.member_id, kept)
            self._members.remove(member.member_id)
            fresh.displaced = member.displaced
        self._members.add(fresh)
        if old is not None:
            displaced_by(fresh, old)
            self._ownership.hand_over(old.member_id, fresh, self._balance.generation)
            reason = f"its instance id is member '{fresh.member_id}' now"
            self._remove(old, reason, replaced=True)
        fresh.heard(now)
        self._balance.bump(fresh)
        self._balance.first_seen(fresh.topics)
        self._balance.assign(now)

    def _resubscribe(self, now: float, member: Member, request: HeartbeatRequest, who: Who) -> None:
        self._members.check(request, who, [member])
        if member.topics != request.topics:
            self._balance.begin(now, SUBSCRIBED)
        member.topics = self._members.kept(request.topics)
        member.session_timeout_ms = request.session_timeout_ms
        member.rebalance_timeout_ms = request.rebalance_timeout_ms
        self._balance.first_seen(member.topics)
        self._balance.assign(now)

    def _go_away(self, now: float, member_id: str) -> None:
        """A static member stops for a while: it keeps what it has, but reads nothing."""
        member = self._members.get(member_id)
        if member is None or member.instance_id is None:
            self.leave(now, member_id, LEFT)
        elif not member.away:
            member.away = True
            member.heard(now)
            self._ownership.confirm(member, member.epoch, set(), self._balance.generation)
            self._balance.changed(now)

    def _remove(self, member: Member, reason: str, *, replaced: bool = False) -> None:
        self._ownership.let_go(member.member_id)
        self._members.remove(member.member_id)
        self._fence.remember(member.member_id, reason, replaced=replaced)


def _differs(member: Member, request: HeartbeatRequest) -> bool:
    return (
        member.topics != request.topics
        or member.session_timeout_ms != request.session_timeout_ms
        or member.rebalance_timeout_ms != request.rebalance_timeout_ms
    )


def _owned(request: HeartbeatRequest) -> set[Partition]:
    return {(topic.topic_id, number) for topic in request.owned for number in topic.partitions}
