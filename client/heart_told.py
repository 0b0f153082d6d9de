"""What a member is told of its heartbeats, whoever carries them: the thread or a task."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tailrace.client.membership import Event
from tailrace.client.options import Address
from tailrace.client.pulse import Beat, Pulse
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import HeartbeatResponse


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No coordinator for the moment; the next attempt follows in ``delay_s`` seconds."""

    address: Address
    reason: str
    attempt: int
    delay_s: float
    broken: bool  # the connection; else the broker answers, but not as a coordinator


@dataclass(frozen=True, slots=True)
class Reachable:
    """A heartbeat was answered after a time without."""


Told = Event | Unreachable | Reachable


class Teller:
    """Tells what became of each beat of one pulse."""

    def __init__(self, pulse: Pulse, tell: Callable[[Told], None]) -> None:
        self._pulse = pulse
        self._tell = tell
        self._troubled = False

    def answered(self, beat: Beat, response: HeartbeatResponse, now: float) -> None:
        """By the coordinator."""
        if self._troubled:
            self._troubled = False
            self._tell(Reachable())
        self.happened(self._pulse.answered(beat, response, now))

    def refused(
        self, beat: Beat, error: TailraceError, address: Address | None, now: float
    ) -> None:
        """By whoever listens there; None: the connection is gone, and that was told."""
        self.happened(self._pulse.refused(beat, error, now))
        if address is not None and error.retriable and error.code != "T042":
            self.unreachable(address, error.message, now, broken=False)

    def failed(self, error: TailraceError, now: float) -> None:
        """For good."""
        self.happened(self._pulse.fail(error, now))

    def lost(self, address: Address, reason: str, now: float) -> None:
        """The connection broke, or could not be made."""
        self._pulse.lost_connection(now)
        self.unreachable(address, reason, now, broken=True)

    def unreachable(self, address: Address, reason: str, now: float, *, broken: bool) -> None:
        """After the pulse has taken note: it knows when the next attempt is."""
        self._troubled = True
        delay_s = max(0.0, self._pulse.retry_at() - now)
        self._tell(Unreachable(address, reason, self._pulse.attempts, delay_s, broken))

    def happened(self, events: Iterable[Event]) -> None:
        """What the pulse made of it."""
        for event in events:
            self._tell(event)
