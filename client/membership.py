"""What one member of a group holds, and what its coordinator says about it. Pure.

``request`` is the heartbeat to send now; ``answered``, ``refused`` and ``release`` change what is
held and return what happened, in order. When heartbeats leave is ``pulse.py``'s business.

Invariants:
- a partition is reported as owned from the answer that assigned it until it is released or lost;
- ``Assigned`` never names a partition that is held: it was released or lost before;
- a member that was fenced holds nothing, and joins again under its own id;
- answers to what was asked before that (``life``) change nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages_group import (
    AWAY_EPOCH,
    JOIN_EPOCH,
    LEAVE_EPOCH,
    HeartbeatRequest,
    HeartbeatResponse,
    OwnedPartitions,
    Rebalance,
)
from tailrace.protocol.shapes import TopicPartition

Place = tuple[bytes, int]  # topic id and partition


@dataclass(frozen=True, slots=True)
class Assignment:
    """One partition that the member shall read now."""

    topic: str
    topic_id: bytes
    partition: int
    assignment_epoch: int  # the generation in which it came to the member; commits carry it
    added_later: bool  # it did not exist when the group first subscribed: starts at its beginning

    @property
    def at(self) -> TopicPartition:
        """Which one, by names."""
        return TopicPartition(self.topic, self.partition)

    @property
    def place(self) -> Place:
        """Which one, as the coordinator names it."""
        return self.topic_id, self.partition


# ── what happens to a member ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Assigned:
    """It shall read these as well."""

    partitions: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """It shall release these."""

    partitions: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """These are somebody else's already."""

    partitions: tuple[Assignment, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Rebalanced:
    """A rebalance of the group has ended."""

    rebalance: Rebalance


@dataclass(frozen=True, slots=True)
class Status:
    """How the group stands; told after the first answer, when it changed, and with any change."""

    generation: int
    stable: bool  # no partition of the group is on its way
    members: int
    partitions: int  # that the group reads
    held: int  # by this member


@dataclass(frozen=True, slots=True)
class Failed:
    """It is no member any more, for good."""

    error: TailraceError


@dataclass(frozen=True, slots=True)
class Left:
    """The coordinator knows that it has left."""


Event = Assigned | Withdrawn | Lost | Rebalanced | Status | Failed | Left


@dataclass(frozen=True, slots=True)
class Identity:
    """Who it is and what it wants."""

    group: str
    member_id: str
    instance_id: str | None
    topics: tuple[str, ...]  # sorted
    session_timeout_ms: int
    rebalance_timeout_ms: int


class Membership:
    """See the module."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.epoch = JOIN_EPOCH  # the newest that was told
        self.life = 0  # rises when the member was fenced
        self.unsaid = True  # there is something that no heartbeat has told yet
        self.leaving = False
        self.for_good = False  # it leaves although it has an instance id
        self._told_generation = -1
        self._held: dict[Place, Assignment] = {}
        self._withdrawn: set[Place] = set()  # part of what is held
        self._wanted: dict[Place, Assignment] = {}  # what the newest answer assigns
        self._status: Status | None = None

    def request(self, wait_ms: int) -> HeartbeatRequest:
        """The heartbeat that tells how it is now."""
        self.unsaid = False
        who = self.identity
        return HeartbeatRequest(
            group=who.group,
            member_id=who.member_id,
            member_epoch=self._epoch_to_send(),
            instance_id=who.instance_id,
            topics=who.topics,
            owned=() if self.leaving else self._owned(),
            session_timeout_ms=who.session_timeout_ms,
            rebalance_timeout_ms=who.rebalance_timeout_ms,
            wait_ms=0 if self.leaving else wait_ms,
            told_generation=self._told_generation,
        )

    def _epoch_to_send(self) -> int:
        if not self.leaving:
            return self.epoch
        stays = self.identity.instance_id is not None and not self.for_good
        return AWAY_EPOCH if stays else LEAVE_EPOCH

    def _owned(self) -> tuple[OwnedPartitions, ...]:
        by_topic: dict[bytes, list[int]] = {}
        for topic_id, partition in sorted(self._held):
            by_topic.setdefault(topic_id, []).append(partition)
        return tuple(OwnedPartitions(topic, tuple(held)) for topic, held in by_topic.items())

    def answered(self, response: HeartbeatResponse) -> list[Event]:
        """What is new. An answer that is older than what is known changes nothing."""
        if self.leaving:
            return [Left()]
        if response.member_epoch < self.epoch:
            return []
        self.epoch = response.member_epoch
        self._wanted = {one.place: one for one in _assignments(response)}
        events = self._apply()
        for rebalance in response.rebalances:
            if rebalance.generation > self._told_generation:
                self._told_generation = rebalance.generation
                events.append(Rebalanced(rebalance))
        status = Status(
            generation=response.generation,
            stable=response.stable,
            members=response.members,
            partitions=response.partitions,
            held=len(self._held),
        )
        if status != self._status or events:
            self._status = status
            events.append(status)
        return events

    def _apply(self) -> list[Event]:
        """Go from what is held towards what is wanted."""
        events: list[Event] = []
        replaced = [
            one
            for place, one in self._held.items()
            if place in self._wanted
            and self._wanted[place].assignment_epoch != one.assignment_epoch
        ]
        self._drop(replaced)
        if replaced:  # it was another's in between
            events.append(Lost(tuple(replaced), "it was not released in time"))
        gone = self._held.keys() - self._wanted.keys() - self._withdrawn
        if gone:
            self._withdrawn |= gone
            events.append(Withdrawn(tuple(self._held[place] for place in sorted(gone))))
        new = [one for place, one in self._wanted.items() if place not in self._held]
        if new:
            self._held.update((one.place, one) for one in new)
            events.append(Assigned(tuple(new)))
        return events

    def refused(self, error: TailraceError) -> list[Event]:
        """What an error means that is not over by asking again.

        T042: it was fenced, and joins again. T042 for that: another one has its instance id, and
        both would go on for ever taking it from each other.
        """
        rejoins = error.code == "T042" and self.epoch != JOIN_EPOCH
        if self.leaving:
            return [Left()]
        lost = tuple(self._held.values())
        self._drop(lost)
        self._wanted = {}
        self.epoch = JOIN_EPOCH
        self.life += 1
        self.unsaid = True
        self._status = None  # the next one is told
        events: list[Event] = [Lost(lost, error.message)] if lost else []
        return events if rejoins else [*events, Failed(error)]

    def release(self, assignment: Assignment) -> list[Event]:
        """It reads that partition no longer. One that was lost meanwhile is passed over."""
        place = assignment.place
        held = self._held.get(place)
        if held is None or place not in self._withdrawn:
            return []
        if held.assignment_epoch != assignment.assignment_epoch:
            return []
        self._drop([held])
        self.unsaid = True
        again = self._wanted.get(place)
        if again is None:
            return []
        self._held[place] = again  # the coordinator has changed its mind meanwhile
        return [Assigned((again,))]

    def leave(self) -> None:
        """The next heartbeat is the last one."""
        self.leaving = True
        self.unsaid = True

    def _drop(self, assignments: Sequence[Assignment]) -> None:
        for one in assignments:
            del self._held[one.place]
            self._withdrawn.discard(one.place)

    @property
    def held(self) -> Mapping[Place, Assignment]:
        """What it reads, and what it has not released yet."""
        return self._held


def _assignments(response: HeartbeatResponse) -> list[Assignment]:
    return [
        Assignment(
            topic=topic.topic,
            topic_id=topic.topic_id,
            partition=one.partition,
            assignment_epoch=one.assignment_epoch,
            added_later=one.added_later,
        )
        for topic in response.assigned
        for one in topic.partitions
    ]
