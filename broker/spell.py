"""How long a task keeps the event loop to itself, in the middle of work that has no waits."""

from collections.abc import Awaitable, Callable

import trio

SPELL_S = 0.00015  # the last bit of work goes beyond it: most steps end within 0.2 ms
LOOKS_MAX = 16  # where the clock stands still


class Spell:
    """Begins when it is made, and anew after each rest. ``rest`` is what others get then."""

    __slots__ = ("_ends_at", "_looks", "_rest")

    def __init__(self, rest: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint) -> None:
        self._rest = rest
        self._begin()

    @property
    def over(self) -> bool:
        """Whether it is time for a rest. To be asked between two steps of the work."""
        self._looks += 1
        return self._looks >= LOOKS_MAX or trio.current_time() >= self._ends_at

    async def pause(self) -> None:
        """Rest, if it is time."""
        if self.over:
            await self.rest()

    async def rest(self) -> None:
        """Rest, in any case."""
        await self._rest()
        self._begin()

    def _begin(self) -> None:
        self._looks = 0
        self._ends_at = trio.current_time() + SPELL_S
