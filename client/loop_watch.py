"""Notices that an event loop is blocked, while it is, and names the line that does it (T050).

A thread knocks at the loop a few times a second; a loop that does not answer for a second is
blocked, and the stack of its thread says by what. Once per blockage, however long it lasts, and
once per loop, however many clients live on it.

Whoever watches never waits: not for the loop, and not for a lock that it may hold.

Does not mistake a process that was stopped for one that is blocked: then this thread did not run
either, and no time of the processor was used.
"""

import contextlib
import logging
import math
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from tailrace.client import metrics
from tailrace.protocol import texts, texts_client

KNOCK_S = 0.25  # between two knocks
BLOCKED_S = 1.0
STAND_BY_S = 5.0  # between two looks whether the loop is still watched by another one
LATE_S = 0.5  # this thread itself did not run for so long

_log = logging.getLogger("tailrace.client")
_current_frames: Callable[[], dict[int, FrameType]] = vars(sys)["_current_frames"]
_watched: dict[int, "LoopWatch"] = {}  # by the loop's thread: who watches it


class Loop(Protocol):
    """``loop_calls.LoopCalls``."""

    thread: int

    def soon(self, fn: Callable[[], None]) -> bool:
        """Have it called on the loop."""
        ...

    def runs(self) -> bool:
        """Whether the loop is being run."""
        ...


def run_aside(log: Callable[[], None]) -> None:
    """Log in a thread of its own: what blocks the loop may hold the lock of a log handler."""
    with contextlib.suppress(RuntimeError):  # no thread left: a log ends no heartbeats
        threading.Thread(target=log, name="tailrace.log", daemon=True).start()


class LoopWatch:
    """The watch of one thread over one loop: ``tick`` whenever ``next_at`` has come."""

    def __init__(
        self,
        loop: Loop,
        now: Callable[[], float] = time.monotonic,
        cpu_s: Callable[[], float] = time.process_time,
        aside: Callable[[Callable[[], None]], None] = run_aside,
    ) -> None:
        self.next_at = -math.inf
        self._loop = loop
        self._now = now
        self._cpu_s = cpu_s
        self._aside = aside  # how to log
        self._knocked_at: float | None = None  # and not answered yet
        self._answered_at = 0.0
        self._reported = False
        self._last_cpu_s = cpu_s()

    def tick(self) -> None:
        """Look how the loop is doing."""
        now, cpu_s = self._now(), self._cpu_s()
        late_s, used_s = now - self.next_at, cpu_s - self._last_cpu_s
        self._last_cpu_s = cpu_s
        if _watched.setdefault(self._loop.thread, self) is not self:
            self.next_at = now + STAND_BY_S
            return
        self.next_at = now + KNOCK_S
        if self._knocked_at is None:
            self._knock(now)
        elif self._answered_at >= self._knocked_at:
            if self._reported:
                self._over(self._answered_at - self._knocked_at)
            self._knock(now)
            if late_s >= BLOCKED_S and used_s >= late_s / 2:
                self._starved(now, late_s)
        elif not self._loop.runs() or (late_s > LATE_S and used_s < late_s / 2):
            self._knocked_at = now  # nobody ran: count from here
        elif now - self._knocked_at >= BLOCKED_S and not self._reported:
            self._blocked(now - self._knocked_at, late_s)

    def _blocked(self, blocked_s: float, late_s: float) -> None:
        """By its own line; where this thread did not run either, perhaps by nobody's on the loop:
        both may have waited for the interpreter, and then the loop answers before the next look.
        """
        frame = _current_frames().get(self._loop.thread)
        if frame is not None:
            place = users_place(frame) if late_s > LATE_S else culprit(frame)
            if place is not None:
                self._report(blocked_s, place)

    def _starved(self, now: float, late_s: float) -> None:
        """Somebody did not let go of the interpreter: it was the loop if it is in a user's line."""
        frame = _current_frames().get(self._loop.thread)
        place = None if frame is None else users_place(frame)
        if place is not None:
            self._knocked_at = now - late_s
            self._report(late_s, place)

    def end(self) -> None:
        """Somebody else may watch."""
        if _watched.get(self._loop.thread) is self:
            del _watched[self._loop.thread]

    def _knock(self, now: float) -> None:
        self._reported = False
        self._knocked_at = now
        self._answered_at = -math.inf
        self._loop.soon(self._answer)

    def _answer(self) -> None:
        self._answered_at = self._now()

    def _report(self, blocked_s: float, place: "Place") -> None:
        self._reported = True
        notice = texts_client.loop_blocked(
            blocked_s=blocked_s, file=place.file, line=place.line, function=place.function
        )
        extra = {"event": "client.loop_blocked", "code": notice.code}
        self._aside(lambda: _log.warning("%s", notice, extra=extra))

    def _over(self, blocked_s: float) -> None:
        failure = metrics.instruments.blocked(blocked_s)
        text = f"the event loop runs again; it was blocked for {blocked_s:.1f} s"
        if failure is not None:
            text += f" (not counted: {texts.error_summary(failure)})"
        extra = {"event": "client.loop_resumed", "code": None}
        self._aside(lambda: _log.info(text, extra=extra))


# ── whose line it is ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Place:
    """Where a thread is."""

    file: str
    line: int
    function: str


def _folders_of(*modules: str) -> tuple[str, ...]:
    """Of those that are imported."""
    found = (sys.modules.get(module) for module in modules)
    files = (None if module is None else module.__file__ for module in found)
    return tuple(os.path.dirname(file) + os.sep for file in files if file)


def _folders(*names: str) -> tuple[str, ...]:
    """Of this Python."""
    return tuple({os.path.join(sysconfig.get_path(name), "") for name in names})


_STANDARD = _folders("stdlib", "platstdlib")
_PACKAGES = _folders("purelib", "platlib")


def culprit(frame: FrameType) -> Place:
    """What a thread is busy with: a user's line, or the innermost one of all."""
    return users_place(frame) or _place(frame)


def users_place(frame: FrameType) -> Place | None:
    """The innermost frame of the user's own code; of somebody's package, if there is none.

    What lies outside of the loop's own frames (the program that started it) is nobody's fault.
    """
    skipped = _folders_of("tailrace", "tailrace.client", "anyio", "trio")
    loops = _folders_of("asyncio", "trio._core")
    packaged: Place | None = None
    at: FrameType | None = frame
    while at is not None:
        file = at.f_code.co_filename
        if file.startswith(loops) and at.f_code.co_name in ("_run_once", "unrolled_run"):
            break
        if file.startswith(_PACKAGES):
            if not file.startswith(skipped):
                packaged = packaged or _place(at)
        elif not file.startswith((*skipped, *_STANDARD, "<frozen")):
            return _place(at)
        at = at.f_back
    return packaged


def _place(frame: FrameType) -> Place:
    function = frame.f_code.co_qualname.rpartition("<locals>.")[2]
    return Place(frame.f_code.co_filename, frame.f_lineno, function)
