"""Answers of the broker as the shapes that users see: of the SDK, the command line, HTTP (pure)."""

import uuid
from collections.abc import Sequence
from typing import Literal, cast

from tailrace.protocol.messages import (
    DescribeGroupResponse,
    GroupSummary,
    MemberDescription,
    OffsetMove,
    PartitionProgress,
)
from tailrace.protocol.messages_admin import (
    BrokerDescription,
    CompactionDescription,
    DescribeClusterResponse,
    ErasureResponse,
    ExplainResponse,
    PartitionDescription,
    TopicDescription,
)
from tailrace.protocol.shapes import (
    BrokerInfo,
    BrokerState,
    ClusterHealth,
    ClusterInfo,
    CompactionInfo,
    CompactionState,
    ConfigEntry,
    ConfigSource,
    ErasureReceipt,
    ExplainedKind,
    Explanation,
    Fact,
    GroupDetail,
    GroupInfo,
    GroupLag,
    GroupState,
    MemberInfo,
    OffsetChange,
    PartitionInfo,
    PartitionLag,
    PartitionStatus,
    TopicDetail,
    TopicInfo,
    TopicPartition,
    Verdict,
)

# ── topics and the cluster ───────────────────────────────────────────────────────────────────


def topic_info(topic: TopicDescription) -> TopicInfo:
    """A topic as a list shows it."""
    return TopicInfo(
        name=topic.name,
        topic_id=str(uuid.UUID(bytes=topic.topic_id)),
        internal=topic.internal,
        partitions=len(topic.partitions),
        replicas=topic.replicas,
        min_isr=topic.min_isr,
        cleanup=topic.cleanup,
        durability=topic.durability,
        size_bytes=sum(p.size_bytes for p in topic.partitions),
        records=sum(p.log_end - p.log_start for p in topic.partitions),
        under_replicated=sum(len(p.isr) < len(p.replicas) for p in topic.partitions),
        offline=sum(p.status == "offline" for p in topic.partitions),
    )


def topic_detail(topic: TopicDescription) -> TopicDetail:
    """A topic with all that belongs to it."""
    return TopicDetail(
        **vars(topic_info(topic)),
        config=[
            ConfigEntry(e.key, e.value, e.default, cast(ConfigSource, e.source), e.dynamic)
            for e in topic.config
        ],
        partition_list=[partition_info(topic.name, p) for p in topic.partitions],
        groups=list(topic.groups),
    )


def partition_info(topic: str, partition: PartitionDescription) -> PartitionInfo:
    """One partition."""
    return PartitionInfo(
        topic=topic,
        partition=partition.partition,
        leader=partition.leader,
        leader_epoch=partition.leader_epoch,
        replicas=list(partition.replicas),
        isr=list(partition.isr),
        key_range=(f"{partition.key_first:016x}", f"{partition.key_last:016x}"),
        log_start=partition.log_start,
        log_end=partition.log_end,
        high_watermark=partition.high_watermark,
        last_stable_offset=partition.last_stable_offset,
        size_bytes=partition.size_bytes,
        segments=partition.segments,
        last_append_time=partition.last_append_time,
        status=cast(PartitionStatus, partition.status),
        compaction=compaction_info(partition.compaction),
    )


def compaction_info(compaction: CompactionDescription | None) -> CompactionInfo | None:
    """How far a partition is cleaned."""
    if compaction is None:
        return None
    return CompactionInfo(
        state=cast(CompactionState, compaction.state),
        clean_offset=compaction.clean_offset,
        dirty_bytes=compaction.dirty_bytes,
        dirty_ratio=compaction.dirty_ppm / 1_000_000,
        progress=compaction.progress_ppm / 1_000_000,
        reason=compaction.reason,
        last_run_at=compaction.last_run_at,
        last_error=compaction.last_error,
    )


def broker_info(broker: BrokerDescription) -> BrokerInfo:
    """One broker."""
    return BrokerInfo(
        id=broker.broker_id,
        address=broker.address,
        http=broker.http,
        rack=broker.rack,
        version=broker.version,
        broker_epoch=broker.broker_epoch,
        state=cast(BrokerState, broker.state),
        leaders=broker.leaders,
        replicas=broker.replicas,
        disk_free_bytes=broker.disk_free_bytes,
        disk_total_bytes=broker.disk_total_bytes,
        uptime_ms=broker.uptime_ms,
        last_seen=broker.last_seen,
    )


