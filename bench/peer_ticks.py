"""Intended send times as a file descriptor that can be waited for: exact, and asleep in between.

An event loop's timers are a millisecond wide, and staying awake for them takes one of two cores
away from the broker that is measured. A timerfd (Linux) wakes a blocking read or any event loop to
some 50 us, and tells how many sends are due if somebody was late.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

from tailrace.bench.peer_job import Job

LEAD_NS = 50_000_000  # before the first send
ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class _Timer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


class Ticks:
    """``count`` moments at a fixed rate; a context manager, begun when it is entered."""

    def __init__(self, job: Job) -> None:
        self.left = job.count
        self._step_ns = 1_000_000_000 // job.rate_per_s
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = -1
        self._next_ns = 0

    def __enter__(self) -> "Ticks":
        self.fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_CLOEXEC)
        self._next_ns = time.perf_counter_ns() + LEAD_NS  # perf_counter is CLOCK_MONOTONIC here
        timer = _Timer(*divmod(self._step_ns, 10**9), *divmod(self._next_ns, 10**9))
        if self.fd < 0 or self._libc.timerfd_settime(self.fd, ABSOLUTE, ctypes.byref(timer), None):
            raise OSError(ctypes.get_errno(), "no timerfd")
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self.fd)

    def due(self) -> list[int]:
        """Wait for the next moment; all that have come by then, in ns of ``perf_counter_ns``.

        None where the descriptor does not block and nothing is due.
        """
        try:
            count = min(self.left, int.from_bytes(os.read(self.fd, 8), "little"))
        except BlockingIOError:
            return []
        moments = [self._next_ns + number * self._step_ns for number in range(count)]
        self._next_ns += count * self._step_ns
        self.left -= count
        return moments


async def paced(job: Job, send: Callable[[list[int]], Awaitable[None]]) -> None:
    """Await ``send`` with the moments that are due, until all of a job were."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    with Ticks(job) as ticks:
        os.set_blocking(ticks.fd, False)
        loop.add_reader(ticks.fd, woken.set)
        try:
            while ticks.left:
                await woken.wait()
                woken.clear()
                if moments := ticks.due():
                    await send(moments)
        finally:
            loop.remove_reader(ticks.fd)
