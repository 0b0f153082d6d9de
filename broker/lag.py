"""How far a group is behind, how fast it goes, and what is to be made of it. Pure.

One ``Track`` per group and partition. It is told now and then where the group and the log stand
(``observe``) and keeps what it needs of the past: a dozen points over the verdict's window, when
the committed offset last moved, and when the group was last seen at the end. A partition in which
nothing happens costs a comparison and keeps nothing.

Definitions (docs/consumer_groups.md has them for people):

- ``NOTHING`` stands for an offset where none was ever committed; such a group is behind by the
  whole log.
- ``stalled``: behind throughout the window, and the committed offset did not move.
- ``warn``: it moved, but never reached the end, and lag is larger than at the window's start. What
  a group commits in ``COMMIT_S`` counts as nothing: commits come in such intervals, and a healthy
  group under load is never seen without that much.
- Nothing is said before a whole window was observed: the verdict is ``ok`` until then.

Deliberately not here: how old the oldest unread record is and when it expires (``forecast.py``).
"""

from collections.abc import Iterable
from typing import Literal

Verdict = Literal["ok", "warn", "stalled"]
VERDICTS: tuple[Verdict, ...] = ("ok", "warn", "stalled")  # from good to bad
NOTHING = -1
UNKNOWN = -1  # where a log ends that is offline
STEPS = 12  # points kept of the window
PRESENT_SHARE = 6  # present rates are those of the window's last sixth …
PRESENT_LEAST_S = 5.0  # … but of no less than that
COMMIT_S = 2.0  # twice the usual commit interval

Point = tuple[float, int, int]  # seconds, committed, end


class Track:
    """One partition of one group. ``now``: monotonic seconds.

    Invariant: ``points`` rise in time, the last one lies before ``changed_at``; from then on the
    committed offset and the log's end stood where they are.
    """

    __slots__ = ("changed_at", "committed", "end", "moved_at", "points", "since", "zero_at")

    def __init__(self, now: float, committed: int, end: int) -> None:
        self._begin(now, committed, end)

    def _begin(self, now: float, committed: int, end: int) -> None:
        self.since = now  # observed from then on
        self.committed = committed
        self.end = end
        self.changed_at = now  # when either was last seen to change
        self.moved_at = now  # when the committed offset was
        self.zero_at = now  # when the group was last seen at the end
        self.points: list[Point] = []

    def observe(
        self, now: float, before: float, committed: int, end: int, start: int, window_s: float
    ) -> None:
        """It stands so now. ``before``: of the last look; until then all stood as it was.

        ``start``: of the log; it counts only where nothing was ever committed.
        """
        if committed == self.committed and end == self.end:
            return
        first = self.committed == NOTHING and committed != NOTHING
        if first or committed < self.committed or self.end == UNKNOWN:
            self._begin(now, committed, end)  # or set back: no rate spans that
            return
        points = self.points
        known = max(before, self.changed_at)
        if not points or known - points[-1][0] >= window_s / STEPS:
            points.append((known, self.committed, self.end))
            while len(points) > 1 and points[1][0] <= now - window_s:
                del points[0]
        if (start if self.committed == NOTHING else self.committed) >= self.end:
            self.zero_at = known
        if committed != self.committed:
            self.committed = committed
            self.moved_at = now
        self.end = end
        if (start if committed == NOTHING else committed) >= end:
            self.zero_at = now
        self.changed_at = now

    def forget_rates(self, now: float) -> None:
        """What comes next is no work of the group: an administrator moves it, say."""
        self._begin(now, self.committed, self.end)

    def at(self, time: float) -> tuple[float, float]:
        """Where group and log stood at a time of the window, about."""
        after: Point = (self.changed_at, self.committed, self.end)
        if time >= self.changed_at:
            return self.committed, self.end
        for point in reversed(self.points):
            if point[0] <= time:
                share = (time - point[0]) / max(after[0] - point[0], 1e-9)
                return (
                    point[1] + share * (after[1] - point[1]),
                    point[2] + share * (after[2] - point[2]),
                )
            after = point
        return after[1], after[2]

    def rates(self, now: float, over_s: float) -> tuple[float, float]:
        """Offsets per second of the group and of the log over the last ``over_s``, or less if it
        was not observed for so long."""
        begin = max(now - over_s, self.since)
        span_s = now - begin
        if span_s <= 0:
            return 0.0, 0.0
        committed, end = self.at(begin)
        return (self.committed - committed) / span_s, (self.end - end) / span_s

    def pace(self, now: float, *, window_s: float) -> tuple[float, float]:
        """The rates to forecast by, of group and log: those of the window, or the present ones if
        the group has become slower. A difference of two rates that is no more than the noise of
        commits is none, or every healthy group would be told that it loses records one day."""
        rate, write_rate = self.rates(now, window_s)
        span_s = window_s
        present, present_write_rate = self.rates(now, present_s(window_s))
        if present < rate:
            rate, write_rate, span_s = present, present_write_rate, present_s(window_s)
        if (write_rate - rate) * min(span_s, now - self.since) <= rate * COMMIT_S:
            rate = max(rate, write_rate)
        return rate, write_rate

    def verdict(self, now: float, lag: int, *, window_s: float) -> Verdict:
        """``lag``: offsets between the committed one (or the log start) and the end, now.

        Records that expired unread count: a group that cannot go on is stalled, too.
        """
        if lag <= 0 or now - self.zero_at < window_s:
            return "ok"
        if now - self.moved_at >= window_s:
            return "stalled"
        committed, end = self.at(now - window_s)
        rate, _ = self.rates(now, window_s)
        grown = self.committed != NOTHING and lag > end - committed
        return "warn" if grown and lag > rate * COMMIT_S else "ok"


def present_s(window_s: float) -> float:
    """Over how many seconds present rates are taken."""
    return max(PRESENT_LEAST_S, window_s / PRESENT_SHARE)


def drain_s(lag: int, rate: float, write_rate: float) -> float | None:
    """Until a group has caught up at these rates (offsets per second); None: it never does.

    One that is behind by no more than it commits in ``COMMIT_S`` keeps up, whatever noise says of
    the difference of two rates.
    """
    if lag <= 0:
        return 0.0
    if rate > 0 and lag <= rate * COMMIT_S:
        return lag / rate
    return lag / (rate - write_rate) if rate > write_rate else None


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a group: that of its worst partition."""
    return VERDICTS[max(map(VERDICTS.index, verdicts), default=0)]
