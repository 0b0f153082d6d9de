"""Describing topics and the cluster: what this broker knows, and what others are asked for.

Who leads what, and who is in sync, the view of the metadata store says. Offsets and sizes only the
leader of a partition knows, groups only their coordinator, disk and uptime only the broker itself:
they are asked at once, and whoever does not answer in time is shown as such. A broker that is asked
by another one (``local``) answers of itself alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import trio

from tailrace.broker import election, topic_config
from tailrace.broker.asking import ask_brokers
from tailrace.broker.catalog import Leadership, Topic
from tailrace.broker.cluster_status import (
    ClusterCounts,
    count,
    leaders_of,
    leadership,
    problems,
    status_of,
)
from tailrace.broker.coordinator import OFFSETS
from tailrace.broker.health import few
from tailrace.broker.lag_report import readers
from tailrace.broker.merge_cluster import call_the_roll
from tailrace.broker.merge_topics import merged
from tailrace.broker.node import Node
from tailrace.broker.partition import Partition
from tailrace.protocol.messages import (
    BrokerDescription,
    CompactionDescription,
    DescribeClusterRequest,
    DescribeClusterResponse,
    DescribeTopicsRequest,
    DescribeTopicsResponse,
    PartitionDescription,
    TopicDescription,
)
from tailrace.protocol.shapes import PartitionStatus, TopicInfo

DAMAGE_TOLD_MAX = 100  # damaged ranges among the problems of a cluster


def min_isr_of(node: Node, topic: Topic) -> int:
    """How many replicas of it must be in sync."""
    config = node.topics.config_of(topic)
    return election.min_isr(config.min_isr, _replicas(topic))


def _replicas(topic: Topic) -> int:
    return max(len(record.replicas) for record in topic.partitions)


def alive(node: Node, broker_id: str) -> bool:
    """Whether a broker is there; this one is."""
    return broker_id == node.broker_id or node.views.view.alive(broker_id)


async def newest(node: Node, name: str) -> Topic:
    """The topic, also one that another broker has made just now. T010; T100 if that cannot be
    known."""
    if node.topics.catalog.find(name) is None and node.clustered:
        await node.latest.read()
    return node.topics.find(name)


# ── topics ───────────────────────────────────────────────────────────────────────────────────


def needs_others(node: Node, topics: Iterable[Topic]) -> bool:
    """Whether some of what is to be told of these topics only other brokers know."""
    return bool(_asked(node, topics).keys() - {node.broker_id})


def _asked(node: Node, topics: Iterable[Topic]) -> dict[str, list[str]]:
    """Whom to ask for which topics: their leaders, and the coordinators of all groups."""
    view, topics = node.views.view, list(topics)
    asked = leaders_of(view, topics)
    offsets = view.catalog.find(OFFSETS)
    for coordinator in leaders_of(view, [offsets] if offsets is not None else []):
        asked[coordinator] = [topic.name for topic in topics]
    return asked


async def describe(node: Node, topics: Sequence[Topic]) -> tuple[TopicDescription, ...]:
    """As the whole cluster knows them; within about a second."""
    requests = {
        broker: DescribeTopicsRequest(tuple(names), True, local=True)
        for broker, names in _asked(node, topics).items()
        if broker != node.broker_id
    }
    answers = await ask_brokers(
        *(node.peers, node.views.view, node.config.cluster.peer_listener),
        requests,
        DescribeTopicsResponse,
    )
    return merged(describe_here(node, topics), answers, node.broker_id)


def describe_here(node: Node, topics: Iterable[Topic]) -> tuple[TopicDescription, ...]:
    """As this broker knows them: of partitions that others lead no offsets."""
    groups = readers(node.groups.all(), node.topics.catalog)
    return tuple(_describe(node, topic, groups) for topic in topics)


def list_here(node: Node, topics: Iterable[Topic]) -> list[TopicInfo]:
    """As a list shows them: what ``describe_here`` says, without what a list leaves out. Its
    settings alone are most of the work of describing a topic."""
    return [_list(node, topic) for topic in topics]


def _list(node: Node, topic: Topic) -> TopicInfo:
    config = node.topics.config_of(topic)
    replicas = _replicas(topic)
    needed = election.min_isr(config.min_isr, replicas)
    size_bytes = records = under_replicated = offline = 0
    for number, record in enumerate(topic.partitions):
        here, known, status = _standing(node, topic, number, needed)
        if here is not None:
            size_bytes += here.log.size_bytes
            records += here.log.end - here.log.start
        under_replicated += len(known.isr) < len(known.replicas or record.replicas)
        offline += status == "offline"
    return TopicInfo(
        name=topic.name,
        topic_id=str(UUID(bytes=topic.topic_id)),
        internal=topic.internal,
        partitions=len(topic.partitions),
        replicas=replicas,
        min_isr=needed,
        cleanup=config.cleanup,
        durability=config.durability,
        size_bytes=size_bytes,
        records=records,
        under_replicated=under_replicated,
        offline=offline,
    )


def _describe(
    node: Node, topic: Topic, groups: Mapping[bytes, tuple[str, ...]]
) -> TopicDescription:
    """``groups``: by topic id, the names of those that read it."""
    config = node.topics.config_of(topic)
    needed = min_isr_of(node, topic)
    return TopicDescription(
        name=topic.name,
        topic_id=topic.topic_id,
        internal=topic.internal,
        replicas=_replicas(topic),
        min_isr=needed,
        cleanup=config.cleanup,
        durability=config.durability,
        config=topic_config.entries(topic.name, node.config, topic.config),
        partitions=tuple(
            _describe_partition(node, topic, number, needed)
            for number in range(len(topic.partitions))
        ),
        groups=groups.get(topic.topic_id, ()),
    )


def _describe_partition(
    node: Node, topic: Topic, number: int, min_isr: int
) -> PartitionDescription:
    record = topic.partitions[number]
    here, known, status = _standing(node, topic, number, min_isr)
    return PartitionDescription(
        partition=number,
        leader=None if status == "offline" else known.leader,
        leader_epoch=known.leader_epoch,
        replicas=known.replicas or record.replicas,
        isr=known.isr,
        key_first=record.key_first,
        key_last=record.key_last,
        log_start=here.log.start if here is not None else -1,
        log_end=here.log.end if here is not None else -1,
        high_watermark=here.high_watermark if here is not None else -1,
        last_stable_offset=here.high_watermark if here is not None else -1,
        size_bytes=here.log.size_bytes if here is not None else 0,
        segments=here.log.segment_count if here is not None else 0,
        last_append_time=here.log.last_append_time if here is not None else None,
        status=status,
        compaction=_describe_compaction(node, here) if here is not None else None,
    )


def _standing(
    node: Node, topic: Topic, number: int, min_isr: int
) -> tuple[Partition | None, Leadership, PartitionStatus]:
    """The partition, if this broker leads it; who leads it and has it; how it is."""
    here = led_here(node, topic, number)
    known = leadership(node.views.view, (topic.topic_id, number))
    if here is not None and here.leadership.leader_epoch >= known.leader_epoch:
        known = here.leadership
    wanted = topic.partitions[number].replicas
    status = status_of(known, wanted, min_isr, lambda one: alive(node, one))
    if known.leader == node.broker_id and here is None:
        status = "offline"  # it could not be opened, or failed since then
    return here, known, status


def led_here(node: Node, topic: Topic, number: int) -> Partition | None:
    """The partition, if this broker leads and serves it."""
    found = node.shelf.get(topic.topic_id, number)
    return found if found is not None and found.serving and found.role == "leader" else None


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


# ── the cluster ──────────────────────────────────────────────────────────────────────────────


async def describe_cluster(node: Node, listener: str) -> DescribeClusterResponse:
    """All of it, within about a second; addresses are those of one listener."""
    view, counts = node.views.view, ClusterCounts()
    peers = [broker for broker in view.brokers if broker != node.broker_id]
    answers = await ask_brokers(
        *(node.peers, view, node.config.cluster.peer_listener),
        dict.fromkeys(peers, DescribeClusterRequest(local=True)),
        DescribeClusterResponse,
    )
    answers[node.broker_id] = describe_broker(node, listener)
    for _ in count(
        view, lambda topic: min_isr_of(node, topic), lambda one: alive(node, one), counts
    ):
        await trio.lowlevel.checkpoint()
    now_ms = node.world.clock.wall_ms()
    roll = call_the_roll(*(view, counts, answers, node.sightings), listener=listener, now_ms=now_ms)
    metadata_error = _metadata_error(node)
    told = [metadata_error] if metadata_error else []
    return DescribeClusterResponse(
        cluster_id=node.cluster_id,
        version=_version(node),
        controller=view.controller,
        metadata=_kind_of_store(node),
        metadata_ok=not metadata_error,
        brokers=roll.brokers,
        topics=counts.topics,
        partitions=counts.partitions,
        under_replicated=counts.under_replicated,
        below_min_isr=counts.below_min_isr,
        offline=counts.offline,
        problems=(*problems(counts, roll.gone), *roll.silence, *told, *roll.problems),
    )


def describe_broker(node: Node, listener: str) -> DescribeClusterResponse:
    """This broker alone, and what is wrong with it."""
    space = node.shelf.space
    free_bytes, total_bytes = node.world.disk.usage(node.config.storage.data_dir)
    host, port = node.addresses.get(listener) or next(iter(node.addresses.values()))
    broker = BrokerDescription(
        broker_id=node.broker_id,
        address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        http=node.http,
        rack=node.config.broker.rack or None,
        version=_version(node),
        broker_epoch=node.broker_epoch,
        state=node.state(),
        leaders=0,
        replicas=0,
        disk_free_bytes=free_bytes,
        disk_total_bytes=total_bytes,
        uptime_ms=int((trio.current_time() - node.started_at) * 1000),
        last_seen=node.world.clock.wall_ms(),
    )
    problems: list[str] = []
    if space.read_only:
        has, limit = space.shortage()
        problems.append(f"broker {node.broker_id} is read-only: {has}, {limit}")
    problems += few(node.shelf.damage(), DAMAGE_TOLD_MAX)
    problems += node.erasures.problems
    return DescribeClusterResponse(
        cluster_id=node.cluster_id,
        version=_version(node),
        controller=node.views.view.controller,
        metadata=_kind_of_store(node),
        metadata_ok=not _metadata_error(node),
        brokers=(broker,),
        topics=0,
        partitions=0,
        under_replicated=0,
        below_min_isr=0,
        offline=0,
        problems=tuple(problems),
    )


def _kind_of_store(node: Node) -> str:
    return "etcd" if node.config.cluster.metadata == "etcd" else "embedded"


def _metadata_error(node: Node) -> str:
    """Why the metadata store cannot be counted on, or ""."""
    if node.health.metadata_error or node.session.valid():
        return node.health.metadata_error
    return f"broker {node.broker_id} has no lease of the metadata store: it may write nothing"


def _version(node: Node) -> str:
    return node.software.rpartition("/")[2]
