"""Metadata and administration: what there is, where it is, and changing it."""

from collections.abc import Collection, Mapping
from functools import partial

import trio

from tailrace.broker import topic_config
from tailrace.broker.call import Call, Later
from tailrace.broker.catalog import Topic
from tailrace.broker.health import few
from tailrace.broker.lag_report import readers
from tailrace.broker.limits import TOPICS_PER_REQUEST_MAX, check_count, check_each_once
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.protocol import texts
from tailrace.protocol.errors import TailraceError, to_wire
from tailrace.protocol.messages import (
    AlterTopicRequest,
    BrokerAddress,
    BrokerDescription,
    CompactionDescription,
    CreateTopicRequest,
    DeleteTopicRequest,
    DeleteTopicResponse,
    DescribeClusterRequest,
    DescribeClusterResponse,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    MetadataRequest,
    MetadataResponse,
    PartitionDescription,
    PartitionMetadata,
    Response,
    TopicDescription,
    TopicMetadata,
    TopicResponse,
)
from tailrace.protocol.units import counted

DAMAGE_TOLD_MAX = 100  # damaged ranges among the problems of a cluster
SIMILAR_FOR_MAX = 10  # missing topics of one request that get similar names: each costs a search


def check_names(names: Collection[str]) -> None:
    """At most so many topics in one request, each once: an answer may cost a broker's catalog."""
    check_count(len(names), TOPICS_PER_REQUEST_MAX, of="topics")
    check_each_once(names, kind="topic")


# ── where topics are ─────────────────────────────────────────────────────────────────────────


def metadata(node: Node, call: Call, request: MetadataRequest) -> Response | Later:
    """Topics by name, or all. What a producer misses is created, if that is allowed (D18)."""
    if request.topics is None:
        names = tuple(node.topics.catalog.names())
        return _metadata(node, call, request, names, {})
    check_names(request.topics)
    missing = [name for name in request.topics if node.topics.catalog.find(name) is None]
    if not missing or not (request.auto_create and node.config.broker.auto_create):
        return _metadata(node, call, request, request.topics, {})
    return partial(_create_missing, node, call, request, request.topics)


async def _create_missing(
    node: Node, call: Call, request: MetadataRequest, names: tuple[str, ...]
) -> Response:
    outcomes: dict[str, bool | TailraceError] = {}
    for name in names:
        if name not in outcomes and node.topics.catalog.find(name) is None:
            try:
                _, outcomes[name] = await node.topics.create(name, exist_ok=True)
            except TailraceError as error:
                outcomes[name] = error
    return _metadata(node, call, request, names, outcomes)


def _metadata(
    node: Node,
    call: Call,
    request: MetadataRequest,
    names: tuple[str, ...],
    outcomes: dict[str, bool | TailraceError],
) -> MetadataResponse:
    """``outcomes``: by name, whether it was created just now, or why it could not be."""
    found: list[TopicMetadata] = []
    missing = 0
    for name in names:
        outcome = outcomes.get(name, False)
        topic = node.topics.catalog.find(name)
        if isinstance(outcome, TailraceError):
            found.append(_no_topic(name, outcome))
        elif topic is not None:
            found.append(_topic_metadata(node, topic, created=outcome))
        else:
            missing += 1
            similar = node.topics.catalog.similar(name) if missing <= SIMILAR_FOR_MAX else ()
            error = texts.topic_not_found(
                name, similar=similar, auto_create_off=request.auto_create
            )
            found.append(_no_topic(name, error))
    host, port = call.advertised
    address = BrokerAddress(node.broker_id, host, port, node.config.broker.rack or None)
    return MetadataResponse(node.cluster_id, node.broker_id, (address,), tuple(found))


def _no_topic(name: str, error: TailraceError) -> TopicMetadata:
    return TopicMetadata(name, to_wire(error), b"", False, False, 0, "", ())


def _topic_metadata(node: Node, topic: Topic, *, created: bool) -> TopicMetadata:
    config = node.topics.config_of(topic)
    partitions: list[PartitionMetadata] = []
    for number, record in enumerate(topic.partitions):
        opened = node.shelf.get(topic.topic_id, number)
        leads = opened is not None and opened.serving
        partitions.append(
            PartitionMetadata(
                partition=number,
                leader=node.broker_id if leads else None,
                leader_epoch=opened.leadership.leader_epoch if opened is not None else -1,
                replicas=record.replicas,
                isr=(node.broker_id,) if leads else (),
                key_first=record.key_first,
                key_last=record.key_last,
            )
        )
    return TopicMetadata(
        name=topic.name,
        error=None,
        topic_id=topic.topic_id,
        internal=topic.internal,
        created=created,
        record_bytes_max=config.max_record_bytes,
        durability=config.durability,
        partitions=tuple(partitions),
    )


# ── changing topics ──────────────────────────────────────────────────────────────────────────


def create_topic(node: Node, call: Call, request: CreateTopicRequest) -> Later:
    async def work() -> Response:
        topic, _ = await node.topics.create(
            request.name,
            partitions=request.partitions,
            replicas=request.replicas,
            config={item.key: item.value for item in request.config},
            exist_ok=request.exist_ok,
        )
        return TopicResponse(_describe(node, topic))

    return work


def delete_topic(node: Node, call: Call, request: DeleteTopicRequest) -> Later:
    async def work() -> Response:
        return DeleteTopicResponse(await node.topics.delete(request.name))

    return work


