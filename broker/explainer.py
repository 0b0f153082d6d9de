"""Gathers what an explanation rests on, and has it judged (``explain_*.py``).

Facts in memory are read as they are now. What needs the disk (the batch of a record, how far a log
was compacted) is read in a thread, at most a few batches; nothing is changed, but that a segment
that was taken on trust is verified, as for a reader.
"""

import math
import uuid
from collections.abc import Sequence
from typing import cast

import trio

from tailrace.broker import election
from tailrace.broker.catalog import Leadership, Topic
from tailrace.broker.cluster_status import leadership, status_of
from tailrace.broker.describing import alive, describe, min_isr_of, newest
from tailrace.broker.erasure import Erasure, fingerprint_of
from tailrace.broker.explain import (
    Damage,
    Lacking,
    MoveCause,
    Reading,
    ReplicaFacts,
    Uncommitted,
)
from tailrace.broker.explain_group import explain_group
from tailrace.broker.explain_partition import (
    CompactionFacts,
    DiskFacts,
    PartitionFacts,
    Shrinking,
    explain_partition,
    explain_topic,
)
from tailrace.broker.explain_record import ErasureFacts, RecordFacts, RecordFound, explain_record
from tailrace.broker.explainer_groups import group_facts, readings, retention_of
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.protocol import texts_explain_cluster
from tailrace.protocol.batch import BatchError, decode_columns, parse_header
from tailrace.protocol.errors import NotLeader, PartitionOffline, TailraceError
from tailrace.protocol.messages import PartitionDescription
from tailrace.protocol.seams import FileRange
from tailrace.protocol.shapes import Explanation, PartitionStatus
from tailrace.protocol.texts import error_summary, partition_not_found, partition_offline
from tailrace.protocol.units import duration_setting
from tailrace.storage import cleaned as cleaned_file
from tailrace.storage.rewrite import offsets_of

PARTITIONS_AT_ONCE = 32  # looked at before others get their turn


async def record(node: Node, name: str, number: int, offset: int, group: str | None) -> Explanation:
    """One record. T010, T011, T032, T043."""
    topic = await _topic(node, name, number)
    try:
        partition = _serving(node, topic, number)
    except PartitionOffline as error:
        why = _why_offline(node, topic, number, error)
        reading = await _reading(node, topic, number, group)
        return explain_record(RecordFacts(name, number, offset, offline=why, reading=reading))
    log, config = partition.log, partition.config
    cleaned = await node.world.offload.run(_compacted_below, node, partition)
    looked = _Looked()
    if log.start <= offset < partition.high_watermark:
        await _look(node, partition, offset, looked)
    reading = await _reading(node, topic, number, group)  # of a log whose damage is known by now
    return explain_record(
        RecordFacts(
            topic=name,
            partition=number,
            offset=offset,
            log_start=log.start,
            high_watermark=partition.high_watermark,
            log_end=log.end,
            unreadable=looked.unreadable,
            undecodable=looked.undecodable,
            damage=looked.damage,
            found=looked.found,
            moved=_moved(partition, offset),
            retention=retention_of(config),
            may_drop=config.deletes and config.on_full == "drop_oldest",
            cleanup=config.cleanup,
            compacted_below=cleaned,
            ever_compacted=config.compacts or cleaned > 0,
            erasures=tuple(
                _erasure(one, number, offset)
                for one in node.erasures.of(topic.topic_id)
                if number in one.shares and offset < one.shares[number].end
            ),
            uncommitted=_uncommitted(node, partition),
            reading=reading,
        )
    )


async def partition(node: Node, name: str, number: int, group: str | None) -> Explanation:
    """One partition. T010, T011, T032, T043."""
    topic = await _topic(node, name, number)
    reading = await _reading(node, topic, number, group)
    return explain_partition(_partition(node, topic, number, reading))


