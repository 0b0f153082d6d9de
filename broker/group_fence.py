"""Who is refused in one group, and why: members that are none any more, commits of what somebody
else owns (T042; pure).
"""

from tailrace.broker.group_members import Members
from tailrace.broker.group_ownership import Ownership
from tailrace.broker.group_topics import TopicShapes
from tailrace.protocol import errors, texts, texts_group
from tailrace.protocol.messages import CommitPartition
from tailrace.protocol.messages_group import METADATA_BYTES_MAX, NO_MEMBER

_GONE_MAX = 100


class Fence:
    """Refusals of one group. Knows of the newest members that went why they did."""

    def __init__(self, group: str, broker_id: str, members: Members, ownership: Ownership) -> None:
        self._group = group
        self._broker_id = broker_id
        self._members = members
        self._ownership = ownership
        self._gone: dict[str, tuple[str, bool]] = {}  # by member id, the newest last

    def remember(self, member_id: str, reason: str, *, replaced: bool = False) -> None:
        """A member went. ``reason`` continues "is no longer in group 'g': ".

        ``replaced``: another one has its instance id, so that it cannot come back.
        """
        self._gone.pop(member_id, None)
        self._gone[member_id] = reason, replaced
        if len(self._gone) > _GONE_MAX:
            del self._gone[next(iter(self._gone))]

    def member(
        self, member_id: str, reason: str | None = None, *, replaced: bool = False
    ) -> errors.GroupFenced:
        """T042. ``reason``: None, if it went some time ago."""
        if reason is None:
            reason, replaced = self._gone.get(member_id, ("it is not known here", False))
        return texts_group.group_fenced(self._group, member_id, reason=reason, replaced=replaced)

    def commit(
        self, member_id: str, one: CommitPartition, topics: TopicShapes
    ) -> errors.TailraceError | None:
        """Why the commit of one partition is refused: T042, or T010 T011 T082; or None."""
        size = len(one.metadata.encode())
        if size > METADATA_BYTES_MAX:
            return texts_group.metadata_too_large(size, limit=METADATA_BYTES_MAX)
        topic = topics.names.get(one.topic_id)
        if topic is None:
            return texts.topic_id_not_found(one.topic_id, broker=self._broker_id)
        if not topics.exists(one.topic_id, one.partition):
            count = topics.by_name[topic].partitions
            return texts.partition_not_found(topic, one.partition, partitions=count)
        if member_id == NO_MEMBER:
            return None
        if member_id not in self._members:
            return self.member(member_id)
        holding = self._ownership.holdings.get((one.topic_id, one.partition))
        if holding is None:
            reason = "nobody has it at present"
        elif holding.owner != member_id:
            reason = f"member '{holding.owner}' has it since generation {holding.since}"
        elif holding.since != one.assignment_epoch:
            reason = f"it came anew in generation {holding.since}, after {one.assignment_epoch}"
        else:
            return None
        return texts_group.commit_fenced(
            self._group, member_id, topic=topic, partition=one.partition, reason=reason
        )
