"""A simulated process that stands still: as after SIGSTOP, none of its code runs.

Each of its tasks is driven by ``drive``, which a client calls for its tasks and which ``adopt``
does for every task that is spawned where ``FREEZER`` is set. While the process is frozen timers
end, bytes arrive and locks are handed on as always, but whoever is woken by that goes on only
after the thaw. So a member of a group can be silent for longer than its session, and finish then
what it was about; and so can a broker.
"""

import math
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar
from types import coroutine
from typing import Any, TypeVar, cast

import trio

from tailrace.client.client import Client

T = TypeVar("T")


class Freezer:
    """Of one process."""

    def __init__(self) -> None:
        self._until = -math.inf
        self._thawed = trio.Event()

    @property
    def frozen(self) -> bool:
        return trio.current_time() < self._until

    def freeze(self, seconds: float) -> None:
        """For so long nothing goes on, unless it is thawed; at least as long as said before."""
        self._until = max(self._until, trio.current_time() + seconds)
        self._thawed = trio.Event()

    def thaw(self) -> None:
        """Everything goes on."""
        self._until = -math.inf
        self._thawed.set()

    async def drive(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` as a part of the process; what it returns or raises."""
        return await _driven(work, self)

    async def wait(self) -> None:
        """While it is frozen, whoever is cancelled meanwhile."""
        while self.frozen:
            with trio.CancelScope(shield=True, deadline=self._until):
                await self._thawed.wait()


class FreezableClient(Client):
    """A client of which the background tasks, too, stand still. ``freezer`` is set before use."""

    freezer: Freezer

    def _start_soon(self, fn: Callable[..., Any], *args: object) -> None:
        super()._start_soon(self._drive, fn, *args)

    async def _drive(self, fn: Callable[..., Coroutine[Any, Any, None]], *args: object) -> None:
        await self.freezer.drive(fn(*args))


FREEZER: ContextVar[Freezer] = ContextVar("FREEZER")  # of the process that a task belongs to


def adopt(task: trio.lowlevel.Task) -> None:
    """For a task that was spawned just now: it stands still whenever its process does."""
    freezer = task.context.get(FREEZER)
    if freezer is not None:
        task.coro = cast(Any, freezer.drive(task.coro))


@coroutine
def _driven(work: Coroutine[Any, Any, T], freezer: Freezer) -> Generator[Any, Any, T]:
    """Hand every wait of ``work`` on to trio; its end reaches ``work`` only while not frozen."""
    answer: Any = None
    while True:
        try:
            request = work.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result
        answer = yield request  # trio answers by outcomes, also when it cancels: nothing is raised
        if freezer.frozen:
            waiting: Awaitable[None] = freezer.wait()
            yield from waiting.__await__()