async def topic(node: Node, name: str, group: str | None) -> Explanation:
    """One topic. T010, T043."""
    found = await newest(node, name)
    reads = await readings(node, found, group) if group is not None else {}
    (described,) = await describe(node, [found])
    partitions: list[PartitionFacts] = []
    for number, one in enumerate(described.partitions):
        try:
            partitions.append(_partition(node, found, number, reads.get(number)))
        except NotLeader:
            partitions.append(_elsewhere(node, found, one, reads.get(number)))
        if len(partitions) % PARTITIONS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return explain_topic(name, partitions, described.groups, group)


async def group(node: Node, name: str) -> Explanation:
    """One group. T043, T036."""
    return explain_group(await group_facts(node, name))


async def _topic(node: Node, name: str, number: int) -> Topic:
    """T010, T011."""
    found = await newest(node, name)
    if not 0 <= number < len(found.partitions):
        raise partition_not_found(name, number, partitions=len(found.partitions))
    return found


async def _reading(node: Node, topic: Topic, number: int, group: str | None) -> Reading | None:
    """T043."""
    return None if group is None else (await readings(node, topic, group)).get(number)


# ── a record ─────────────────────────────────────────────────────────────────────────────────


class _Looked:
    """What was found where the record should be."""

    def __init__(self) -> None:
        self.found: RecordFound | None = None
        self.damage: Damage | None = None
        self.undecodable = ""
        self.unreadable = ""


async def _look(node: Node, partition: Partition, offset: int, looked: _Looked) -> None:
    """Read the batch that holds an offset, as a reader would, and look into it."""
    try:
        await partition.verify(offset, node.world.offload)
        # One at a time: a batch may be 16 MiB, and as much again when it is decoded.
        async with node.explaining:
            slice_ = partition.read(offset, 1)
            looked.found = await node.world.offload.run(_open, slice_.ranges, offset)
    except TailraceError as error:  # damaged; or the start moved meanwhile, or it went offline
        looked.damage = _damage_at(partition, offset)
        looked.unreadable = error_summary(error)
    except BatchError as error:
        looked.undecodable = error.reason
    except OSError as error:
        looked.unreadable = str(error)


def _open(ranges: Sequence[FileRange], offset: int) -> RecordFound | None:
    """The record among those of its batch. In a thread. Raises ``BatchError``, ``OSError``."""
    data = b"".join(bytes(one.view()) for one in ranges)
    header = parse_header(data)
    if not header.record_count:
        return None
    if offset not in offsets_of(header, decode_columns(data, header)):
        return None
    last = header.next_offset - 1
    return RecordFound(header.append_time, header.size_bytes, header.base_offset, last)


def _damage_at(partition: Partition, offset: int) -> Damage | None:
    holes = (one for one in _damage(partition) if one.first_offset <= offset < one.next_offset)
    return next(holes, None)


def _damage(partition: Partition) -> list[Damage]:
    return [
        Damage(one.file, one.position, one.first_offset, one.next_offset, one.reason)
        for one in partition.log.quarantined
        if one.next_offset > partition.log.start
    ]


def _moved(partition: Partition, offset: int) -> MoveCause | None:
    """What moved the start past an offset: known since the log was opened, or told by a start that
    stands inside of a segment, where only ``delete-records`` puts it."""
    log = partition.log
    if offset >= log.start:
        return None
    for move in log.start_moves:
        if move.before <= offset < move.after:
            if move.exact:
                return "deleted"
            return "expired_or_dropped" if partition.config.on_full == "drop_oldest" else "expired"
    return "deleted" if offset >= log.segments()[0].base_offset else None


def _erasure(one: Erasure, number: int, offset: int) -> ErasureFacts:
    share = one.shares[number]
    alone = fingerprint_of((), [(number, offset)])
    return ErasureFacts(
        receipt=str(uuid.UUID(bytes=one.erasure_id)),
        records=share.records,
        pending=one.completed_at is None,
        names=offset in share.offsets,
        fits=one.records == 1 and one.fingerprint == alone,
    )


def _compacted_below(node: Node, partition: Partition) -> int:
    """In a thread."""
    try:
        log = partition.log
        return cleaned_file.read(node.world.disk, log.path, log.end, log.epochs).below
    except OSError:
        return 0


