"""Fetches of followers that have something to send: all of them at the end of a turn's appends.

One append after another would wake a follower with the first and let the others wait for its next
question. So whoever is woken is only noted down, and served when all that came together is written.
"""

from collections.abc import Callable
from typing import Protocol

import trio

from tailrace.broker.timers import Timer, Timers


class Waiting(Protocol):
    """A fetch that waits."""

    def step(self) -> None:
        """Answer if there is news."""
        ...


class Copiers:
    """``answered`` sends what was answered."""

    def __init__(self, timers: Timers, answered: Callable[[], None]) -> None:
        self._timers = timers
        self._answered = answered
        self._due: dict[Waiting, None] = {}  # in order
        self._timer: Timer | None = None

    def add(self, fetch: Waiting) -> None:
        """Serve it with the next ``serve``, which is in the next turn at the latest."""
        self._due[fetch] = None
        if self._timer is None:
            self._timer = self._timers.at(trio.current_time(), self._late)

    def serve(self) -> None:
        """Serve who is due; the caller sends the answers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due, self._due = self._due, {}
        for fetch in due:
            fetch.step()

    def _late(self) -> None:
        self._timer = None
        self.serve()
        self._answered()
