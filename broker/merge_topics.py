"""Descriptions of topics, put together from a view and from what leaders answered (pure).

A leader knows the offsets and the size of its partitions, a coordinator the groups it has, the view
everything else. Of a partition whose leader did not answer nothing of that is known: it is shown as
offline, whatever the view says of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tailrace.protocol.messages import (
    DescribeTopicsResponse,
    PartitionDescription,
    TopicDescription,
)


def merged(
    described: Iterable[TopicDescription], answers: Mapping[str, DescribeTopicsResponse], me: str
) -> tuple[TopicDescription, ...]:
    """``described``: what this broker, ``me``, knows; ``answers``: by broker."""
    by_topic: dict[bytes, dict[str, TopicDescription]] = {}
    for broker, answer in answers.items():
        for topic in answer.topics:
            by_topic.setdefault(topic.topic_id, {})[broker] = topic
    return tuple(_merged(topic, by_topic.get(topic.topic_id, {}), me) for topic in described)


def _merged(
    topic: TopicDescription, answers: Mapping[str, TopicDescription], me: str
) -> TopicDescription:
    groups = {*topic.groups, *(group for one in answers.values() for group in one.groups)}
    partitions = tuple(
        one if one.leader in (None, me) else _of_leader(one, answers.get(one.leader or ""))
        for one in topic.partitions
    )
    return replace(topic, partitions=partitions, groups=tuple(sorted(groups)))


def _of_leader(one: PartitionDescription, topic: TopicDescription | None) -> PartitionDescription:
    """A partition as its leader, who answered this or nothing, describes it."""
    if topic is None or one.partition >= len(topic.partitions):
        return replace(one, status="offline")
    theirs = topic.partitions[one.partition]
    if theirs.leader != one.leader:
        return replace(one, status="offline")  # it moved just now
    newer = theirs if theirs.leader_epoch >= one.leader_epoch else one
    return replace(
        theirs,
        leader_epoch=newer.leader_epoch,
        replicas=one.replicas,
        isr=newer.isr,
        status=newer.status,
    )
