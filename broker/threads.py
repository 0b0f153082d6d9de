"""Worker threads: the production ``Offload``."""

import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, ParamSpec, TypeVar

import outcome
import trio

from tailrace.broker.world import Offload

P = ParamSpec("P")
T = TypeVar("T")

THREADS_MAX = 8  # readers of cold ranges, verifiers: as many as a disk can serve at once


class ThreadOffload:
    """Worker threads of trio's pool."""

    def __init__(self) -> None:
        self._limiter: trio.CapacityLimiter | None = None  # belongs to one trio run

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._limiter is None:
            self._limiter = trio.CapacityLimiter(THREADS_MAX)
        return await trio.to_thread.run_sync(partial(work, *args, **kwargs), limiter=self._limiter)

    def dedicated(self, name: str) -> Offload:
        return DedicatedThread(name)


class DedicatedThread:
    """One thread that works through a queue: 81 us a round trip against 134 of the pool's (R32).

    It ends when nobody holds this object any more. A cancelled ``run`` waits for the result.
    """

    def __init__(self, name: str) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = Thread(target=_work_through, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()
        weakref.finalize(self, self._jobs.put, None)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()
        self._jobs.put((partial(work, *args, **kwargs), task, token))
        result: T = await trio.lowlevel.wait_task_rescheduled(_not_abandoned)
        return result

    def dedicated(self, name: str) -> Offload:
        return DedicatedThread(name)


_Job = tuple[Callable[[], Any], trio.lowlevel.Task, trio.lowlevel.TrioToken]


def _not_abandoned(raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


def _work_through(jobs: "SimpleQueue[_Job | None]") -> None:
    while (job := jobs.get()) is not None:
        work, task, token = job
        result = outcome.capture(work)
        with suppress(trio.RunFinishedError):  # else nobody is left to be told
            token.run_sync_soon(trio.lowlevel.reschedule, task, result)
        del job, work, task, token, result  # nothing of the last job outlives it while we wait
