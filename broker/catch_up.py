"""How fast replicas that are not in sync may catch up: so many bytes a second, all together (pure).

The price of speed is paid by producers and consumers of everything else, on both brokers' disks and
on the network between them.
"""

STEP_BYTES = 256 * 1024
STEP_S = 1 / 128  # about a round trip and a sync


class CatchUp:
    """A budget that grows with time and may be overdrawn by one answer; None: unlimited."""

    def __init__(self, rate_bytes: int | None) -> None:
        self._rate_bytes = rate_bytes
        self._free_at = 0.0  # when all that was taken is paid for

    def step_bytes(self, most: int) -> int:
        """Of one answer: acks may have to wait behind it, so no more than the rate asks for."""
        if self._rate_bytes is None:
            return most
        return min(most, max(STEP_BYTES, int(self._rate_bytes * STEP_S)))

    def take(self, size_bytes: int, now: float) -> float:
        """So much was copied: seconds until more may be."""
        if self._rate_bytes is None:
            return 0.0
        self._free_at = max(self._free_at, now) + size_bytes / self._rate_bytes
        return self._free_at - now