# ── a partition ──────────────────────────────────────────────────────────────────────────────


def _serving(node: Node, topic: Topic, number: int) -> Partition:
    """The partition, led here; T032 if another broker that is there leads it, else T033."""
    try:
        return node.shelf.serving(topic.topic_id, number)
    except NotLeader as error:
        leader = leadership(node.views.view, (topic.topic_id, number)).leader
        if leader is not None and leader != node.broker_id and alive(node, leader):
            raise
        raise partition_offline(topic.name, number, reason=str(error)) from error
    except PartitionOffline:
        raise
    except TailraceError as error:  # no room to open it, say
        raise partition_offline(topic.name, number, reason=error_summary(error)) from error


def _why_offline(node: Node, topic: Topic, number: int, error: PartitionOffline) -> str:
    known = leadership(node.views.view, (topic.topic_id, number))
    if known.leader is None:
        return texts_explain_cluster.no_leader(
            election.waited_for(known), doubted=not election.candidates(known)
        )
    if not alive(node, known.leader):
        return texts_explain_cluster.leader_gone(known.leader)
    if error.__cause__ is not None and not isinstance(error.__cause__, NotLeader | OSError):
        return error_summary(cast(TailraceError, error.__cause__))
    return error_summary(error)


def _partition(node: Node, topic: Topic, number: int, reading: Reading | None) -> PartitionFacts:
    """T032."""
    config = node.topics.config_of(topic)
    disk = _disk(node, topic, may_drop=config.on_full == "drop_oldest")
    try:
        partition = _serving(node, topic, number)
    except PartitionOffline as error:
        return PartitionFacts(
            *(topic.name, number, disk, config.cleanup, config.durability),
            offline=_why_offline(node, topic, number, error),
            reading=reading,
        )
    pending = [
        one
        for one in node.erasures.pending(topic.topic_id)
        if one.target(number, node.broker_id) is not None
    ]
    told = f"erasing in {topic.name}[{number}] waits: "
    problems = [one.removeprefix(told) for one in node.erasures.problems if one.startswith(told)]
    return PartitionFacts(
        *(topic.name, number, disk, config.cleanup, config.durability),
        leader=node.broker_id,
        leader_epoch=partition.leadership.leader_epoch,
        log_start=partition.log.start,
        high_watermark=partition.high_watermark,
        log_end=partition.log.end,
        last_append_time=partition.log.last_append_time,
        uncommitted=_uncommitted(node, partition),
        damage=tuple(_damage(partition)),
        shrinking=_shrinking(node, partition),
        compaction=_compaction(node, partition),
        erasures=len(pending),
        erasure_problem="; ".join(problems),
        reading=reading,
        standing=_standing(node, topic, number, partition.leadership),
        replicas=_replicas(node, topic, partition),
    )


def _standing(node: Node, topic: Topic, number: int, known: Leadership) -> PartitionStatus:
    wanted = topic.partitions[number].replicas
    return status_of(known, wanted, min_isr_of(node, topic), lambda one: alive(node, one))


def _replicas(node: Node, topic: Topic, partition: Partition) -> ReplicaFacts | None:
    """Who holds it, as its leader knows it."""
    known = partition.leadership
    wanted = topic.partitions[partition.number].replicas
    no_lease = None
    if not node.session.valid():
        no_lease = node.health.metadata_error
    if len(wanted) == 1 and len(known.replicas) <= 1 and no_lease is None:
        return None
    end, followers = partition.log.end, partition.replica.followers

    def lacking(broker: str) -> Lacking:
        follower = followers.get(broker)
        told = follower is not None and follower.end >= 0
        behind = max(0, end - follower.end) if follower is not None and told else None
        return Lacking(broker, alive(node, broker), behind)

    waits = partition.high_watermark
    slow = [one for one in known.isr if one in followers and followers[one].counted <= waits]
    return ReplicaFacts(
        wanted=wanted,
        in_sync=tuple(one for one in known.isr if alive(node, one)),
        min_isr=partition.replica.min_isr,
        missing=tuple(lacking(one) for one in wanted if one not in known.isr),
        slow=tuple(map(lacking, slow)) if waits < end else (),
        no_lease=no_lease,
    )


