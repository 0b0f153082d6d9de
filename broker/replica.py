"""One partition's leadership: epoch, in-sync set, high watermark (pure).

Here only what one node needs: the in-sync set is this broker. Followers' ends and the maximal
in-sync set join it with the cluster.
"""

from dataclasses import dataclass

from tailrace.broker.config import Durability


@dataclass(slots=True)
class Replica:
    """Invariants: ``high_watermark`` never falls (S11) and never passes the log's end."""

    leader_epoch: int
    durability: Durability
    high_watermark: int

    def observe(self, *, end: int, flushed: int) -> bool:
        """Take note of the log's end and of what is durable; whether the watermark rose.

        With ``fsync`` it follows what is flushed (S1), else what is written.
        """
        assert flushed <= end, "more flushed than written"
        reached = flushed if self.durability == "fsync" else end
        if reached <= self.high_watermark:
            return False
        self.high_watermark = reached
        return True
