"""Which broker a partition is read from: its leader, or a follower in the reader's rack (pure).

The leader names a follower nearby to a reader that tells its rack (KIP-392). From then on that one
is asked, but for ``NEAR_S`` only: then the leader is asked again, who knows whether the follower
still keeps up. After any error of a follower the leader is asked at once, and is told no rack for a
while.

Times are seconds of the client's monotonic clock.
"""

import math
from dataclasses import dataclass

NEAR_S = 10.0
BARRED_S = 3.0


@dataclass(slots=True)
class ServedBy:
    """Of one partition."""

    leader: str | None = None  # broker id; None: to be found out
    leader_epoch: int = -1  # of the newest leader that was heard of
    near: str | None = None  # a follower that is asked instead
    _last: str | None = None  # who led in that epoch
    _near_until: float = math.inf
    _barred_until: float = -math.inf

    def broker(self, now: float) -> str | None:
        """Whom to ask."""
        if self.near is not None and now >= self._near_until:
            self.near = None
        return self.leader if self.near is None else self.near

    def tells_rack(self, now: float) -> bool:
        """Whether the leader may name a follower."""
        return now >= self._barred_until

    def led_by(self, leader: str | None, epoch: int) -> bool:
        """Who leads, as somebody said; whether that is another one than was asked before."""
        if 0 <= epoch < self.leader_epoch:
            return False
        moved = leader is not None and (leader, epoch) != (self._last, self.leader_epoch)
        self.leader, self.leader_epoch = leader, epoch
        if moved:
            self._last, self.near = leader, None
        return moved

    def forget(self) -> None:
        """The leader is another one, perhaps."""
        self.leader = self.near = None

    def go_near(self, broker_id: str, now: float) -> None:
        """The leader named a follower."""
        self.near, self._near_until = broker_id, now + NEAR_S

    def leave_near(self, now: float) -> None:
        """The follower is of no use."""
        self.near, self._barred_until = None, now + BARRED_S
