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
_LOGGER = "tailrace.broker"


class EventLog(logging.Handler):
    """The lines written in one thread."""

    def __init__(self) -> None:
        super().__init__()
        self.thread: int | None = None
        self._lines: deque[dict[str, object]] = deque(maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self.thread:
            self._lines.append(document(record, "test"))

    def last(self, count: int) -> list[dict[str, object]]:
        return list(self._lines)[-count:] if count > 0 else []


class _Forward(logging.Handler):
    """Passes on what would have been passed on without us."""

    def emit(self, record: logging.LogRecord) -> None:
        parent = logging.getLogger("tailrace")
        if record.levelno >= parent.getEffectiveLevel():
            parent.callHandlers(record)


_installed: list[EventLog] = []
_lock = threading.Lock()
_forward = _Forward()
_before: tuple[int, bool] = (logging.NOTSET, True)


def install(log: EventLog) -> None:
    """Start to keep lines."""
    global _before
    logger = logging.getLogger(_LOGGER)
    with _lock:
        if not _installed:
            _before = logger.level, logger.propagate
            logger.addHandler(_forward)
            logger.setLevel(logging.INFO)
            logger.propagate = False
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
                logger.removeHandler(_forward)
                logger.level, logger.propagate = _before
