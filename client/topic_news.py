"""What a broker says of a topic, held against what was known before (pure).

Brokers learn of a new leader one after the other, and the one that is asked may be the last. A
leader of an older epoch than the one that is known is no news.
"""

from dataclasses import replace

from tailrace.protocol.messages import PartitionMetadata, TopicMetadata


class LeaderEpochs:
    """The newest leaders heard of."""

    def __init__(self) -> None:
        self._known: dict[str, TopicMetadata] = {}  # by name: a name made again is another topic

    def newest(self, told: TopicMetadata) -> TopicMetadata:
        """``told``, with the partitions of which something newer was heard before."""
        before = self.known(told)
        if before is not None:
            told = merged(before, told)
        self._known[told.name] = told
        return told

    def known(self, topic: TopicMetadata) -> TopicMetadata | None:
        """What was heard of the same topic, if anything was."""
        before = self._known.get(topic.name)
        return before if before is not None and before.topic_id == topic.topic_id else None

    def forget(self, topic: str) -> None:
        """There is no such topic."""
        self._known.pop(topic, None)


def came_to_lead(before: TopicMetadata | None, now: TopicMetadata) -> set[str]:
    """Who leads a partition in a newer epoch than was known: it took that up since then."""
    epochs = {one.partition: one.leader_epoch for one in before.partitions} if before else {}
    return {
        one.leader
        for one in now.partitions
        if one.leader is not None and one.leader_epoch > epochs.get(one.partition, -1) >= 0
    }


def merged(before: TopicMetadata, told: TopicMetadata) -> TopicMetadata:
    """The same topic, of each partition what is newer. An epoch below 0 is not known: it counts."""
    known = {one.partition: one for one in before.partitions}

    def newer(one: PartitionMetadata) -> PartitionMetadata:
        old = known.get(one.partition)
        if old is None or not 0 <= one.leader_epoch < old.leader_epoch:
            return one
        return old

    partitions = tuple(map(newer, told.partitions))
    return told if partitions == told.partitions else replace(told, partitions=partitions)
