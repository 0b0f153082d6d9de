"""What every part of one client shares, in one value; the simulation gives another set."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tailrace.client.events import Events, StartSoon
from tailrace.client.options import ClientOptions
from tailrace.protocol.seams import ClientNet, Clock


class SystemClock:
    """The machine's clocks, as bare C functions: the hot path reads one for every record."""

    now = staticmethod(time.monotonic)

    @staticmethod
    def wall_ms() -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Runtime:
    """The outside of a client."""

    net: ClientNet
    clock: Clock
    random: Random  # for jitter only
    options: ClientOptions
    events: Events
    start_soon: StartSoon  # into the client's task group, which ends them all
    alive: Callable[[], bool]  # whether those tasks still run
