"""The time that retention goes by, whatever becomes of the wall clock (S29, R20).

``TrustedTime`` decides, pure: it is given both clocks and moves with the monotonic one.

- A step of the wall clock forward is doubted. Its size is not counted until the wall clock has
  stood by it for a day of monotonic time, over restarts too. A step back is believed at once: that
  only keeps records longer.
- The time between the last heartbeat and a start is a step like any other: nobody can tell a broker
  that was down for a week from a clock that is wrong by one.
- So the trusted time is never ahead of the true time unless the wall clock was wrong for a day,
  and it lags at most by what the clock went ahead within the last day.

``age_ms`` does better than the difference for stamps the broker has made since the last step.
``Timekeeper`` is the shell: clocks, the ``clock`` file, T110.
"""

import logging

from tailrace.broker.world import Offload
from tailrace.protocol import texts
from tailrace.protocol.seams import Clock
from tailrace.storage import heartbeat
from tailrace.storage.disk import Disk
from tailrace.storage.heartbeat import DOUBTS_MAX, Beat, Doubt

log = logging.getLogger("tailrace.broker.clock")

STEP_MS = 1_000  # what two clocks may drift apart unnoticed
TRUST_AFTER_MS = 86_400_000
TELL_STEP_MS = 60_000  # a step while running that is worth a T110
TELL_GAP_MS = 7 * 86_400_000  # a time without a broker that is worth one


class TrustedTime:
    """Invariant: ``_offset_ms`` is wall minus monotonic time, steps so far included; the doubts
    are those forward steps of it that are not yet believed."""

    def __init__(self, beat: Beat | None, *, now_s: float, wall_ms: int) -> None:
        """``beat``: the last one before this start; None: there is nothing to compare with."""
        now_ms = int(now_s * 1000)
        self._steady_since_ms = now_ms  # monotonic time of the last step
        self._doubts: list[Doubt] = []  # ``seen_ms`` as of monotonic time 0: may be negative
        self._offset_ms = wall_ms - now_ms
        if beat is not None:
            self._doubts = [Doubt(size, seen - now_ms) for size, seen in beat.doubts]
            self._offset_ms = beat.trusted_ms + sum(one.size_ms for one in beat.doubts) - now_ms
            self.observe(now_s, wall_ms)

    def observe(self, now_s: float, wall_ms: int) -> int:
        """Look at both clocks; by how many ms the wall clock has stepped since the last look."""
        now_ms = int(now_s * 1000)
        step_ms = wall_ms - now_ms - self._offset_ms
        self._doubts = [one for one in self._doubts if one.seen_ms + now_ms < TRUST_AFTER_MS]
        if abs(step_ms) <= STEP_MS:
            return 0
        self._offset_ms += step_ms
        self._steady_since_ms = now_ms
        if step_ms > 0:
            self._doubts.append(Doubt(step_ms, -now_ms))
            if len(self._doubts) > DOUBTS_MAX:
                before, last = self._doubts[-2:]
                self._doubts[-2:] = [Doubt(before.size_ms + last.size_ms, last.seen_ms)]
        else:
            self._take_back(-step_ms)
        return step_ms

    def _take_back(self, back_ms: int) -> None:
        """A step back ends the youngest doubts first; what is left of it lowers the time."""
        while self._doubts and back_ms > 0:
            size_ms, seen_ms = self._doubts.pop()
            if size_ms > back_ms:
                self._doubts.append(Doubt(size_ms - back_ms, seen_ms))
            back_ms -= size_ms

    def at_ms(self, now_s: float, wall_ms: int) -> int:
        """The trusted time, in ms since the epoch."""
        return self._steady_ms(now_s, wall_ms) - self.doubted_ms

    def age_ms(self, stamp_ms: int, now_s: float, wall_ms: int) -> int:
        """How long ago an append time was given, at least; negative if it lies ahead of now.

        A stamp from before the last step is at least as old as that step, one from after it is as
        old as the wall clock says: whichever it is, the lesser of both is safe.
        """
        since_step_ms = int(now_s * 1000) - self._steady_since_ms
        by_wall_ms = min(self._steady_ms(now_s, wall_ms) - stamp_ms, since_step_ms)
        return max(self.at_ms(now_s, wall_ms) - stamp_ms, by_wall_ms)

    def beat(self, now_s: float, wall_ms: int) -> Beat:
        """What the next start has to know."""
        now_ms = int(now_s * 1000)
        doubts = tuple(Doubt(size, seen + now_ms) for size, seen in self._doubts)
        return Beat(self.at_ms(now_s, wall_ms), doubts)

    @property
    def doubted_ms(self) -> int:
        """By how much the wall clock is ahead of the trusted time."""
        return sum(one.size_ms for one in self._doubts)

    def _steady_ms(self, now_s: float, wall_ms: int) -> int:
        """The wall clock as of the last look, moved on by the monotonic one."""
        return min(wall_ms, int(now_s * 1000) + self._offset_ms)


