"""Which segments may go (S29), and how large they should be so that some may. Pure.

- Whole segments from the front only, never the active one, fully below the high watermark.
- By age: only when every record of the segment is past the limit by append time. Append times
  never fall along the log, so a segment's last one is its largest. How old that is, the caller
  says: by a clock that no step of the wall clock moves.
- By size: as long as what remains is still at least the limit.
- For want of room: over all logs that may drop, always the segment whose last append time is the
  oldest. So all of them keep the same span of time, whoever writes more.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

SHARE_LEAST = 32  # a log's segments are no larger than that share of the capacity …
SHARE_PER_PARTITION = 4  # … and all active ones together no larger than a quarter of it
RETENTION_SHARE = 8
SEGMENT_BYTES_MIN = 1024 * 1024  # by share of the capacity
RETAINED_BYTES_MIN = 64 * 1024  # by share of ``retention_size``


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """One segment, as retention, metrics and listings see it."""

    base_offset: int
    next_offset: int
    size_bytes: int
    first_append_time: int | None  # ms; None: empty
    last_append_time: int | None
    sealed: bool


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Limits of one topic; None: unlimited."""

    age_ms: int | None
    size_bytes: int | None


def segments_to_drop(
    segments: Sequence[SegmentFacts],
    policy: RetentionPolicy,
    *,
    age_ms: Callable[[SegmentFacts], int],
    high_watermark: int,
) -> int:
    """How many segments, from the front, may be removed.

    ``age_ms``: how long ago the last record of a segment was appended, at least.
    """
    left_bytes = sum(segment.size_bytes for segment in segments)
    count = 0
    for at, segment in enumerate(segments):
        if not segment.sealed or segment.next_offset > high_watermark:
            break
        too_much = (
            policy.size_bytes is not None and left_bytes - segment.size_bytes >= policy.size_bytes
        )
        if not too_much and not _expired(_dated(segments, at), policy, age_ms):
            break
        left_bytes -= segment.size_bytes
        count += 1
    return count


def _dated(segments: Sequence[SegmentFacts], at: int) -> SegmentFacts:
    """A segment in which nothing is readable is no younger than what follows it.

    It is damaged, and kept as long as if it were not: somebody may repair it.
    """
    segment = segments[at]
    if segment.last_append_time is not None:
        return segment
    later = (one.first_append_time for one in segments[at:])
    return replace(segment, last_append_time=next((t for t in later if t is not None), None))


def _expired(
    segment: SegmentFacts, policy: RetentionPolicy, age_ms: Callable[[SegmentFacts], int]
) -> bool:
    if policy.age_ms is None or segment.last_append_time is None:
        return False
    return age_ms(segment) > policy.age_ms


def oldest_to_drop(
    logs: Sequence[tuple[Sequence[SegmentFacts], int]], wanted_bytes: int, *, now_ms: int
) -> list[int]:
    """How many segments, from the front, each log gives so that ``wanted_bytes`` are free.

    ``logs``: segments and high watermark. Less is given if there is no more that may go. A stamp
    ahead of ``now_ms`` counts as now.
    """
    counts = [0] * len(logs)
    fronts: list[tuple[int, int]] = []  # last append time, log

    def offer(log: int) -> None:
        segments, high_watermark = logs[log]
        segment = segments[counts[log]]
        if segment.sealed and segment.next_offset <= high_watermark:
            stamp = _dated(segments, counts[log]).last_append_time
            heapq.heappush(fronts, (now_ms if stamp is None else min(stamp, now_ms), log))

    for log in range(len(logs)):
        offer(log)
    while wanted_bytes > 0 and fronts:
        _, log = heapq.heappop(fronts)
        wanted_bytes -= logs[log][0][counts[log]].size_bytes
        counts[log] += 1
        offer(log)
    return counts


def segment_size_bytes(
    wanted_bytes: int,
    *,
    capacity_bytes: int,
    partitions: int,
    retention_bytes: int | None,
) -> int:
    """The segment size of a log: what was set, or less so that there are closed segments at all.

    ``partitions``: how many share the capacity; ``retention_bytes``: the log's ``retention_size``.
    """
    share = max(SHARE_LEAST, SHARE_PER_PARTITION * partitions)
    size_bytes = min(wanted_bytes, max(SEGMENT_BYTES_MIN, capacity_bytes // share))
    if retention_bytes is not None:
        size_bytes = min(size_bytes, max(RETAINED_BYTES_MIN, retention_bytes // RETENTION_SHARE))
    return size_bytes