def _elsewhere(
    node: Node, topic: Topic, one: PartitionDescription, reading: Reading | None
) -> PartitionFacts:
    """A partition that another broker leads, as that one described it, or did not."""
    config = node.topics.config_of(topic)
    known = leadership(node.views.view, (topic.topic_id, one.partition))
    wanted = topic.partitions[one.partition].replicas
    in_sync = tuple(broker for broker in known.isr if alive(node, broker))
    offline = "" if one.log_end >= 0 else texts_explain_cluster.leader_silent(known.leader or "?")
    return PartitionFacts(
        *(topic.name, one.partition, _no_disk(known.leader or "?"), config.cleanup),
        config.durability,
        offline=offline,
        leader=one.leader,
        leader_epoch=one.leader_epoch,
        log_start=one.log_start,
        high_watermark=one.high_watermark,
        log_end=one.high_watermark,  # what waits for a moment is its leader's to explain
        last_append_time=one.last_append_time,
        reading=reading,
        standing=_standing(node, topic, one.partition, known),
        replicas=ReplicaFacts(
            wanted,
            in_sync,
            min_isr_of(node, topic),
            tuple(
                Lacking(broker, alive(node, broker), None)
                for broker in wanted
                if broker not in in_sync
            ),
        ),
        elsewhere_bytes=one.size_bytes,
    )


def _no_disk(broker: str) -> DiskFacts:
    """Of another broker nothing is known here."""
    return DiskFacts(broker, False, "", "", "reject")


def _uncommitted(node: Node, partition: Partition) -> Uncommitted | None:
    if partition.high_watermark >= partition.log.end:
        return None
    waits = partition.config.durability == "fsync" and partition.log.flushed < partition.log.end
    sync_s = node.flusher.syncing_s() if waits else None  # of others, too: its own comes then
    return Uncommitted(partition.waiting_batches, sync_s)


def _disk(node: Node, topic: Topic, *, may_drop: bool) -> DiskFacts:
    space, memory = node.shelf.space, node.memory
    full = memory.total_bytes is not None and memory.used_bytes >= memory.total_bytes
    return DiskFacts(
        node.broker_id,
        not topic.internal and space.refuses(may_drop=may_drop),
        *space.shortage(),
        on_full="drop_oldest" if may_drop else "reject",
        memory_full_bytes=memory.total_bytes if full else None,
    )


def _shrinking(node: Node, partition: Partition) -> Shrinking:
    config, segments = partition.config, partition.log.segments()
    active, closed = segments[-1], [one for one in segments if one.sealed]
    open_s = 0.0
    if active.first_append_time is not None:
        open_s = node.time.age_ms(active.first_append_time) / 1000
    stamp = closed[0].last_append_time if closed else None
    ms = config.retention_ms
    wall_ms = node.world.clock.wall_ms()
    return Shrinking(
        size_bytes=partition.log.size_bytes,
        segments=len(segments),
        open_bytes=active.size_bytes,
        open_limit_bytes=node.shelf.log_config(config).segment_bytes,
        open_left_s=max(0.0, config.segment_age_ms / 1000 - open_s),
        retention=duration_setting(math.inf if ms is None else ms / 1000),
        retention_s=math.inf if ms is None else ms / 1000,
        retention_bytes=config.retention_size_bytes,
        oldest_s=None if stamp is None else max(0.0, node.time.age_ms(stamp) / 1000),
        oldest_wall_s=None if stamp is None else max(0.0, (wall_ms - stamp) / 1000),
        busy=partition.maintenance.locked(),
    )


def _compaction(node: Node, partition: Partition) -> CompactionFacts | None:
    status = node.cleaner.status(partition)
    if status is None:
        return None
    return CompactionFacts(
        status.state,
        status.clean_offset,
        status.dirty_bytes,
        status.dirty_ratio,
        status.reason,
        status.last_error,
    )
