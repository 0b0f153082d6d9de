"""Gathers what explanations say of consumer groups."""

import math

import trio

from tailrace.broker.catalog import Topic
from tailrace.broker.explain import MemberFacts, Reading, Standing
from tailrace.broker.explain_group import GroupFacts, MissingTopic, Moving
from tailrace.broker.group import Group
from tailrace.broker.group_members import Member
from tailrace.broker.lag import worst
from tailrace.broker.node import Node
from tailrace.broker.watcher import Progress
from tailrace.protocol.units import duration_setting

MISSING_MAX = 10  # subscribed topics that are looked for: similar names cost a search each


async def readings(node: Node, topic: Topic, name: str) -> dict[int, Reading]:
    """A group's part in an explanation of a topic, by partition. T043, T036."""
    group = node.groups.get(name)
    standings = {
        one.partition: _standing(node, group, one)
        for one in await node.lag.progress(group)
        if one.topic_id == topic.topic_id
    }
    return {number: Reading(name, standings.get(number)) for number in range(len(topic.partitions))}


async def group_facts(node: Node, name: str) -> GroupFacts:
    """All of a group. T043, T036."""
    group = node.groups.get(name)
    progress = await node.lag.progress(group)
    summary = (await node.lag.describe_group(group)).summary
    now = trio.current_time()
    drain_ms = summary.drain_ms
    return GroupFacts(
        name=name,
        state=group.state,
        generation=group.generation,
        coordinator=node.broker_id,
        verdict=worst(one.verdict for one in progress),
        lag_records=sum(one.lag_records for one in progress),
        lag_s=None if summary.lag_ms is None else summary.lag_ms / 1000,
        drain_s=None if drain_ms is None else drain_ms / 1000,
        members=tuple(
            _member(group, member, now)
            for member in sorted(group.members, key=lambda one: one.member_id)
        ),
        standings=tuple(_standing(node, group, one) for one in progress),
        moving=_moving(group, now),
        gathering=group.balance.gathering,
        missing=_missing(node, group),
    )


def _standing(node: Node, group: Group, one: Progress) -> Standing:
    partition = node.shelf.get(one.topic_id, one.partition)
    committed, now_ms = one.committed, node.world.clock.wall_ms()
    damaged, retention = False, ""
    if partition is not None:
        offset = partition.log.start if committed is None else committed.offset
        holes = partition.log.quarantined
        damaged = any(hole.first_offset <= offset < hole.next_offset for hole in holes)
        ms = partition.config.retention_ms
        retention = duration_setting(math.inf if ms is None else ms / 1000)
    owner = group.owner(one.topic_id, one.partition)
    member = None if owner is None else group.members.get(owner)
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
        owner=None if member is None else _member(group, member, trio.current_time()),
        damaged=damaged,
        retention=retention,
    )


def _member(group: Group, member: Member, now: float) -> MemberFacts:
    return MemberFacts(
        client_id=member.who.client_id,
        host=member.who.host,
        heard_s=max(0.0, now - member.heard_at),
        partitions=len(group.ownership.assigned(member.member_id)),
    )


def _moving(group: Group, now: float) -> tuple[Moving, ...]:
    """What is being withdrawn from its owner."""
    names = group.balance.topics.names
    return tuple(
        Moving(
            names[topic_id],
            number,
            _member(group, group.members[holding.owner], now),
            max(0.0, holding.deadline - now),
        )
        for (topic_id, number), holding in sorted(group.ownership.holdings.items())
        if holding.withdrawn
    )


def _missing(node: Node, group: Group) -> tuple[MissingTopic, ...]:
    catalog = node.topics.catalog
    names = sorted(name for name in group.members.topics() if catalog.find(name) is None)
    return tuple(MissingTopic(name, tuple(catalog.similar(name))) for name in names[:MISSING_MAX])
