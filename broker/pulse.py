"""The deadlines of one connection: hello, slow frames, silence, stalled answers (pure).

Times are seconds of one monotonic clock, given by the caller. While the broker itself does not
read, for want of room, the peer is not slow: the clock of the arriving frame stands still.
"""

from tailrace.broker import limits
from tailrace.protocol.frame import HEADER_BYTES


class Pulse:
    """Told by the connection what happens, asked by the listener's sweep what is overdue."""

    __slots__ = (
        *("_began", "_heard_at", "_idle_s", "_missing_bytes", "_opened_at", "_reading"),
        *("_sent_bytes", "_stalled_at", "greeted", "leaving"),
    )

    def __init__(self, now: float, idle_s: float) -> None:
        self.greeted = False
        self.leaving = False  # nothing more is read: only answers are still to be taken
        self._idle_s = idle_s
        self._opened_at = now
        self._heard_at = now
        self._reading = False
        self._began = now  # when the frame that is arriving began
        self._missing_bytes = 0  # of it, when most was missing; 0: between frames
        self._sent_bytes = 0
        self._stalled_at = now  # since when the peer has taken nothing

    def waits(self, now: float, missing_bytes: int) -> None:
        """The connection waits for the peer, which owes ``missing_bytes`` of a frame."""
        if self._missing_bytes == 0:
            self._began = now
        else:
            self._began += now - self._heard_at
        self._missing_bytes = max(self._missing_bytes, missing_bytes) if missing_bytes else 0
        self._reading = True

    def heard(self, now: float) -> None:
        """Something came."""
        self._heard_at = now
        self._reading = False

    def completed(self) -> None:
        """A frame is complete; what is missing from here on is another one's."""
        self._missing_bytes = 0

    def rests(self, now: float) -> bool:
        """Whether nothing is owed by the peer: no hello, no frame. To be asked where answers to it
        are still to come, and none waits to be taken."""
        self._stalled_at = now
        return self.greeted and not self._missing_bytes

    def overdue(
        self, now: float, *, waiting: bool, unsent_bytes: int, sent_bytes: int
    ) -> str | None:
        """Why the connection must be closed, if it must.

        ``waiting``: requests wait for answers. ``sent_bytes``: what the system has taken, ever.
        """
        if unsent_bytes == 0 or sent_bytes != self._sent_bytes:
            self._sent_bytes = sent_bytes
            self._stalled_at = now
        elif now - self._stalled_at > self._stall_s:
            return f"{unsent_bytes} bytes of answers not taken in {self._stall_s:.0f} s"
        if not self.greeted:
            late = now - self._opened_at > limits.HELLO_S
            return f"no hello in {limits.HELLO_S:.0f} s" if late else None
        if not self._reading:
            return None
        if self._missing_bytes:
            allowed_s = self._frame_allowed_s()
            if now - self._began > allowed_s:
                return f"a frame is not complete after {allowed_s:.0f} s"
        elif now - self._heard_at > self._idle_s and not waiting and not unsent_bytes:
            return f"idle for {self._idle_s:.0f} s"
        return None

    @property
    def _stall_s(self) -> float:
        return limits.LEAVE_STALL_S if self.leaving else limits.WRITE_STALL_S

    def _frame_allowed_s(self) -> float:
        if self._missing_bytes < HEADER_BYTES:
            return limits.HEADER_S  # the header itself is not complete, or the last bytes lag
        return max(limits.BODY_S, self._missing_bytes / limits.BODY_BYTES_PER_S)
