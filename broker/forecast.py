"""When retention will overtake a group: how long until it loses records it has not read. Pure.

A segment goes as a whole (storage/retention.py). So records are lost when the segment that holds
the group's next offset goes while the group, at its present rate, is still in it. A group that
stands still loses the segment it stands in; one that is slower than its producers falls back
through segments that are still to be written, until one goes under it.

A segment goes, at the earliest,
- by age: ``retention`` after its last record was appended. The active one is closed first, when it
  is old or full, and gets records until then if any are being written;
- by size: when so much was written behind it that the rest is at least ``retention_size``;
- for want of room (topics with ``on_full = drop_oldest``): when it is its turn (``Pressure``).

What actually removes it looks now and then, so it may stay for that much longer.

Not covered: what is deleted by hand or erased, compaction (which keeps the last record of a key),
a ``min_free`` that other programs use up, and rates that change.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

from tailrace.storage.retention import SegmentFacts

FOREVER_S = 100 * 365 * 86_400.0  # what lies further ahead is never


@dataclass(frozen=True, slots=True)
class Aged:
    """A segment with the ages of its first and its last record, in seconds."""

    facts: SegmentFacts
    first_s: float
    last_s: float


@dataclass(frozen=True, slots=True)
class Keeping:
    """What removes segments of a log, and how fast that grows."""

    retention_s: float  # inf: for ever
    retention_bytes: int | None
    segment_age_s: float
    segment_bytes: int
    write_rate: float  # offsets per second
    growth_rate: float  # bytes per second


class Pressure:
    """What ``on_full = drop_oldest`` will drop, over all logs, at the present growth.

    Room is made in steps: each time less than half of ``high_bytes`` is left, the oldest segments
    go until all of that is free (broker/space.py).
    """

    def __init__(
        self,
        droppable: Iterable[tuple[float, int]],
        *,
        room_bytes: int,
        high_bytes: int,
        growth_rate: float,
    ) -> None:
        """``droppable``: age of the last record (s) and size of every closed segment that may."""
        oldest_first = sorted((-age_s, size_bytes) for age_s, size_bytes in droppable)
        self._times = [time for time, _ in oldest_first]
        self._before = list(accumulate((size for _, size in oldest_first), initial=0))
        self._step_bytes = max(1.0, high_bytes / 2)
        self._left_bytes = room_bytes - self._step_bytes
        self._growth_rate = growth_rate

    def drops_in_s(self, age_s: float) -> float:
        """When a segment goes whose last record is so old (negative: will be); inf: never."""
        older_bytes = self._before[bisect_left(self._times, -age_s)]
        steps = math.floor(older_bytes / self._step_bytes)
        return _in(self._left_bytes + steps * self._step_bytes, self._growth_rate)


def margin_s(
    position: int,
    rate: float,
    segments: Iterable[Aged],
    keeping: Keeping,
    *,
    end: int,
    held_bytes: int = 0,
    pressure: Pressure | None = None,
) -> float | None:
    """Seconds until a group loses unread records, at the earliest; None: it does not.

    ``position``: the next offset it reads, not below the log start; ``rate``: offsets per second;
    ``segments``: the one that holds the position and all behind it, as far as they are asked for;
    ``held_bytes``: of all of them, for a log with ``retention_bytes``; ``end``: of the log. A
    group at the end has nothing to lose yet.
    """
    if position >= end:
        return None
    behind_bytes, closes_s = held_bytes, 0.0
    for one in segments:
        behind_bytes -= one.facts.size_bytes
        closes_s = 0.0 if one.facts.sealed else _closes_in_s(one, keeping)
        goes_s = max(closes_s, _goes_in_s(one, closes_s, behind_bytes, keeping, pressure))
        last = one.facts.next_offset
        if not one.facts.sealed:
            last += int(keeping.write_rate * min(closes_s, FOREVER_S))
        if goes_s < FOREVER_S and position + rate * goes_s < last:
            return goes_s
    return _later_s(position, rate, closes_s, keeping, end=end)


def _closes_in_s(active: Aged, keeping: Keeping) -> float:
    """When the active segment is closed, by age or by size."""
    by_age_s = max(0.0, keeping.segment_age_s - active.first_s)
    left_bytes = keeping.segment_bytes - active.facts.size_bytes
    return min(by_age_s, _in(left_bytes, keeping.growth_rate))


def _goes_in_s(
    one: Aged, closes_s: float, behind_bytes: int, keeping: Keeping, pressure: Pressure | None
) -> float:
    """When a segment goes that is closed by then; ``behind_bytes``: written behind it by now."""
    written = not one.facts.sealed and keeping.write_rate * closes_s >= 1
    last_s = -closes_s if written else one.last_s  # how old its last record is, then as of now
    goes_s = max(0.0, keeping.retention_s - last_s)
    if keeping.retention_bytes is not None:
        left_bytes = keeping.retention_bytes - behind_bytes
        goes_s = min(goes_s, closes_s + _in(left_bytes, keeping.growth_rate))
    if pressure is not None:
        goes_s = min(goes_s, pressure.drops_in_s(last_s))
    return goes_s


def _later_s(
    position: int, rate: float, closes_s: float, keeping: Keeping, *, end: int
) -> float | None:
    """When a segment goes under the group that is still to be written.

    One that ends in x seconds holds offsets up to ``end`` + write rate * x and goes in x + kept
    seconds; the group is at ``position`` + rate * (x + kept) by then.
    """
    ahead = keeping.write_rate - rate
    if ahead <= 0:
        return None
    kept_s = keeping.retention_s
    if keeping.retention_bytes is not None:
        kept_s = min(kept_s, _in(keeping.retention_bytes, keeping.growth_rate))
    span_s = min(keeping.segment_age_s, _in(keeping.segment_bytes, keeping.growth_rate))
    ends_s = (position + rate * kept_s - end) / ahead if math.isfinite(kept_s) else math.inf
    if not ends_s + kept_s < FOREVER_S:
        return None
    count = max(1, math.ceil((ends_s - closes_s) / max(span_s, 1e-3)))
    return closes_s + count * span_s + kept_s


def _in(left: float, rate: float) -> float:
    """When so much is used up."""
    if left <= 0:
        return 0.0
    return left / rate if rate > 0 else math.inf
