"""The metrics that docs/metrics.md promises."""

import re
from typing import NamedTuple

# A row names metrics, then the type and labels of each; † only on /metrics/detailed.
ROWS = """
build_info · broker_uptime_seconds · broker_state
| gauge{version,python} · gauge · gauge{state}
requests_total · request_duration_seconds · requests_in_flight · request_memory_bytes
| counter{api,code} · histogram{api} · gauge · gauge
connections · connections_refused_total · sent_bytes_total · received_bytes_total
| gauge{listener} · counter{reason} · counter{listener} · counter{listener}
topic_records_in_total · topic_bytes_in_total · topic_bytes_out_total · topic_size_bytes
| counter{topic} · counter{topic} · counter{topic} · gauge{topic}
old_timestamps_total · weak_acks_total · topics_weak_durability
| counter{topic} · counter{topic,acks} · gauge{durability}
partitions · partitions_leader · partitions_under_replicated · partitions_below_min_isr
| gauge · gauge · gauge · gauge
partitions_offline · isr_changes_total
| gauge · counter{direction}
partition_log_end† · partition_high_watermark† · partition_size_bytes†
| gauge{topic,partition} · gauge{topic,partition} · gauge{topic,partition}
replica_lag_records†
| gauge{topic,partition,replica}
group_lag_records · group_lag_seconds · group_margin_seconds · group_partition_lag_records†
| gauge{group,topic} · gauge{group,topic} · gauge{group,topic} · gauge{group,topic,partition}
group_verdict · group_members · group_commits_total
| gauge{group} · gauge{group} · counter{group}
group_rebalances_total · group_rebalance_duration_seconds
| counter{group,reason} · histogram
append_duration_seconds · fsync_duration_seconds · fsync_batches
| histogram · histogram · histogram
segments · disk_free_bytes · disk_read_only
| gauge · gauge · gauge
retention_deleted_bytes_total · compaction_runs_total · compaction_dirty_ratio · erasures_pending
| counter{topic} · counter{topic,result} · gauge{topic} · gauge
corrupt_batches_total · recovery_truncated_bytes_total · recovery_duration_seconds
| counter{topic} · counter · gauge
data_loss_possible_total
| counter
elections_total · metadata_request_duration_seconds · metadata_errors_total
| counter{reason} · histogram{op} · counter{op}
metadata_lease_remaining_seconds
| gauge
event_loop_lag_seconds · tasks · threads_used · clock_skew_seconds · metrics_truncated
| histogram · gauge · gauge · gauge{broker} · gauge
client_send_duration_seconds · client_buffer_bytes · client_retries_total
| histogram · gauge · counter{reason}
client_blocked_loop_seconds_total · client_skipped_records_total
| counter · counter{reason}
"""
SECONDS = "0.0005 0.001 0.0025 0.005 0.01 0.025 0.05 0.1 0.25 0.5 1 2.5 5 10"
BATCHES = "1 2 4 8 16 32 64 128 256 512 1024"


class Promise(NamedTuple):
    """One metric."""

    kind: str
    labels: tuple[str, ...]
    detailed: bool


def promises() -> dict[str, Promise]:
    """By name, without ``tailrace_``."""
    lines = ROWS.strip().splitlines()
    found: dict[str, Promise] = {}
    for names, kinds in zip(lines[::2], lines[1::2], strict=True):
        of_row = names.split(" · "), kinds.removeprefix("| ").split(" · ")
        for name, kind in zip(*of_row, strict=True):
            found[name.rstrip("†")] = Promise(
                kind.partition("{")[0],
                tuple(re.findall(r"\w+", kind.partition("{")[2])),
                name.endswith("†"),
            )
    return found
