"""When tails send what has come: all of them in one go, one after another.

A wake-up of an event loop that slept costs far more than what a tail does then, as nothing of it is
in the processor's caches: twenty tails that woke at times of their own took 55 ms of it per
second, in one go they take a tenth of that. After each ``Spell`` of them the loop turns, so that
nobody waits for long; and as long as sends wait for the disk the next one waits, too.
"""

import math
from collections.abc import Awaitable, Callable

import trio

from tailrace.broker.bell import Bell
from tailrace.broker.spell import Spell


class Turns:
    """``let`` is called for each of those that asked, ``pause_s`` after the last go at the
    soonest. ``give_way`` is awaited between two of them while somebody is in a hurry and the go is
    not late."""

    def __init__(
        self,
        pause_s: Callable[[], float],
        in_hurry: Callable[[], bool],
        give_way: Callable[[], Awaitable[None]],
    ) -> None:
        self._pause_s = pause_s
        self._in_hurry = in_hurry
        self._give_way = give_way
        self._asked: dict[Callable[[], None], None] = {}
        self._bell = Bell()

    def ask(self, let: Callable[[], None]) -> None:
        """Be called in the next go, once."""
        self._asked[let] = None
        self._bell.ring()

    async def run(self) -> None:
        """For ever."""
        next_at = -math.inf
        while True:
            await self._bell.wait()
            await trio.sleep_until(next_at)
            next_at = trio.current_time() + self._pause_s()
            asked, self._asked = self._asked, {}
            spell = Spell(self._give_way)
            for let in asked:
                late = trio.current_time() >= next_at
                if late:
                    await trio.lowlevel.checkpoint()
                elif self._in_hurry() or spell.over:
                    await spell.rest()
                let()
            await trio.lowlevel.checkpoint()
