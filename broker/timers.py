"""Deadlines without a task each: one task sleeps until the earliest of them.

A consumer at the end of its log parks here for seconds, a thousand of them cost nothing meanwhile.
Callbacks run in the timers' task, synchronously, in the order of their deadlines.
"""

import heapq
import math
from collections.abc import Callable

import trio

_COMPACT_FROM = 256  # cancelled timers in the heap; fewer are left until their time comes
SHARE = 8  # one in so many parts of a wait may be cut off


class Timer:
    """One callback to come."""

    __slots__ = ("_timers", "callback")

    def __init__(self, timers: "Timers", callback: Callable[[], None]) -> None:
        self._timers = timers
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the callback; fine if it was called already."""
        if self.callback is not None:
            self.callback = None
            self._timers.cancelled()


class Timers:
    """Invariant: the task is asleep until the first deadline in the heap, or about to wake."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0  # breaks ties: equal deadlines fire in the order they were set
        self._cancelled = 0
        self._shared = 0
        self._scope: trio.CancelScope | None = None  # the task's sleep

    def at(self, deadline: float, callback: Callable[[], None]) -> Timer:
        """Call back at ``deadline``, in trio's time."""
        timer = Timer(self, callback)
        self._count += 1
        heapq.heappush(self._heap, (deadline, self._count, timer))
        if self._scope is not None and deadline < self._scope.deadline:
            self._scope.deadline = deadline
        return timer

    def shared(self, wait_s: float) -> float:
        """A deadline at most ``wait_s`` away; one that is far falls on a whole second, so that the
        broker wakes up once for many of them. That cuts off less than an eighth, of each another
        share: who began to wait together does not come due together."""
        latest = trio.current_time() + wait_s
        seconds = int(wait_s / SHARE)
        if seconds == 0:
            return latest
        self._shared += 1
        return math.floor(latest) - self._shared % seconds

    def cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled >= _COMPACT_FROM and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    async def run(self) -> None:
        while True:
            deadline = self._heap[0][0] if self._heap else math.inf
            with trio.CancelScope(deadline=deadline) as self._scope:
                await trio.sleep_forever()
            self._scope = None
            self._fire(trio.current_time())

    def _fire(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now:
            _, _, timer = heapq.heappop(self._heap)
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled -= 1
            else:
                callback()