def alter_topic(node: Node, call: Call, request: AlterTopicRequest) -> Later:
    async def work() -> Response:
        changes = {change.key: change.value for change in request.config}
        return TopicResponse(_describe(node, await node.topics.alter(request.name, changes)))

    return work


# ── describing ───────────────────────────────────────────────────────────────────────────────


def describe_topics(node: Node, call: Call, request: DescribeTopicsRequest) -> Response:
    names = request.names
    if names is None:
        names = tuple(node.topics.catalog.names(internal=request.internal))
    else:
        check_names(names)
    topics = [node.topics.find(name) for name in names]
    groups = readers(node.groups.all(), node.topics.catalog)
    return DescribeTopicsResponse(tuple(_describe(node, topic, groups) for topic in topics))


def _describe(
    node: Node, topic: Topic, groups: Mapping[bytes, tuple[str, ...]] | None = None
) -> TopicDescription:
    """``groups``: by topic id, the names of those that read it."""
    if groups is None:
        groups = readers(node.groups.all(), node.topics.catalog)
    config = node.topics.config_of(topic)
    replicas = max(len(record.replicas) for record in topic.partitions)
    return TopicDescription(
        name=topic.name,
        topic_id=topic.topic_id,
        internal=topic.internal,
        replicas=replicas,
        min_isr=config.min_isr if config.min_isr is not None else replicas // 2 + 1,
        cleanup=config.cleanup,
        durability=config.durability,
        config=topic_config.entries(topic.name, node.config, topic.config),
        partitions=tuple(
            _describe_partition(node, topic, number) for number in range(len(topic.partitions))
        ),
        groups=groups.get(topic.topic_id, ()),
    )


def _describe_partition(node: Node, topic: Topic, number: int) -> PartitionDescription:
    record = topic.partitions[number]
    opened: Partition | None = node.shelf.get(topic.topic_id, number)
    leads = opened is not None and opened.serving
    return PartitionDescription(
        partition=number,
        leader=node.broker_id if leads else None,
        leader_epoch=opened.leadership.leader_epoch if opened is not None else -1,
        replicas=record.replicas,
        isr=(node.broker_id,) if leads else (),
        key_first=record.key_first,
        key_last=record.key_last,
        log_start=opened.log.start if opened is not None else -1,
        log_end=opened.log.end if opened is not None else -1,
        high_watermark=opened.high_watermark if opened is not None else -1,
        last_stable_offset=opened.high_watermark if opened is not None else -1,
        size_bytes=opened.log.size_bytes if opened is not None else 0,
        segments=opened.log.segment_count if opened is not None else 0,
        last_append_time=opened.log.last_append_time if opened is not None else None,
        status="ok" if leads else "offline",
        compaction=_describe_compaction(node, opened) if opened is not None else None,
    )


def _describe_compaction(node: Node, partition: Partition) -> CompactionDescription | None:
    status = node.cleaner.status(partition)
    if status is None:
        return None
    return CompactionDescription(
        state=status.state,
        clean_offset=status.clean_offset,
        dirty_bytes=status.dirty_bytes,
        dirty_ppm=round(status.dirty_ratio * 1_000_000),
        progress_ppm=round(status.progress * 1_000_000),
        reason=status.reason,
        last_run_at=status.last_run_at,
        last_error=status.last_error,
    )


def describe_cluster(node: Node, call: Call, request: DescribeClusterRequest) -> Response:
    offline = sum(
        1
        for topic in map(node.topics.catalog.find, node.topics.catalog.names(internal=True))
        if topic is not None
        for number in range(len(topic.partitions))
        if (opened := node.shelf.get(topic.topic_id, number)) is None or not opened.serving
    )
    version = node.software.rpartition("/")[2]
    partitions = node.topics.catalog.partition_count()
    host, port = call.advertised
    free_bytes, total_bytes = node.world.disk.usage(node.config.storage.data_dir)
    broker = BrokerDescription(
        broker_id=node.broker_id,
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        http=node.http,
        rack=node.config.broker.rack or None,
        version=version,
        broker_epoch=node.broker_epoch,
        state=node.state(),
        leaders=partitions - offline,
        replicas=partitions,
        disk_free_bytes=free_bytes,
        disk_total_bytes=total_bytes,
        uptime_ms=int((trio.current_time() - node.started_at) * 1000),
        last_seen=node.world.clock.wall_ms(),
    )
    problems: list[str] = []
    if offline:
        problems.append(
            f"{counted(offline, 'partition')} {'is' if offline == 1 else 'are'} offline"
        )
    if node.health.metadata_error:
        problems.append(node.health.metadata_error)
    if node.shelf.space.read_only:
        has, limit = node.shelf.space.shortage()
        problems.append(f"broker {node.broker_id} is read-only: {has}, {limit}")
    problems += few(node.shelf.damage(), DAMAGE_TOLD_MAX)
    problems += node.erasures.problems
    return DescribeClusterResponse(
        cluster_id=node.cluster_id,
        version=version,
        controller=node.broker_id,
        metadata="embedded",
        metadata_ok=not node.health.metadata_error,
        brokers=(broker,),
        topics=len(node.topics.catalog.names(internal=True)),
        partitions=partitions,
        under_replicated=0,
        below_min_isr=0,
        offline=offline,
        problems=tuple(problems),
    )
