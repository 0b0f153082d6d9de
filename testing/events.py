"""The log lines of test brokers, kept for ``Broker.events`` and for failure messages.

While a test broker runs, its loggers speak from INFO on, and every line is kept for the broker in
whose thread it was written. What the test's own logging configuration would not have shown is not
passed on to it.
"""

import logging
import threading
from collections import deque

from tailrace.broker.logs import document

KEPT = 1000
_LOGGER, _PARENT = "tailrace.broker", "tailrace"


class EventLog(logging.Handler):
    """The lines written in one thread."""

    def __init__(self, broker: str = "test") -> None:
        super().__init__()
        self._broker = broker
        self.thread: int | None = None
        self._lines: deque[dict[str, object]] = deque(maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self._lines.append(document(record, self._broker))

    def last(self, count: int) -> list[dict[str, object]]:
        return list(self._lines)[-count:] if count > 0 else []


class _Forward(logging.Handler):
    """Passes on what would have been passed on without us."""

    def __init__(self, to: logging.Logger) -> None:
        super().__init__()
        self._to = to

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= self._to.getEffectiveLevel():
            self._to.callHandlers(record)


_installed: list[EventLog] = []
_lock = threading.Lock()
_before: tuple[int, logging.Logger | None] = (logging.NOTSET, None)


def install(log: EventLog) -> None:
    """Start to keep lines."""
    global _before
    logger = logging.getLogger(_LOGGER)
    with _lock:
        if not _installed:
            parent = logging.getLogger(_PARENT)
            _before = logger.level, logger.parent
            # Between the two, unknown to logging itself. Without propagation instead, pytest's
            # caplog would listen here too, and hear every line twice.
            gate = logging.Logger(f"{_LOGGER}.gate")
            gate.propagate = False
            gate.addHandler(_Forward(parent))
            logger.parent = gate
            logger.setLevel(logging.INFO)
        _installed.append(log)
        logger.addHandler(log)


def remove(log: EventLog) -> None:
    """Keep no more; what was kept stays."""
    logger = logging.getLogger(_LOGGER)
    with _lock:
        if log in _installed:
            _installed.remove(log)
            logger.removeHandler(log)
            if not _installed:
                level, logger.parent = _before
                logger.setLevel(level)
