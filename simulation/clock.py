"""The clocks of one simulated node: virtual time, and a wall clock that may be wrong."""

import trio

EPOCH_MS = 1_700_000_000_000  # where every simulation starts, 2023-11-14T22:13:20Z


class SimClock:
    """``protocol.seams.Clock`` on trio's clock. ``skew_ms`` is how far this node's wall is off."""

    def __init__(self, skew_ms: int = 0) -> None:
        self.skew_ms = skew_ms

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return EPOCH_MS + int(trio.current_time() * 1000) + self.skew_ms
