"""One group's way from a change to the next stable state: generations, targets, what existed when
(pure).

Invariants:
- ``generation`` rises with every change of members, subscriptions or topics: ``begin``, then the
  change, then ``assign``;
- ``changes`` rises with everything that has to be durable before anybody is told of it;
- ``epochs`` never falls, and no two changes give the same epoch.
"""

import math
from collections.abc import Collection

from tailrace.broker.assignment import Partition, assign
from tailrace.broker.group_members import GroupSettings, Member, Members
from tailrace.broker.group_notices import Notices
from tailrace.broker.group_ownership import Ownership
from tailrace.broker.group_topics import TopicShapes

SUBSCRIBED_MAX = 4_000


class Balance:
    """Times are seconds of the caller's monotonic clock."""

    def __init__(self, settings: GroupSettings, members: Members, topics: TopicShapes) -> None:
        self.topics = topics
        self.generation = 0
        self.epochs = 0  # the newest that any member was given
        self.changes = 0
        self.known: dict[bytes, int] = {}  # partitions of a topic when it was first subscribed
        self.subscribed: set[str] = set()  # every topic name that ever was
        self.partitions = 0  # of the subscribed topics, together
        self.gather_until = (
            math.inf
        )  # the first assignment waits for more to join; inf: it does not
        self.ownership = Ownership(members, self.bump)
        self.notices = Notices()
        self._settings = settings
        self._members = members

    @property
    def stable(self) -> bool:
        """Whether no partition is on its way."""
        return not self.gathering and self.ownership.stable

    @property
    def gathering(self) -> bool:
        return self.gather_until < math.inf

    def gather(self, now: float) -> None:
        """The first member of an empty group is about to join: wait for others."""
        if self._settings.assign_delay_s > 0:
            self.gather_until = now + self._settings.assign_delay_s

    def begin(self, now: float, reason: str) -> None:
        """Before anything of a change is done."""
        self.generation += 1
        self.notices.begin(now, reason, self.ownership.owners())

    def assign(self, now: float) -> None:
        """After a change: decide who shall have what, and begin to bring it there."""
        if not len(self._members):
            self.gather_until = math.inf
        targets = self._targets()
        if not self.gathering:
            self.ownership.aim(now, self.generation, targets)
        self.changed(now)

    def changed(self, now: float) -> None:
        """After everything that has to be written."""
        self.changes += 1
        if self.stable:
            clients = {member.member_id: member.who.client_id for member in self._members}
            owners = self.ownership.owners()
            self.notices.end(now, self.generation, owners, self.topics.names, clients)

    def resume(self, now: float, reason: str) -> None:
        """After a reload: what was on its way is decided anew, topics may have gone meanwhile.

        Where everything is as it shall be, nothing changes.
        """
        gone = [key for key in self.ownership.holdings if not self.topics.exists(*key)]
        if gone or not self.stable or self._targets() != self.ownership.owners():
            self.begin(now, reason)
            self.first_seen(self._members.topics())
            self.ownership.forget(sorted(gone))
            self.assign(now)
        else:
            self.ownership.aim(now, self.generation, self.ownership.owners())

    def bump(self, member: Member) -> None:
        """What a member shall own changed."""
        self.epochs += 1
        member.epoch = self.epochs
        member.assigned = None

    def first_seen(self, names: Collection[str]) -> None:
        """Take down what existed when a topic was subscribed first: the rest was added later, and
        so was a whole topic whose name had been waited for (C15).
        """
        for name, shape in self.topics.of(names).items():
            if shape.topic_id not in self.known:
                self.known[shape.topic_id] = 0 if name in self.subscribed else shape.partitions
        self.subscribed.update(names)
        if len(self.subscribed) > SUBSCRIBED_MAX:  # of names that never existed, none is kept
            self.subscribed = {*names, *(self.subscribed & self.topics.by_name.keys())}
        for topic_id in [one for one in self.known if one not in self.topics.names]:
            del self.known[topic_id]

    def added_later(self, partition: Partition) -> bool:
        """Whether it did not exist when the group first subscribed its topic."""
        topic_id, number = partition
        return number >= self.known[topic_id]

    def _targets(self) -> dict[Partition, str]:
        """Who shall have what; also counts the partitions."""
        topics = self.topics.of(self._members.topics())
        self.partitions = sum(shape.partitions for shape in topics.values())
        if self.gathering:
            return {}
        ids_of: dict[int, frozenset[bytes]] = {}  # by the one object that equal subscriptions are
        subscriptions: dict[str, frozenset[bytes]] = {}
        for member in self._members:
            place = id(member.topics)
            if place not in ids_of:
                names = (name for name in member.topics if name in topics)
                ids_of[place] = frozenset(topics[name].topic_id for name in names)
            subscriptions[member.member_id] = ids_of[place]
        numbers = {shape.topic_id: range(shape.partitions) for shape in topics.values()}
        wish, loose = self.ownership.wish()
        return assign(numbers, subscriptions, wish, loose)
