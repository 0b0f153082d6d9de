"""Threads, simulated: the work runs inline, at some moment within a simulated time.

Whether it runs at the beginning, in the middle or at the end of that time is left to chance: a
sync that took effect early and one that took effect late have different victims (a caller that
counts bytes written meanwhile as synced, and one that acks before the end).
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import ParamSpec, TypeVar

import trio

from tailrace.simulation.life import Life

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Pace:
    """How long offloaded work takes, in seconds; ``stall`` comes on top (a slow disk)."""

    mean: float = 0.0005
    stall: float = 0.0


class SimOffload:
    """``broker.world.Offload`` for one process."""

    def __init__(self, life: Life, rng: Random, pace: Pace, *, in_order: bool = False) -> None:
        self._life = life
        self._rng = rng
        self._pace = pace
        self._turn = trio.StrictFIFOLock() if in_order else None

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._turn is None:
            return await self._run(lambda: work(*args, **kwargs))
        async with self._turn:
            return await self._run(lambda: work(*args, **kwargs))

    def dedicated(self, name: str) -> "SimOffload":
        return SimOffload(self._life, self._rng, self._pace, in_order=True)

    async def _run(self, work: Callable[[], T]) -> T:
        self._life.check()
        seconds = self._rng.expovariate(1 / self._pace.mean) + self._pace.stall
        before = seconds * self._rng.choice((0.0, 0.5, 1.0))
        await _sleep_through(before)
        self._life.check()
        result = work()
        await _sleep_through(seconds - before)
        self._life.check()
        return result


async def _sleep_through(seconds: float) -> None:
    """A thread at work cannot be cancelled, only waited for (R32)."""
    with trio.CancelScope(shield=True):
        await trio.sleep(seconds)
