"""Producers and consumers of a bench as processes of their own, which begin at the same moment.

    with Actor(produce, url, topic) as one, Actor(consume, url, topic) as other:
        go(one, other)
        sent, received = one.result(), other.result()

The first argument of an actor's coroutine is its ``Gate``: it prepares, opens its connections,
touches its memory, then awaits ``gate.ready()``, which returns when all are ready. What it returns
is its result. It may pass several gates; each needs a ``go``.
"""

import asyncio
import multiprocessing
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing.connection import Connection
from selectors import SelectSelector
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import anyio
import anyio.to_thread

from tailrace.bench.cpus import SENDERS, pin

P = ParamSpec("P")
T = TypeVar("T")
SECONDS_MAX = 300.0  # that an actor may take to become ready, or to end
_SPAWN = multiprocessing.get_context("spawn")  # a fork would share what the parent has open


class Gate:
    """Where an actor waits for the others."""

    def __init__(self, line: "Connection[Any, Any]") -> None:
        self._line = line

    async def ready(self) -> None:
        """Say so, and wait for ``go``."""
        self._line.send(("ready", None))
        await anyio.to_thread.run_sync(self._line.recv)


class Actor(Generic[T]):
    """See the module. A context manager that ends the process, whatever became of it."""

    def __init__(
        self,
        work: Callable[Concatenate[Gate, P], Awaitable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        self._line, self._theirs = _SPAWN.Pipe()
        self._call = partial(work, **kwargs)
        self._args = args
        self._role, self._fine_timers = SENDERS, False

    def placed(self, role: str, *, fine_timers: bool = False) -> Self:
        """Give it the processors of this role instead of the senders', and its event loop timers
        of microseconds (with at most 1,000 files)."""
        self._role, self._fine_timers = role, fine_timers
        return self

    def __enter__(self) -> Self:
        work = (self._call, self._theirs, self._args, self._fine_timers)
        self._process = _SPAWN.Process(target=_act, args=work, daemon=True)
        self._process.start()
        pin(self.pid, self._role)
        self._theirs.close()  # so that the end of the process is the end of the line
        return self

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc is not None:
            self._process.terminate()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._line.close()

    def wait_ready(self) -> None:
        """RuntimeError if it failed before."""
        self._expect("ready")

    def go(self) -> None:
        """Let it through its gate."""
        self._line.send("go")

    def result(self) -> T:
        """What its coroutine returned; RuntimeError if that failed."""
        found: T = self._expect("done")
        return found

    def _expect(self, kind: str) -> Any:
        if not self._line.poll(SECONDS_MAX):
            raise RuntimeError(f"an actor said nothing for {SECONDS_MAX:.0f} s")
        try:
            said, what = self._line.recv()
        except EOFError:
            raise RuntimeError("an actor ended without a word") from None
        if said == "failed":
            raise RuntimeError(f"an actor failed:\n{what}")
        assert said == kind, f"an actor is {said}, not {kind}"
        return what


def go(*actors: Actor[Any], before: Callable[[], None] = lambda: None) -> None:
    """Wait until all are ready, do what is to be done right ``before``, and let them begin."""
    for one in actors:
        one.wait_ready()
    before()
    for one in actors:
        one.go()


def _act(
    work: Callable[..., Awaitable[Any]],
    line: "Connection[Any, Any]",
    args: tuple[Any, ...],
    fine_timers: bool,
) -> None:
    """The actor's process."""
    options = {"loop_factory": fine_loop} if fine_timers else {}
    try:
        done = anyio.run(work, Gate(line), *args, backend="asyncio", backend_options=options)
        line.send(("done", done))
    except BaseException:  # the border of the process: whoever waits is told
        line.send(("failed", traceback.format_exc()))


def fine_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are exact: those of epoll are whole milliseconds, which is more
    than what is measured takes. ``select`` has microseconds, and at most 1,000 files."""
    return asyncio.SelectorEventLoop(SelectSelector())