class Timekeeper:
    """The trusted clock of one broker."""

    def __init__(self, clock: Clock, disk: Disk, path: str) -> None:
        """``path``: of the ``clock`` file. Raises ``OSError``."""
        self._clock = clock
        self._disk = disk
        self._path = path
        self._beat = heartbeat.read(disk, path)
        now_s, wall_ms = self._read()
        self._time = TrustedTime(self._beat, now_s=now_s, wall_ms=wall_ms)

    def begin(self, oldest_ms: int | None) -> None:
        """Every log is open; ``oldest_ms`` is the oldest append time in them.

        Without a heartbeat all that is known is that it was once that time (R26): the newest one
        may have been given by a clock that was ahead.
        """
        other = "the time this data directory was last in use"
        if self._beat is None and oldest_ms is not None:
            other = "the oldest record, and no `clock` file tells more"
            self._beat = Beat(oldest_ms, ())
            now_s, wall_ms = self._read()
            self._time = TrustedTime(self._beat, now_s=now_s, wall_ms=wall_ms)
        gap_ms = self._time.doubted_ms
        if gap_ms >= TELL_GAP_MS:
            self._tell(gap_ms, other)

    def now_ms(self) -> int:
        """Never ahead of the true time unless the wall clock was wrong for a day."""
        now_s, wall_ms = self._look()
        return self._time.at_ms(now_s, wall_ms)

    def age_ms(self, stamp_ms: int) -> int:
        """See ``TrustedTime.age_ms``."""
        now_s, wall_ms = self._look()
        return self._time.age_ms(stamp_ms, now_s, wall_ms)

    @property
    def skew_s(self) -> float:
        """By how much the wall clock is ahead of the trusted time."""
        self._look()
        return self._time.doubted_ms / 1000

    def write_beat(self) -> None:
        """Remember the time for the next start. Blocks; raises ``OSError``, BrokerError T093."""
        now_s, wall_ms = self._look()
        heartbeat.write(self._disk, self._path, self._time.beat(now_s, wall_ms))

    async def keep_beat(self, offload: Offload) -> None:
        """``write_beat`` in a thread; a full disk may keep it from being written. T093."""
        now_s, wall_ms = self._look()
        beat = self._time.beat(now_s, wall_ms)
        try:
            await offload.run(heartbeat.write, self._disk, self._path, beat)
        except OSError as error:
            log.debug("the clock file could not be written: %s", error)

    def _look(self) -> tuple[float, int]:
        now_s, wall_ms = self._read()
        step_ms = self._time.observe(now_s, wall_ms)
        if abs(step_ms) >= TELL_STEP_MS:
            self._tell(step_ms, "its monotonic clock")
        return now_s, wall_ms

    def _read(self) -> tuple[float, int]:
        # In this order: between the two reads time may pass, which then looks like a step forward
        # that is taken back by the next look, not like one back that is doubted for a day.
        now_s = self._clock.now()
        return now_s, self._clock.wall_ms()

    def _tell(self, step_ms: int, other: str) -> None:
        notice = texts.clock_skew(skew_s=step_ms / 1000, other=other)
        log.warning("%s", notice, extra={"event": "clock.skew", "code": notice.code})
