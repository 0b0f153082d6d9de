"""The members of one group: who they are, until when they are believed, who may join (pure).

Invariants:
- no two members have the same instance id;
- the topic sets of any two members are equal or nested (C16), and equal ones are one object;
- ``epoch`` of a member is one that no other change of the group ever had, so that a message from a
  former life of the same member id can never be taken for one from this.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tailrace.broker.limits import is_id
from tailrace.protocol import texts, texts_group
from tailrace.protocol.messages import AssignedTopic, HeartbeatRequest

TOPICS_MAX = 1_000  # of one subscription
SUBSCRIPTIONS_MAX = 16  # different ones in a group: a rolling deploy has two
TOPIC_LENGTH_MAX = 249
_DISPLACED_MAX = 8


class Who(NamedTuple):
    """Where a member's requests come from."""

    client_id: str
    host: str
    version: str  # of its software


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """What the broker's settings say, as far as the state machine needs them."""

    broker_id: str = ""
    members_max: int = 1_000
    session_timeout_min_ms: int = 1_000
    session_timeout_max_ms: int = 300_000
    assign_delay_s: float = 0.2


@dataclass(slots=True)
class Member:
    """One member. Times are seconds of the caller's monotonic clock."""

    member_id: str
    instance_id: str | None
    who: Who
    topics: tuple[str, ...]  # its subscription, sorted
    session_timeout_ms: int
    rebalance_timeout_ms: int
    epoch: int  # rises with every change of what it shall own
    joined: int  # the generation in which it came
    away: bool = False  # gone, and expected back within its session (instance id only)
    displaced: tuple[str, ...] = ()  # member ids that had this instance id before, newest last
    heard_at: float = 0.0
    expires_at: float = math.inf
    told_stable: bool = True
    assigned: tuple[AssignedTopic, ...] | None = None  # as it is told; None: to be made anew

    def heard(self, now: float) -> None:
        """It is alive: its session begins anew."""
        self.heard_at = now
        self.expires_at = now + self.session_timeout_ms / 1000

    @property
    def interval_ms(self) -> int:
        """How long it may wait before it is heard of again: a third of its session."""
        return self.session_timeout_ms // 3


class Members:
    """All members by id."""

    def __init__(self, group: str, settings: GroupSettings) -> None:
        self._group = group
        self._settings = settings
        self._by_id: dict[str, Member] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._by_id.values())

    def __contains__(self, member_id: str) -> bool:
        return member_id in self._by_id

    def get(self, member_id: str) -> Member | None:
        return self._by_id.get(member_id)

    def __getitem__(self, member_id: str) -> Member:
        return self._by_id[member_id]

    def ids(self) -> list[str]:
        """Sorted."""
        return sorted(self._by_id)

    def add(self, member: Member) -> None:
        assert member.member_id not in self._by_id, "a member is there twice"
        self._by_id[member.member_id] = member

    def remove(self, member_id: str) -> Member:
        return self._by_id.pop(member_id)

    def of_instance(self, instance_id: str | None) -> Member | None:
        """The member with that instance id."""
        if instance_id is None:
            return None
        for member in self:
            if member.instance_id == instance_id:
                return member
        return None

    def topics(self) -> set[str]:
        """All that somebody subscribes to."""
        different = {id(member.topics): member.topics for member in self}
        return {topic for topics in different.values() for topic in topics}

    def kept(self, topics: tuple[str, ...]) -> tuple[str, ...]:
        """The same subscription as some member has it: a thousand members with a thousand topics
        each keep, hash and compare them once."""
        return next((member.topics for member in self if member.topics == topics), topics)

    def expired(self, now: float) -> list[Member]:
        """Those whose session is over, by id."""
        gone = [member for member in self if member.expires_at <= now]
        return sorted(gone, key=lambda member: member.member_id)

    def first_expiry(self) -> float:
        return min((member.expires_at for member in self), default=math.inf)

    def check(self, request: HeartbeatRequest, who: Who, replaced: Iterable[Member]) -> None:
        """Whether a request may join or change its subscription, in place of ``replaced``.

        Raises ``InvalidName`` T013 for names nobody may have, ``ConfigError`` T082 for a session
        outside the broker's bounds, for too many topics or different subscriptions and for a full
        group, ``GroupConfigMismatch`` T070 for a subscription that is neither equal nor nested.
        """
        _check_id("member id", request.member_id)
        if request.instance_id is not None:
            _check_id("instance id", request.instance_id)
        if len(request.topics) > TOPICS_MAX:
            raise texts_group.subscription_too_large(len(request.topics), limit=TOPICS_MAX)
        for topic in request.topics:
            if not 1 <= len(topic) <= TOPIC_LENGTH_MAX or not topic.isprintable():
                raise texts.invalid_topic_name(topic)
        settings = self._settings
        low, high = settings.session_timeout_min_ms, settings.session_timeout_max_ms
        if not low <= request.session_timeout_ms <= high:
            raise texts_group.session_timeout_outside(
                request.session_timeout_ms, low_ms=low, high_ms=high
            )
        gone = {member.member_id for member in replaced}
        others = [member for member in self if member.member_id not in gone]
        if not gone and len(others) >= settings.members_max:
            raise texts_group.group_full(self._group, members_max=settings.members_max)
        mine = frozenset(request.topics)
        theirs = {id(member.topics): member for member in others}  # equal ones are the same
        known = any(other.topics == request.topics for other in theirs.values())
        if len(theirs) >= SUBSCRIPTIONS_MAX and not known:
            raise texts_group.subscriptions_differ(self._group, limit=SUBSCRIPTIONS_MAX)
        for other in theirs.values():
            topics = other.topics
            if not (mine.issubset(topics) or mine.issuperset(topics)):
                raise texts_group.subscription_mismatch(
                    group=self._group,
                    member=other.who.client_id,
                    yours=request.topics,
                    theirs=topics,
                )


def displaced_by(new: Member, old: Member) -> None:
    """``new`` took over from ``old``, which must not take over in return."""
    new.displaced = (*old.displaced, old.member_id)[-_DISPLACED_MAX:]


def _check_id(kind: Literal["member id", "instance id"], text: str) -> None:
    if not is_id(text):
        raise texts.invalid_id(kind, text)
