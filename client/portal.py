"""One asyncio loop in a background thread, and the way from plain code into it (``sync.py``).

Invariants:
- the client lives in one task of that loop, from its ``__aenter__`` to its ``__aexit__``;
- a call from outside runs as a task of the loop; Ctrl-C leaves the call at once and cancels it;
- a forked child has no such thread: every call there fails at once, before it takes a lock.
"""

import asyncio
import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, Literal, ParamSpec, TypeVar

from tailrace.client.client import Client
from tailrace.client.guard import running_loop_getter
from tailrace.client.producer import Producer
from tailrace.protocol import texts_client
from tailrace.protocol.errors import TailraceError, UsageError

P = ParamSpec("P")
T = TypeVar("T")

EXIT_FLUSH_S = 2.0  # in all, for the clients still open at interpreter exit (C8)
_open: "weakref.WeakSet[Portal]" = weakref.WeakSet()


class Portal:
    """The thread of one client."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.producers: dict[Producer[Any, Any], tuple[str, int]] = {}  # and where they were made
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        self._ended: Future[None] = Future()
        self._told = False  # what it ended with
        self._opened = False  # it was
        self._calls: dict[Future[Any], Coroutine[Any, Any, Any]] = {}  # under way

    @property
    def forked(self) -> bool:
        """Whether this is another process than the one that made it."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """ForkedClientError T053, or UsageError T052 inside a running event loop."""
        if self.forked:
            raise texts_client.forked(created_pid=self._pid, pid=os.getpid())
        if (loop := running_loop()) is not None:
            raise texts_client.sync_inside_loop(loop)

    def open(self) -> None:
        """Start the thread and open the client; raises what its ``__aenter__`` raises.

        One that is open stays so: a test's broker hands out clients that can be used at once, and
        in a ``with`` as well.
        """
        self.check()
        if self in _open:
            return
        if self._thread is not None:
            raise texts_client.already_closed("Client")
        opened: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._main, args=(self._loop, opened), name="tailrace.sync", daemon=True
        )
        self._thread.start()
        try:
            opened.result()
        except KeyboardInterrupt:
            self._request_stop()
            raise
        _open.add(self)

    def close(self) -> None:
        """Close the client and end the thread; raises what its ``__aexit__`` raises.

        Safe to call again. Ctrl-C: the closing goes on in the background.
        """
        self.check()
        if self._thread is None:
            return
        _open.discard(self)
        self._request_stop()
        failure = self._ended.exception()
        self._thread.join()
        if failure is not None and not self._told:
            self._told = True
            raise failure

    def call(self, fn: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``fn`` on the loop and wait for what it returns or raises.

        Where a failure of a background task has ended the client, that failure is raised (C10).
        """
        try:
            future = self.start(fn, *args, **kwargs)
            try:
                return future.result()
            except KeyboardInterrupt:
                future.cancel()
                raise
        except CancelledError:
            closed = texts_client.already_closed("Client")
        except UsageError as error:
            if error.code != "T055":
                raise
            closed = error
        raise self.crash() or closed

    def crash(self) -> BaseException | None:
        """What has ended the client, if nobody closed it; waits until it has ended."""
        if not self._opened or self._stop.is_set() or self.client.runtime.alive():
            return None
        failure = self._ended.exception()
        self._told = True
        return failure

    def start(
        self, fn: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> "Future[T]":
        """Run ``fn`` on the loop; its outcome comes by the future."""
        self.check()
        if self._loop is None:
            raise texts_client.not_open("Client")
        coroutine = fn(*args, **kwargs)
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:  # the loop is closed
            coroutine.close()
            raise texts_client.already_closed("Client") from None
        self._calls[future] = coroutine
        future.add_done_callback(self._forget)
        if self._loop.is_closed():
            self._end_calls()
        return future

    def _forget(self, future: "Future[Any]") -> None:
        self._calls.pop(future, None)

    def _end_calls(self) -> None:
        """Those that came between the loop's last turn and its end: nobody will run them."""
        for future, coroutine in list(self._calls.items()):
            future.cancel()
            coroutine.close()

    def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a plain function in the loop's thread."""

        async def on_loop() -> T:
            return fn(*args, **kwargs)

        return self.call(on_loop)

    def tell(self, fn: Callable[[], object]) -> None:
        """Run a plain function there some time soon; nobody waits for it."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(fn)

    def _main(self, loop: asyncio.AbstractEventLoop, opened: "Future[None]") -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(self._live(opened))
        self._end_calls()

    async def _live(self, opened: "Future[None]") -> None:
        try:
            async with self.client:
                self._opened = True
                opened.set_result(None)
                await self._stop.wait()
        except BaseException as error:  # the border between the threads
            if not opened.done():
                opened.set_exception(error)
                self._told = True
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    def _request_stop(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)


def running_loop() -> Literal["trio", "asyncio"] | None:
    """Which event loop runs in this thread."""
    if running_loop_getter()() is not None:
        return "asyncio"
    trio: Any = sys.modules.get("trio")
    return "trio" if trio is not None and trio.lowlevel.in_trio_run() else None


def _flush_at_exit() -> None:
    """C8: whoever forgot to close loses nothing that two seconds can save."""
    portals = [portal for portal in list(_open) if not portal.forked]
    if not portals:
        return
    now = portals[0].client.clock.now
    ends_at = now() + EXIT_FLUSH_S
    flushes = [
        (producer, place, portal.start(producer.flush))
        for portal in portals
        for producer, place in portal.producers.items()
    ]
    for producer, (file, line), flush in flushes:
        try:
            flush.result(max(0.0, ends_at - now()))
        except TimeoutError:
            pass
        except (TailraceError, CancelledError) as error:
            print(error, file=sys.stderr)
        if left := producer.health().buffered_records:
            notice = texts_client.never_closed(file=file, line=line, undelivered=left)
            print(notice, file=sys.stderr)


atexit.register(_flush_at_exit)


def close_after(close: Callable[[], object], exc: BaseException | None) -> None:
    """End a ``with`` block: its own exception leaves unchanged, with ours as a note (C10)."""
    try:
        close()
    except Exception as error:
        if exc is None:
            raise
        if error is not exc:
            exc.add_note(f"also failed: {error}")
