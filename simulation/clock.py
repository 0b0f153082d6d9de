"""The clocks of one simulated node: virtual time, and clocks that may be wrong."""

import trio

EPOCH_MS = 1_700_000_000_000  # where every simulation starts, 2023-11-14T22:13:20Z


class SimClock:
    """``protocol.seams.Clock`` on trio's clock.

    ``skew_ms`` is how far this node's wall clock is off, ``rate`` how much faster than others its
    clocks go. Timers are trio's: they are right everywhere.
    """

    def __init__(self, skew_ms: int = 0) -> None:
        self.skew_ms = skew_ms
        self._rate = 1.0
        self._turned = (0.0, 0.0)  # when the rate was set: trio's time, and this node's

    @property
    def rate(self) -> float:
        return self._rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._turned = trio.current_time(), self._elapsed()
        self._rate = rate

    def now(self) -> float:
        return trio.current_time()

    def boottime(self) -> float:
        """Seconds since the machine was switched on; a process that stands still does not stop
        it (R14)."""
        return self._elapsed()

    def wall_ms(self) -> int:
        return EPOCH_MS + int(self._elapsed() * 1000) + self.skew_ms

    def _elapsed(self) -> float:
        since, elapsed = self._turned
        return elapsed + (trio.current_time() - since) * self._rate
