"""Calls into an event loop from another thread, which never wait for it.

anyio has only calls that wait for their result (``from_thread.run_sync``): a thread that keeps
sessions alive while the loop is blocked cannot use those.
"""

import sys
from collections.abc import Callable
from threading import get_ident
from typing import Any

from tailrace.client.guard import own_asyncio_loop


class LoopCalls:
    """Made on the event loop that is to be called; for any thread."""

    def __init__(self) -> None:
        self.thread = get_ident()  # the one the loop runs in
        self.ended = False  # the loop has, as far as is known
        loop = own_asyncio_loop()
        if loop is None:
            trio: Any = sys.modules["trio"]  # it runs here, so somebody has imported it
            token = trio.lowlevel.current_trio_token()
            self._soon: Callable[[Callable[[], None]], object] = token.run_sync_soon
            self._runs: Callable[[], bool] = _always
        else:
            self._soon = loop.call_soon_threadsafe
            self._runs = loop.is_running

    def soon(self, fn: Callable[[], None]) -> bool:
        """Have ``fn`` called; False if the loop has ended. ``fn`` may not fail."""
        try:
            self._soon(fn)
        except RuntimeError:  # trio.RunFinishedError is one
            self.ended = True
            return False
        return True

    def runs(self) -> bool:
        """Whether the loop is being run: one that is not cannot be blocked."""
        return self._runs()


def _always() -> bool:
    return True
