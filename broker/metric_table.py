"""Every metric of a broker: name, type, labels, meaning. docs/metrics.md is made from this.

A name is without ``tailrace_``; that of a counter ends in ``_total``. Pure.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

PREFIX = "tailrace_"
SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
BATCHES = tuple(float(1 << power) for power in range(11))


@dataclass(frozen=True, slots=True)
class Spec:
    """One row."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    doc: str  # its HELP line, and its row of the page
    alert: str = ""  # an expression, where one is obvious
    detailed: bool = False  # only on /metrics/detailed
    bounds: tuple[float, ...] = SECONDS


def _row(
    name: str,
    kind: Kind,
    labels: str,
    doc: str,
    alert: str = "",
    *,
    detailed: bool = False,
    bounds: tuple[float, ...] = SECONDS,
) -> Spec:
    return Spec(name, kind, tuple(labels.split()), doc, alert, detailed, bounds)


_BROKER = (
    _row("build_info", "gauge", "version python", "1, always: the software in its labels."),
    _row(
        *("broker_uptime_seconds", "gauge", "", "Since the start."),
        "tailrace_broker_uptime_seconds < 300",
    ),
    _row(
        *("broker_state", "gauge", "state"),
        "1 for the present one of starting, running, read_only, draining.",
        'tailrace_broker_state{state="running"} == 0',
    ),
)
_REQUESTS = (
    _row("requests_total", "counter", "api code", "Requests answered; ok, or an error's code."),
    _row(
        *("request_duration_seconds", "histogram", "api"),
        "From the last byte of a request to its answer; those that wait for news do so in it.",
    ),
    _row("requests_in_flight", "gauge", "", "Requests taken and not yet answered."),
    _row("request_memory_bytes", "gauge", "", "Memory that requests in hand take."),
    _row("connections", "gauge", "listener", "Open connections of clients."),
    _row(
        *("connections_refused_total", "counter", "reason"),
        "Connections turned away: the setting whose limit was reached, protocol (another one is "
        "spoken), tls (no handshake), accept (no file descriptors).",
        "rate(tailrace_connections_refused_total[5m]) > 0",
    ),
    _row("sent_bytes_total", "counter", "listener", "Bytes sent to clients."),
    _row("received_bytes_total", "counter", "listener", "Bytes received from clients."),
)
_TOPICS = (
    _row("topic_records_in_total", "counter", "topic", "Records appended."),
    _row("topic_bytes_in_total", "counter", "topic", "Bytes appended, compressed as sent."),
    _row("topic_bytes_out_total", "counter", "topic", "Bytes fetched."),
    _row("topic_size_bytes", "gauge", "topic", "Size of its logs."),
    _row(
        *("old_timestamps_total", "counter", "topic"),
        "Batches with an event time older than 7 days: counted, not refused.",
    ),
    _row(
        *("weak_acks_total", "counter", "topic acks"),
        "Batches produced with acks=1 or acks=0.",
    ),
    _row(
        *("topics_weak_durability", "gauge", "durability"),
        "Topics whose acks promise less than a sync.",
    ),
)
_PARTITIONS = (
    _row("partitions", "gauge", "", "Partitions held here."),
    _row("partitions_leader", "gauge", "", "Partitions led here."),
    _row(
        *("partitions_under_replicated", "gauge", "", "Partitions with a replica behind."),
        "tailrace_partitions_under_replicated > 0",
    ),
    _row(
        *("partitions_below_min_isr", "gauge", "", "Partitions that refuse acks=all."),
        "tailrace_partitions_below_min_isr > 0",
    ),
    _row(
        *("partitions_offline", "gauge", "", "Partitions without a leader."),
        "tailrace_partitions_offline > 0",
    ),
    _row(
        *("isr_changes_total", "counter", "direction"),
        "Replicas that left the in-sync set (shrink) or came back (expand); 0 on a single node.",
    ),
    _row(
        *("partition_log_end", "gauge", "topic partition", "Next offset to be written."),
        detailed=True,
    ),
    _row(
        *("partition_high_watermark", "gauge", "topic partition", "End of what is committed."),
        detailed=True,
    ),
    _row(
        *("partition_size_bytes", "gauge", "topic partition", "Size of the log."),
        detailed=True,
    ),
    _row(
        *("replica_lag_records", "gauge", "topic partition replica"),
        "Records that a follower lacks, as its leader here knows it.",
        detailed=True,
    ),
)
_GROUPS = (
    _row("group_lag_records", "gauge", "group topic", "Records not read yet."),
    _row(
        *("group_lag_seconds", "gauge", "group topic"),
        "How long the oldest record that was not read has waited.",
    ),
    _row(
        *("group_margin_seconds", "gauge", "group topic"),
        "Until unread records expire at the present rates; +Inf: they do not.",
        "tailrace_group_margin_seconds < 3600",
    ),
    _row(
        *("group_partition_lag_records", "gauge", "group topic partition"),
        "Records of one partition that were not read yet.",
        detailed=True,
    ),
    _row(
        *("group_verdict", "gauge", "group"),
        "0 ok, 1 warn, 2 stalled, over group.verdict_window.",
        "tailrace_group_verdict == 2",
    ),
    _row(
        *("group_members", "gauge", "group"),
        "Members of a consumer group, those on their way back included.",
    ),
    _row(
        *("group_commits_total", "counter", "group"),
        "Offsets committed, one per partition.",
    ),
    _row(
        *("group_rebalances_total", "counter", "group reason"),
        "Rebalances that ended, by what began them; many without a deployment are members that "
        "come and go.",
    ),
    _row(
        *("group_rebalance_duration_seconds", "histogram", ""),
        "Of rebalances, from the cause to the end.",
    ),
)
_STORAGE = (
    _row("append_duration_seconds", "histogram", "", "One gathered write to a log."),
    _row(
        *("fsync_duration_seconds", "histogram", "", "One round of sync."),
        "histogram_quantile(0.99, rate(tailrace_fsync_duration_seconds_bucket[5m])) > 0.5",
    ),
    _row(
        *("fsync_batches", "histogram", "", "Batches that one round of sync made durable."),
        bounds=BATCHES,
    ),
    _row("segments", "gauge", "", "Segment files."),
    _row("disk_free_bytes", "gauge", "", "Room on the file system of the data directory."),
    _row(
        *("disk_read_only", "gauge", "", "1 while writes are refused with T031."),
        "tailrace_disk_read_only == 1",
    ),
    _row("retention_deleted_bytes_total", "counter", "topic", "Bytes removed by retention."),
    _row(
        *("compaction_runs_total", "counter", "topic result"),
        "Partitions cleaned (ok), or not (failed).",
        'increase(tailrace_compaction_runs_total{result="failed"}[1h]) > 0',
    ),
    _row(
        *("compaction_dirty_ratio", "gauge", "topic"),
        "Of the topic's dirtiest partition: closed, and not yet cleaned, 0 to 1.",
    ),
    _row(
        *("erasures_pending", "gauge", "", "Erasures that are not complete."),
        "tailrace_erasures_pending > 0",
    ),
    _row(
        *("corrupt_batches_total", "counter", "topic", "Stored ranges found damaged."),
        "tailrace_corrupt_batches_total > 0",
    ),
    _row("recovery_truncated_bytes_total", "counter", "", "Torn tails cut at the start."),
    _row("recovery_duration_seconds", "gauge", "", "How long the start took."),
    _row(
        *("data_loss_possible_total", "counter", ""),
        "Cuts at the start that may have removed good records, and logs that are gone.",
        "tailrace_data_loss_possible_total > 0",
    ),
)
_METADATA = (
    _row(
        *("elections_total", "counter", "reason"),
        "Partitions this broker took the lead of in a new epoch: start (of the broker), created "
        "(a topic), elected (by another broker). And those it chose a leader for, as the "
        "controller: failover, recovered (by who has most), reassign, balance.",
    ),
    _row(
        *("metadata_request_duration_seconds", "histogram", "op"),
        "Requests to the metadata store.",
    ),
    _row(
        *("metadata_errors_total", "counter", "op", "Requests to the metadata store that failed."),
        "rate(tailrace_metadata_errors_total[5m]) > 0",
    ),
    _row(
        *("metadata_lease_remaining_seconds", "gauge", ""),
        "Until this broker's lease ends; +Inf with the embedded store, where the lock on the data "
        "directory stands for it.",
        "tailrace_metadata_lease_remaining_seconds < 3",
    ),
)
_PROCESS = (
    _row(
        *("event_loop_lag_seconds", "histogram", ""),
        "How late the event loop woke a sleeper; above 0.1 s something blocks it.",
        "histogram_quantile(0.99, rate(tailrace_event_loop_lag_seconds_bucket[5m])) > 0.1",
    ),
    _row("tasks", "gauge", "", "Tasks of the event loop."),
    _row("threads_used", "gauge", "", "Threads of the process."),
    _row(
        *("clock_skew_seconds", "gauge", "broker"),
        "By how much the wall clock is ahead of the time this broker trusts: steps forward that "
        "have not stood for a day.",
        "abs(tailrace_clock_skew_seconds) > 60",
    ),
    _row(
        *("metrics_truncated", "gauge", ""),
        "1 if topics or groups are summed as __other__.",
        "tailrace_metrics_truncated == 1",
    ),
)

TABLE: tuple[Spec, ...] = (
    *(*_BROKER, *_REQUESTS, *_TOPICS, *_PARTITIONS, *_GROUPS),
    *(*_STORAGE, *_METADATA, *_PROCESS),
)
