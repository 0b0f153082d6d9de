"""What ``run`` does when a handler fails: try again, then raise, skip or write a dead letter."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from tailrace.protocol import texts_config


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """Made by ``retry``; durations in seconds."""

    attempts: int
    backoff: float
    factor: float
    max_backoff: float
    on: tuple[type[Exception], ...]
    then: Literal["raise", "skip", "dead_letter"] = "raise"
    topic: str | None = None

    def then_raise(self) -> "ErrorPolicy":
        """After the last attempt ``run`` raises the exception."""
        return replace(self, then="raise", topic=None)

    def then_skip(self) -> "ErrorPolicy":
        """After the last attempt the record is left out, logged at WARNING."""
        return replace(self, then="skip", topic=None)

    def then_dead_letter(self, topic: str) -> "ErrorPolicy":
        """After the last attempt the record goes to ``topic``, durably, and ``run`` goes on."""
        return replace(self, then="dead_letter", topic=topic)

    def delay(self, attempt: int) -> float:
        """Seconds to wait after the ``attempt``-th attempt (from 1) failed."""
        try:
            grown = float(self.factor) ** (attempt - 1)
        except OverflowError:  # after a thousand of them
            grown = math.inf
        return float(min(self.max_backoff, self.backoff * grown)) if self.backoff else 0.0


def retry(
    attempts: int,
    *,
    backoff: float = 0.2,
    factor: float = 2.0,
    max_backoff: float = 30.0,
    on: type[Exception] | tuple[type[Exception], ...] = Exception,
) -> ErrorPolicy:
    """Call the handler up to ``attempts`` times for a record, then raise.

    Waits ``backoff`` seconds before the second attempt, then ``factor`` times as long each time,
    at most ``max_backoff``. Exceptions other than ``on`` are raised at once. Raises ConfigError
    T082 for numbers that make no sense.
    """
    for name, value, least in (
        ("attempts", attempts, 1),
        ("backoff", backoff, 0),
        ("factor", factor, 1),
        ("max_backoff", max_backoff, 0),
    ):
        if isinstance(value, bool) or not value >= least:
            raise texts_config.bad_argument(
                name,
                value,
                call="retry()",
                expected=f"at least {least}",
                hint="Example: tailrace.retry(5, backoff=0.2).then_dead_letter('orders-dlq')",
            )
    kinds = on if isinstance(on, tuple) else (on,)
    return ErrorPolicy(attempts, backoff, factor, max_backoff, kinds)
