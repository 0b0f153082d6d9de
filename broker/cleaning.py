"""When a compacted log is cleaned, and in which pieces. Pure.

- Only what is sealed, durable and sound can be cleaned (``Log.rewritable``), all of it below the
  high watermark and the open segment (S26).
- A log is due when so much of it is dirty, when its oldest dirty record is too old, or when
  tombstones may go. The dirtiest goes first.
- Segments are rewritten oldest first, so that at any time what is older than a tombstone is gone
  before it is (S27). Small neighbours become one segment; what loses nothing is not touched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tailrace.broker.config import TopicConfig
from tailrace.protocol.units import counted, duration_setting, format_duration, format_size
from tailrace.storage.cleaned import Cleaned
from tailrace.storage.retention import SegmentFacts
from tailrace.storage.rewrite import SegmentSource
from tailrace.storage.segment import OFFSETS_MAX, SEGMENT_BYTES_MAX
from tailrace.storage.survey import Surveyed

EMPTY_BYTES = 96  # of a segment of which nothing is left
LARGE_SHARE = 2  # of the segment size, as a divisor: one that large is not rewritten to be merged
HORIZON_SHARE = 10  # of the tombstones' retention, as a divisor: how late they may go


@dataclass(frozen=True, slots=True)
class Dirt:
    """What there is to clean in one log."""

    sources: tuple[SegmentSource, ...]  # all that can be cleaned, oldest first
    left_out: int  # sealed segments that cannot, and have records
    whole_below: int  # below it none is left out
    clean_bytes: int
    dirty_bytes: int
    oldest_age_ms: int | None  # of the oldest dirty record, by append time
    due: bool
    reason: str  # why it is due, or why not

    @property
    def ratio(self) -> float:
        """Dirty bytes, as a share of all that can be cleaned."""
        total = self.clean_bytes + self.dirty_bytes
        return self.dirty_bytes / total if total else 0.0

    @property
    def end(self) -> int:
        """Behind the last offset that can be cleaned."""
        return self.sources[-1].next_offset if self.sources else 0


def look(
    segments: Sequence[SegmentFacts],
    sources: Sequence[SegmentSource],
    cleaned: Cleaned,
    config: TopicConfig,
    *,
    now_ms: int,
    age_ms: Callable[[int], int],
    others_moved: bool = True,
) -> Dirt:
    """What there is to clean. ``sources``: which of the segments can be rewritten.

    ``others_moved``: whether tombstones may go further up than at the last run: every other replica
    has to be as far (R39). ``now_ms`` and ``age_ms`` (of an append time) must not follow a jump of
    the wall clock.
    """
    possible = {source.base_offset for source in sources}
    out = [one for one in segments if one.base_offset not in possible]
    left_out = [one for one in out if one.sealed and one.next_offset > one.base_offset]
    dirty = [source for source in sources if source.next_offset > cleaned.below]
    dirty_bytes = sum(source.size_bytes for source in dirty)
    oldest_age_ms: int | None = None
    if dirty:
        first = next(one for one in segments if one.base_offset == dirty[0].base_offset)
        oldest_age_ms = 0 if first.first_append_time is None else age_ms(first.first_append_time)
    dirt = Dirt(
        sources=tuple(sources),
        left_out=len(left_out),
        whole_below=out[0].base_offset if out else segments[-1].next_offset,
        clean_bytes=sum(source.size_bytes for source in sources) - dirty_bytes,
        dirty_bytes=dirty_bytes,
        oldest_age_ms=oldest_age_ms,
        due=False,
        reason="",
    )
    due = _why_due(dirt, cleaned, config, now_ms, others_moved=others_moved)
    return replace(dirt, due=bool(due), reason=due or _why_not(dirt, segments, config))


def _why_due(
    dirt: Dirt, cleaned: Cleaned, config: TopicConfig, now_ms: int, *, others_moved: bool
) -> str:
    """Empty: it is not."""
    if dirt.oldest_age_ms is not None:
        if dirt.ratio >= config.compaction_dirty_ratio:
            return f"{_dirty(dirt)}, at least {config.compaction_dirty_ratio:.0%}"
        if dirt.oldest_age_ms >= config.compaction_lag_max_ms:
            age = format_duration(dirt.oldest_age_ms / 1000)
            return f"{_dirty(dirt)}, the oldest record of it for {age}"
    horizon_ms, late_ms = cleaned.next_horizon_ms, config.tombstone_retention_ms // HORIZON_SHARE
    if horizon_ms is not None and now_ms > horizon_ms + late_ms and dirt.sources:
        return "tombstones have been kept for their time"
    if cleaned.waits and others_moved and dirt.sources:
        return "all replicas are as far as some tombstones, which may go now"
    return ""


def _why_not(dirt: Dirt, segments: Sequence[SegmentFacts], config: TopicConfig) -> str:
    ratio = config.compaction_dirty_ratio
    lag = duration_setting(config.compaction_lag_max_ms / 1000)
    if dirt.oldest_age_ms is not None:
        age = format_duration(dirt.oldest_age_ms / 1000)
        reason = f"{_dirty(dirt)}: cleaned from {ratio:.0%} on, or when the oldest record of it"
        reason += f" has been there for {lag} ({age} so far)"
    else:
        active = segments[-1]
        reason = "all that is closed is clean" if dirt.sources else "no segment is closed yet"
        if active.size_bytes:
            limit, age = config.segment_size_bytes, duration_setting(config.segment_age_ms / 1000)
            reason += f"; the open one ({format_size(active.size_bytes)}) is closed at"
            reason += f" {format_size(limit)} or after {age}"
    if dirt.left_out:
        closed = counted(dirt.left_out, "closed segment")
        reason += f"; {closed} cannot be cleaned: damaged, or not yet synced"
    return reason


def _dirty(dirt: Dirt) -> str:
    total = format_size(dirt.clean_bytes + dirt.dirty_bytes)
    return f"{dirt.ratio:.0%} of {total} is dirty"


def groups(segments: Sequence[Surveyed], *, segment_bytes: int) -> list[tuple[Surveyed, ...]]:
    """Which neighbours are rewritten into one segment each, oldest first.

    The result of a group is about ``segment_bytes`` at most: what stays of a segment is estimated
    by the number of its records.
    """
    found: list[list[Surveyed]] = []
    left_bytes = 0
    for one in segments:
        stays_bytes = estimate_bytes(one)
        small = one.changes or one.source.size_bytes * LARGE_SHARE < segment_bytes
        group = found[-1] if found else []
        if (
            group
            and small
            and left_bytes + stays_bytes <= segment_bytes
            and _fits(group, one)
            and (group[-1].changes or group[-1].source.size_bytes * LARGE_SHARE < segment_bytes)
        ):
            group.append(one)
            left_bytes += stays_bytes
        else:
            found.append([one])
            left_bytes = stays_bytes
    return [tuple(g) for g in found if len(g) > 1 or g[0].changes]


def estimate_bytes(segment: Surveyed) -> int:
    """About how much of a segment stays, by the number of its records."""
    size_bytes, records = segment.source.size_bytes, segment.records
    if not records:
        return min(size_bytes, EMPTY_BYTES)
    return max(EMPTY_BYTES, size_bytes * (records - segment.superseded) // records)


def _fits(group: Sequence[Surveyed], following: Surveyed) -> bool:
    """Whether a segment continues a group within what one file can hold."""
    first, last, new = group[0].source, group[-1].source, following.source
    size_bytes = sum(one.source.size_bytes for one in group) + new.size_bytes
    return (
        last.next_offset == new.base_offset
        and size_bytes <= SEGMENT_BYTES_MAX
        and new.next_offset - first.base_offset <= OFFSETS_MAX
    )
