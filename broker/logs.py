"""Logs of the broker process: JSON lines or text on stderr, and no flood.

Code logs with the standard library, naming the event and its fields:
``logger.warning("...", extra={"event": "disk.low", "code": "T031", "free_bytes": 3})``. A line has
``time level event code message broker`` and the fields. Rules:

- after 5 lines alike within 10 s the rest is counted, and one line with ``suppressed`` follows;
- what came from a client is escaped: no control character reaches a terminal or splits a line.

Alike is: same level, event and code; without an event, the same text but for its digits. Where each
line names something else that nobody may miss, the caller gives that as ``alike``, too: it is not
shown. What clients can make up has no place there.
"""

import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from tailrace.protocol.texts import shown

ALIKE_MAX = 5
WINDOW_S = 10.0
KINDS_MAX = 1_000  # of lines remembered at once; beyond it the oldest window ends early
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_DIGITS = re.compile(r"\d+")
_WORDS = re.compile(r"[^\s,;:()\[\]'\"]+")
_Key = tuple[int, str, str, str]


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave as ``extra``, without event and code."""
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _STANDARD and name not in ("event", "code", "alike")
    }


def document(record: logging.LogRecord, broker: str) -> dict[str, Any]:
    """One line as JSON has it. ``time`` is ms since the epoch."""
    line: dict[str, Any] = {
        "time": round(record.created * 1000),
        "level": record.levelname.lower(),
        "event": getattr(record, "event", "log"),
        "code": getattr(record, "code", None),
        "message": record.getMessage(),
        "broker": broker,
    }
    for name, value in fields_of(record).items():
        line.setdefault(name, value)
    if record.exc_info and record.exc_info[0] is not None:
        line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
    return line


def as_json(record: logging.LogRecord, broker: str) -> str:
    """ASCII only: escaping is complete, whatever a client sent."""
    return json.dumps(document(record, broker), separators=(",", ":"), default=str)


def as_text(record: logging.LogRecord, broker: str) -> str:
    """``2026-11-20 10:00:00.123 INFO broker.ready message key=value``, in UTC.

    Without the fields whose words are in the message already: this one is for people.
    """
    line = document(record, broker)
    ms, code, message = line.pop("time"), line.pop("code"), shown(line.pop("message"))
    below = line.pop("traceback", "").splitlines()
    for name in [name for name, value in line.items() if isinstance(value, list)]:
        below += [f"{name}:", *(f"  {item}" for item in line.pop(name))]
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms // 1000))
    head = f"{stamp}.{ms % 1000:03d} {record.levelname} {line.pop('event')}"
    if code is not None and not message.startswith(f"{code}:"):
        message = f"{code}: {message}"
    del line["level"], line["broker"]
    said = set(_WORDS.findall(message))
    fields = (f"{name}={_plain(v)}" for name, v in line.items() if not _is_in(said, v))
    rows = (f"\n    {shown(row)}" for row in below)
    return " ".join((head, message, *fields)) + "".join(rows)


def _is_in(said: set[str], value: object) -> bool:
    return isinstance(value, str) and bool(value) and set(_WORDS.findall(shown(value))) <= said


def _plain(value: object) -> str:
    text = shown(str(round(value, 3) if isinstance(value, float) else value))
    return json.dumps(text) if " " in text or not text else text


@dataclass(slots=True)
class _Window:
    began: float
    passed: int
    suppressed: int
    last: logging.LogRecord


class LogHandler(logging.Handler):
    """Writes lines, and holds back floods. ``clock`` gives monotonic seconds."""

    def __init__(
        self,
        stream: TextIO,
        *,
        broker: str,
        render: Callable[[logging.LogRecord, str], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._stream = stream
        self._broker = broker
        self._render = render
        self._clock = clock
        self._windows: dict[_Key, _Window] = {}  # oldest first

    def emit(self, record: logging.LogRecord) -> None:
        now = self._clock()
        self._end_windows(now)
        key = _alike(record)
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= KINDS_MAX:
                self._end(next(iter(self._windows)))
            self._windows[key] = _Window(now, 1, 0, record)
        elif window.passed < ALIKE_MAX:
            window.passed += 1
        else:
            window.suppressed += 1
            window.last = record
            return
        self._write(record)

    def flush_suppressed(self) -> None:
        """Tell what was held back in windows that are over. Call it about once a second."""
        self.acquire()
        try:
            self._end_windows(self._clock())
        finally:
            self.release()

    def close(self) -> None:
        """Tell everything that was held back."""
        for key in list(self._windows):
            self._end(key)
        super().close()

    def _end_windows(self, now: float) -> None:
        while self._windows:
            key, window = next(iter(self._windows.items()))
            if now - window.began < WINDOW_S:
                return
            self._end(key)

    def _end(self, key: _Key) -> None:
        window = self._windows.pop(key)
        if window.suppressed:
            line = logging.makeLogRecord(vars(window.last) | {"suppressed": window.suppressed})
            self._write(line)

    def _write(self, record: logging.LogRecord) -> None:
        try:
            self._stream.write(self._render(record, self._broker) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # Nobody reads stderr any more: there is no one left to tell, and a broker must not
            # fail for it.
            return


def _alike(record: logging.LogRecord) -> _Key:
    event = getattr(record, "event", None)
    if event is not None:
        code, alike = getattr(record, "code", None), getattr(record, "alike", "")
        return record.levelno, str(event), str(code), str(alike)
    return record.levelno, record.name, _DIGITS.sub("#", str(record.msg)[:200]), ""


def configure(*, level: str, format: str, broker: str, stream: TextIO | None = None) -> LogHandler:
    """Send the process's logs to ``stream`` (stderr); replaces an earlier handler of ours.

    Other libraries are heard from WARNING on.
    """
    if stream is None:
        stream = sys.stderr
    assert stream is not None, "no stderr to log to"
    text = format == "text" or (format == "auto" and stream.isatty())
    handler = LogHandler(stream, broker=broker, render=as_text if text else as_json)
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, LogHandler)]:
        root.removeHandler(old)
        old.close()
    logging.getLogger("tailrace").handlers.clear()  # ``-v`` of the command line has put one there
    root.addHandler(handler)
    set_level(level)
    return handler


def set_level(level: str) -> None:
    """``log.level``, which may change while the broker runs."""
    logging.getLogger("tailrace").setLevel(LEVELS[level])