def cluster_info(cluster: DescribeClusterResponse) -> ClusterInfo:
    """The cluster; ``healthy``: nothing stands under ``problems``."""
    return ClusterInfo(
        cluster_id=cluster.cluster_id,
        version=cluster.version,
        controller=cluster.controller,
        metadata=cast(Literal["embedded", "etcd"], cluster.metadata),
        metadata_ok=cluster.metadata_ok,
        brokers=[broker_info(broker) for broker in cluster.brokers],
        topics=cluster.topics,
        partitions=cluster.partitions,
        under_replicated=cluster.under_replicated,
        below_min_isr=cluster.below_min_isr,
        offline=cluster.offline,
        healthy=not cluster.problems,
        problems=list(cluster.problems),
    )


def cluster_health(cluster: ClusterInfo) -> ClusterHealth:
    """What of it says whether it is healthy."""
    return ClusterHealth(
        healthy=cluster.healthy,
        problems=cluster.problems,
        brokers_up=sum(one.state != "offline" for one in cluster.brokers),
        brokers_total=len(cluster.brokers),
        under_replicated=cluster.under_replicated,
        below_min_isr=cluster.below_min_isr,
        offline=cluster.offline,
        metadata_ok=cluster.metadata_ok,
    )


# ── groups ───────────────────────────────────────────────────────────────────────────────────


def group_info(group: GroupSummary) -> GroupInfo:
    """A group as a list shows it."""
    return GroupInfo(
        name=group.name,
        state=cast(GroupState, group.state),
        members=group.members,
        generation=group.generation,
        topics=list(group.topics),
        coordinator=group.coordinator,
        lag_records=group.lag_records,
        lag_seconds=_seconds(group.lag_ms),
        verdict=cast(Verdict, group.verdict),
    )


def group_detail(group: DescribeGroupResponse) -> GroupDetail:
    """A group with all that belongs to it."""
    return GroupDetail(
        **vars(group_info(group.summary)),
        member_list=[member_info(member) for member in group.members],
        partition_list=[partition_lag(partition) for partition in group.partitions],
    )


def group_lag(group: DescribeGroupResponse) -> GroupLag:
    """How far behind it is."""
    summary = group.summary
    return GroupLag(
        group=summary.name,
        lag_records=summary.lag_records,
        lag_seconds=_seconds(summary.lag_ms),
        drain_seconds=_seconds(summary.drain_ms),
        verdict=cast(Verdict, summary.verdict),
        partition_list=[partition_lag(partition) for partition in group.partitions],
    )


def member_info(member: MemberDescription) -> MemberInfo:
    """One member of a group."""
    return MemberInfo(
        member_id=member.member_id,
        instance_id=member.instance_id,
        client_id=member.client_id,
        host=member.host,
        version=member.version,
        assigned=[TopicPartition(one.topic, one.partition) for one in member.assigned],
        last_heartbeat=member.last_heartbeat,
        idle=not member.assigned,
    )


def partition_lag(one: PartitionProgress) -> PartitionLag:
    """How far a group is with a partition."""
    return PartitionLag(
        topic=one.topic,
        partition=one.partition,
        committed=one.committed,
        committed_at=one.committed_at,
        metadata=one.metadata,
        log_start=one.log_start,
        log_end=one.log_end,
        member_id=one.member_id,
        lag_records=one.lag_records,
        lag_seconds=_seconds(one.lag_ms),
        rate_per_s=one.rate_milli / 1000,
        verdict=cast(Verdict, one.verdict),
        margin_seconds=_seconds(one.margin_ms),
    )


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def offset_changes(moves: Sequence[OffsetMove], starts: Sequence[int]) -> list[OffsetChange]:
    """What a reset did or would do; ``starts``: of the logs, in the same order.

    A group that has committed nothing begins at the log start, and what has expired is not read
    again.
    """
    found: list[OffsetChange] = []
    for move, start in zip(moves, starts, strict=True):
        before = start if move.before is None else max(start, move.before)
        found.append(
            OffsetChange(move.topic, move.partition, move.before, move.after, before - move.after)
        )
    return found


# ── erasures ─────────────────────────────────────────────────────────────────────────────────


def erasure_receipt(response: ErasureResponse) -> ErasureReceipt:
    """The answer as users see it."""
    return ErasureReceipt(
        id=str(uuid.UUID(bytes=response.erasure_id)),
        topic=response.topic,
        records=response.records,
        requested_at=response.requested_at,
        completed_at=response.completed_at,
        replicas={one.broker_id: "done" if one.done else "pending" for one in response.replicas},
    )


# ── explanations ─────────────────────────────────────────────────────────────────────────────


def explanation(response: ExplainResponse) -> Explanation:
    """The answer as users see it."""
    return Explanation(
        target=response.target,
        kind=cast(ExplainedKind, response.kind),
        verdict=response.verdict,
        summary=response.summary,
        facts=[Fact(name, value) for name, value in response.facts.items()],
        next=response.next,
    )
