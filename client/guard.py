"""Who may use a client: the process, the thread and the event loop that opened it (C9).

One ``Guard`` per public object. The check on the hot path is a comparison and a call: a fork and a
close both set ``thread`` to a value no thread has, and ``refuse`` then finds out which it was.
An asyncio loop that runs, runs in the thread that opened it or in another, and there is only one in
each: so it is asked whether it does, not asyncio which one it is (which before Python 3.12 calls
``getpid`` each time, and took half of what ``enqueue_nowait`` did).
"""

import os
import sys
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any, NoReturn, cast

from tailrace.protocol import texts_client

NO_THREAD = -1
_guards: "weakref.WeakSet[Guard]" = weakref.WeakSet()


def _in_forked_child() -> None:
    for guard in list(_guards):
        guard.trip()


os.register_at_fork(after_in_child=_in_forked_child)


def running_loop_getter() -> Callable[[], object]:
    """A fast function for "the asyncio loop that runs in this thread", None under trio.

    asyncio is not imported for it: where it runs, it has been.
    """
    events = sys.modules.get("asyncio.events")
    if events is None:
        return lambda: None
    return cast(Callable[[], object], vars(events)["_get_running_loop"])


def own_asyncio_loop() -> Any:
    """The asyncio loop that whoever asks works in; None in a task of trio, also where an asyncio
    loop of this thread waits for all of it (``trio.run`` in a notebook's cell)."""
    trio: Any = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        return None
    return running_loop_getter()()


class Guard:
    """Lets pass the loop it was made in, until ``close``."""

    __slots__ = ("__weakref__", "_opened_by", "_pid", "closed", "running", "thread", "what")

    def __init__(self, what: str) -> None:
        self.what = what  # "Client", "Producer", "Consumer"
        self.closed = False
        running_loop = running_loop_getter()
        loop: Any = running_loop()
        self.running: Callable[[], bool]  # the loop that it was made in; under trio: no other
        if loop is None:
            self.running = lambda: running_loop() is None
        else:
            self.running = loop.is_running
        self.thread = self._opened_by = get_ident()
        self._pid = os.getpid()
        _guards.add(self)

    def close(self) -> None:
        """From now on every use is refused."""
        self.closed = True
        self.trip()

    def trip(self) -> None:
        """From now on the fast check fails, and the caller looks closer."""
        self.thread = NO_THREAD

    def check(self) -> None:
        """Raise ForkedClientError T053, UsageError T054 or T055, or return."""
        if get_ident() != self.thread or not self.running():
            self.refuse()

    def refuse(self) -> NoReturn:
        """Say why."""
        pid = os.getpid()
        if pid != self._pid:
            raise texts_client.forked(created_pid=self._pid, pid=pid)
        if self.closed:
            raise texts_client.already_closed(self.what)
        own_thread = get_ident() == self._opened_by
        raise texts_client.wrong_thread(self.what, kind="event loop" if own_thread else "thread")
