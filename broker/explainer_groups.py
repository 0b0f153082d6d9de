"""Gathers what explanations say of consumer groups."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

import trio

from tailrace.broker.asking import ask_broker
from tailrace.broker.catalog import Topic
from tailrace.broker.cluster_status import leadership
from tailrace.broker.config import TopicConfig
from tailrace.broker.coordinator import OFFSETS
from tailrace.broker.explain import MemberFacts, Reading, Standing
from tailrace.broker.explain_group import GroupFacts, MissingTopic, Moving
from tailrace.broker.group import Group
from tailrace.broker.lag import Verdict, worst
from tailrace.broker.node import Node
from tailrace.broker.watcher import PARTITIONS_AT_ONCE, Progress
from tailrace.protocol import texts_explain, texts_group
from tailrace.protocol.errors import NotLeader
from tailrace.protocol.messages import (
    DescribeGroupRequest,
    DescribeGroupResponse,
    MemberDescription,
    PartitionProgress,
)
from tailrace.protocol.texts import partition_name

MISSING_MAX = 10  # subscribed topics that are looked for: similar names cost a search each


async def readings(node: Node, topic: Topic, name: str) -> dict[int, Reading]:
    """A group's part in an explanation of a topic, by partition. T043, T036.

    Another broker may coordinate the group: it is asked.
    """
    try:
        group = node.groups.get(name)
    except NotLeader:
        return await _readings_elsewhere(node, topic, name)
    progress = await node.lag.progress(group)
    mine = [one for one in progress if one.topic_id == topic.topic_id]
    standings = {one.partition: one for one in await _standings(node, group, mine)}
    return {number: Reading(name, standings.get(number)) for number in range(len(topic.partitions))}


async def _readings_elsewhere(node: Node, topic: Topic, name: str) -> dict[int, Reading]:
    number = await node.groups.find(name)
    offsets, view = node.topics.find(OFFSETS), node.views.view
    coordinator = leadership(view, (offsets.topic_id, number)).leader
    found = None
    if coordinator is not None and coordinator != node.broker_id:
        found = await ask_broker(
            *(node.peers, view, node.config.cluster.peer_listener, coordinator),
            *(DescribeGroupRequest(name), DescribeGroupResponse),
        )
    if found is None:
        where = partition_name(OFFSETS, number)
        raise texts_group.coordinator_missing(name, partition=where)
    now_ms = node.world.clock.wall_ms()
    members = {one.member_id: _member(one, now_ms) for one in found.members}
    standings = {
        one.partition: _told(node, topic, one, members.get(one.member_id or ""), now_ms)
        for one in found.partitions
        if one.topic == topic.name
    }
    return {number: Reading(name, standings.get(number)) for number in range(len(topic.partitions))}


def _member(one: MemberDescription, now_ms: int) -> MemberFacts:
    heard_s = max(0.0, (now_ms - one.last_heartbeat) / 1000)
    return MemberFacts(one.client_id, one.host, heard_s, len(one.assigned))


def _told(
    node: Node, topic: Topic, one: PartitionProgress, owner: MemberFacts | None, now_ms: int
) -> Standing:
    """A group's standing as its coordinator told it."""
    since = one.committed_at
    return Standing(
        topic=one.topic,
        partition=one.partition,
        committed=one.committed,
        committed_s=None if since is None else max(0.0, (now_ms - since) / 1000),
        log_start=one.log_start,
        log_end=one.log_end,
        lag_records=one.lag_records,
        rate=one.rate_milli / 1000,
        write_rate=0.0,
        verdict=cast(Verdict, one.verdict),
        margin_s=None if one.margin_ms is None else one.margin_ms / 1000,
        owner=owner,
        damaged=False,
        retention=retention_of(node.topics.config_of(topic)),
    )


async def group_facts(node: Node, name: str) -> GroupFacts:
    """All of a group. T043, T036."""
    group = node.groups.get(name)
    progress = await node.lag.progress(group)
    standings = await _standings(node, group, progress)
    summary = node.lag.summary(group, progress)
    members = _members(group)
    drain_ms = summary.drain_ms
    return GroupFacts(
        name=name,
        state=group.state,
        generation=group.generation,
        coordinator=node.broker_id,
        verdict=worst(one.verdict for one in progress),
        lag_records=summary.lag_records,
        lag_s=None if summary.lag_ms is None else summary.lag_ms / 1000,
        drain_s=None if drain_ms is None else drain_ms / 1000,
        members=tuple(one for _, one in sorted(members.items())),
        standings=tuple(standings),
        moving=_moving(group, members),
        gathering=group.balance.gathering,
        missing=_missing(node, group),
    )


async def _standings(node: Node, group: Group, progress: Sequence[Progress]) -> list[Standing]:
    """A few at a time."""
    members, found = _members(group), list[Standing]()
    for count, one in enumerate(progress, 1):
        owner = group.owner(one.topic_id, one.partition)
        found.append(_standing(node, one, None if owner is None else members.get(owner)))
        if count % PARTITIONS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return found


def _standing(node: Node, one: Progress, owner: MemberFacts | None) -> Standing:
    partition = node.shelf.get(one.topic_id, one.partition)
    committed, now_ms = one.committed, node.world.clock.wall_ms()
    damaged, retention = False, None
    if partition is not None:
        offset = partition.log.start if committed is None else committed.offset
        holes = partition.log.quarantined
        damaged = any(hole.first_offset <= offset < hole.next_offset for hole in holes)
        retention = retention_of(partition.config)
    return Standing(
        topic=one.topic,
        partition=one.partition,
        committed=None if committed is None else committed.offset,
        committed_s=None
        if committed is None
        else max(0.0, (now_ms - committed.committed_at) / 1000),
        log_start=one.log_start,
        log_end=one.log_end,
        lag_records=one.lag_records,
        rate=max(0.0, one.rate),
        write_rate=max(0.0, one.write_rate),
        verdict=one.verdict,
        margin_s=one.margin_s,
        owner=owner,
        damaged=damaged,
        retention=retention,
    )


def retention_of(config: TopicConfig) -> str | None:
    """What it keeps, as it is set; None: everything."""
    if not config.deletes:
        return None
    ms = config.retention_ms
    return texts_explain.kept(math.inf if ms is None else ms / 1000, config.retention_size_bytes)


def _members(group: Group) -> dict[str, MemberFacts]:
    """By id. What each has is counted once for all."""
    now, holdings = trio.current_time(), group.ownership.holdings.values()
    partitions = Counter(one.owner for one in holdings if not one.withdrawn)
    return {
        member.member_id: MemberFacts(
            client_id=member.who.client_id,
            host=member.who.host,
            heard_s=max(0.0, now - member.heard_at),
            partitions=partitions[member.member_id],
        )
        for member in group.members
    }


def _moving(group: Group, members: Mapping[str, MemberFacts]) -> tuple[Moving, ...]:
    """What is being withdrawn from its owner."""
    now, names = trio.current_time(), group.balance.topics.names
    return tuple(
        Moving(names[topic_id], number, members[holding.owner], max(0.0, holding.deadline - now))
        for (topic_id, number), holding in sorted(group.ownership.holdings.items())
        if holding.withdrawn and topic_id in names
    )


def _missing(node: Node, group: Group) -> tuple[MissingTopic, ...]:
    catalog = node.topics.catalog
    names = sorted(name for name in group.members.topics() if catalog.find(name) is None)
    return tuple(MissingTopic(name, tuple(catalog.similar(name))) for name in names[:MISSING_MAX])
