"""A bell that is rung in any thread, and waited for in any trio run."""

import threading
from contextlib import suppress

import trio


class Bell:
    """Whoever waits has called ``listen`` before looking, so no ring is missed in between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    def listen(self) -> trio.Event:
        """Set at the next ring, in the trio run that called this."""
        event = trio.Event()
        with self._lock:
            self._waiting.append((trio.lowlevel.current_trio_token(), event))
        return event

    def ring(self) -> None:
        """Wake everybody who listens."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for token, event in waiting:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(event.set)
