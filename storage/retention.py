"""Which segments may go (S29, D6). Pure.

- Whole segments from the front only, never the active one, fully below the high watermark.
- By age: only when every record of the segment is past the limit by append time. Append times
  never fall along the log, so a segment's last one is its largest.
- By size: as long as what remains is still at least the limit.
- A segment stamped ahead of the clock (the clock was ahead once, and was set back) ages from when
  that was first seen, by monotonic time, so that it cannot be kept for ever (R20).

``now_ms`` must not follow a jump of the wall clock: the caller gives a time that moved with the
monotonic clock since it started.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
    now_ms: int,
    high_watermark: int,
    ahead_ms: Mapping[int, int] | None = None,
) -> int:
    """How many segments, from the front, may be removed.

    ``ahead_ms``: for segments (by base offset) whose last append time is ahead of ``now_ms``, for
    how many milliseconds the caller has seen them so.
    """
    left_bytes = sum(segment.size_bytes for segment in segments)
    count = 0
    for segment in segments:
        if not segment.sealed or segment.next_offset > high_watermark:
            break
        too_old = _expired(segment, policy, now_ms, ahead_ms or {})
        too_much = (
            policy.size_bytes is not None and left_bytes - segment.size_bytes >= policy.size_bytes
        )
        if not too_old and not too_much:
            break
        left_bytes -= segment.size_bytes
        count += 1
    return count


def _expired(
    segment: SegmentFacts, policy: RetentionPolicy, now_ms: int, ahead_ms: Mapping[int, int]
) -> bool:
    if policy.age_ms is None:
        return False
    if segment.last_append_time is None:
        return True  # nothing in it: its records were lost or erased
    age_ms = now_ms - segment.last_append_time
    if age_ms < 0:
        age_ms = ahead_ms.get(segment.base_offset, 0)
    return age_ms > policy.age_ms
