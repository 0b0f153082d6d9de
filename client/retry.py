"""How long to wait before the next attempt (C11)."""

from random import Random

from tailrace.protocol.errors import TailraceError
from tailrace.protocol.units import format_count, format_seconds

FIRST_MAX_S = 0.2
LIMIT_S = 5.0
LEADER_LIMIT_S = 0.5  # while a new leader is awaited: it may be there at any moment
LEADER_FIRST_MAX_S = 0.03  # one that was just made knows of it some ten milliseconds later


# What a broker answers, or is answered for, whose view of the cluster may be old, too.
DOUBTFUL = frozenset({"T001", "T032", "T034", "T045", "T093", "T100"})
DISK_FAILED = "T093"  # of the broker that answers, which ends: others lead what it led by then


def fails_over(error: TailraceError, *, several: bool) -> bool:
    """Whether a disk failed, and others lead by now what that broker led."""
    return several and error.code == DISK_FAILED


def passes(error: TailraceError, *, several: bool) -> bool:
    """Whether asking again may help: later or, where several brokers are known, elsewhere."""
    return error.retriable or fails_over(error, several=several)


class Backoff:
    """Delays of one thing that keeps failing: 0.1-0.2 s, then twice that, up to 2.5-5 s.

    Half of each delay is jitter, so that the clients of a broker that comes back do not all
    knock at the same moment. The randomness is the client's, which makes a simulation repeat.
    ``limit_s``: no delay is longer.
    """

    def __init__(self, random: Random, limit_s: float | None = None) -> None:
        self.attempts = 0
        self._random = random
        self._limit_s = limit_s

    def next(self) -> float:
        """Seconds to wait before the next attempt, which is number ``attempts`` from now on."""
        return self._next(FIRST_MAX_S, LIMIT_S)

    def next_leader(self) -> float:
        """The same where another leader is awaited: shorter from the first one on."""
        return self._next(min(FIRST_MAX_S, LEADER_FIRST_MAX_S), LEADER_LIMIT_S)

    def _next(self, first_max_s: float, limit_s: float) -> float:
        longest = min(limit_s, first_max_s * 2.0 ** min(self.attempts, 32))
        if self._limit_s is not None:
            longest = min(longest, self._limit_s)
        self.attempts += 1
        return longest * (0.5 + self._random.random() / 2)

    def reset(self) -> None:
        """It works again: the next failure is the first one."""
        self.attempts = 0


def reconnecting(address: str, reason: str, attempt: int, delay_s: float) -> str:
    """The line that every attempt to reconnect logs."""
    return f"reconnecting {address} ({reason}), attempt {attempt}, next in {delay_s:.1f} s"


def reconnected(address: str, outage_s: float, attempts: int) -> str:
    """The line that says that it is over."""
    tried = "1 attempt" if attempts == 1 else f"{format_count(attempts)} attempts"
    return f"reconnected to {address} after {format_seconds(outage_s)} s, {tried}"
