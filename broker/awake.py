"""Whether this broker was away: stopped, starved of the processor, its machine asleep.

A broker that does not run hears of nobody, so whoever is about to say that somebody is late looks
here first. How late a deadline is noticed tells little: one that falls due at the end of a long
absence is noticed in time. So there is a pulse, and what counts is how long it was missing.
"""

from collections.abc import Callable

import trio

from tailrace.broker.timers import Timers

PULSE_S = 0.25
AWAY_S = 1.0  # without a pulse; a turn of a busy event loop takes less


class Awake:
    """``back`` is called with the time, in trio's seconds, when this broker is back."""

    def __init__(self, timers: Timers, back: Callable[[float], None]) -> None:
        self._timers = timers
        self._back = back
        self._seen_at = 0.0

    def start(self, now: float) -> None:
        """The pulse begins."""
        self._seen_at = now
        self._timers.at(now + PULSE_S, self._pulse)

    def check(self, now: float) -> None:
        """Call ``back`` if there was no pulse for long."""
        away = now - self._seen_at > AWAY_S
        self._seen_at = now
        if away:
            self._back(now)

    def _pulse(self) -> None:
        now = trio.current_time()
        self.check(now)
        self._timers.at(now + PULSE_S, self._pulse)
