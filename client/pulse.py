"""When the heartbeats of one member leave, and what their answers ask for. Pure.

A heartbeat is a long poll: there is always one under way, held back by the coordinator while there
is nothing new. What the coordinator has to know at once (a partition was released, the member
leaves) goes by a second one, which makes it answer the first.

Times are seconds of the caller's monotonic clock.
"""

import math
from dataclasses import dataclass
from random import Random

from tailrace.client.membership import Assignment, Event, Failed, Left, Membership
from tailrace.client.retry import Backoff
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages_group import HeartbeatRequest, HeartbeatResponse

UNDER_WAY_MAX = 2
QUICK_S = 0.05  # an answer that says nothing new was not held back as it should have been
ASTRAY = frozenset({"T001", "T005", "T032", "T033", "T100"})  # somebody else may be the coordinator


@dataclass(frozen=True, slots=True)
class Beat:
    """One heartbeat that waits for its answer."""

    request: HeartbeatRequest
    sent_at: float
    life: int  # of the membership
    last: bool  # it says goodbye


class Pulse:
    """See the module. Made for one ``Membership``; whoever drives it sends and receives."""

    def __init__(self, membership: Membership, random: Random) -> None:
        self.membership = membership
        self.over = False  # it has left or failed: nothing is sent any more
        self.astray = True  # the coordinator has to be found (again)
        self._interval_s = membership.identity.session_timeout_ms / 3000
        self._under_way: list[Beat] = []
        self._not_before = -math.inf
        self._backoff = Backoff(random)

    @property
    def interval_s(self) -> float:
        """How long the coordinator may hold a heartbeat back."""
        return self._interval_s

    @property
    def patience_s(self) -> float:
        """How long anything else may take, so that the session does not run out meanwhile."""
        return self._interval_s

    # ── sending ──────────────────────────────────────────────────────────────────────────────

    def next_at(self) -> float:
        """When the next heartbeat is due: in the past for "now", ``inf`` after an answer only."""
        if self.over or len(self._under_way) >= UNDER_WAY_MAX:
            return math.inf
        if any(beat.last for beat in self._under_way):
            return math.inf
        if self._under_way and not self.membership.unsaid:
            return math.inf
        return self._not_before

    def overdue_at(self) -> float:
        """When the connection has to be given up, as an answer is missing."""
        if not self._under_way:
            return math.inf
        oldest = self._under_way[0]
        return oldest.sent_at + oldest.request.wait_ms / 1000 + self.patience_s

    def send(self, now: float) -> Beat:
        """The heartbeat that is due; it is under way from now on."""
        assert self.next_at() <= now, "no heartbeat is due"
        # After trouble an answer is wanted at once: it tells that all is well again.
        wait_ms = 0 if self._backoff.attempts else max(1, int(self._interval_s * 1000))
        last = self.membership.leaving
        beat = Beat(self.membership.request(wait_ms), now, self.membership.life, last)
        self._under_way.append(beat)
        return beat

    # ── what comes back ──────────────────────────────────────────────────────────────────────

    def answered(self, beat: Beat, response: HeartbeatResponse, now: float) -> list[Event]:
        """What is new by the answer to ``beat``."""
        self._settle(beat)
        if beat.life != self.membership.life or beat.last != self.membership.leaving:
            return []
        self._backoff.reset()
        if response.interval_ms:
            self._interval_s = response.interval_ms / 1000
        events = self.membership.answered(response)
        superseded = bool(self._under_way)  # then it was to be answered at once
        held = beat.request.wait_ms > 0 and not superseded
        quick = held and not events and now - beat.sent_at < QUICK_S
        self._not_before = now + QUICK_S if quick else -math.inf
        return self._told(events)

    def refused(self, beat: Beat, error: TailraceError, now: float) -> list[Event]:
        """What the error in answer to ``beat`` means."""
        self._settle(beat)
        if beat.life != self.membership.life or beat.last != self.membership.leaving:
            return []
        if (error.retriable and error.code != "T042") or error.code in ASTRAY:
            self.trouble(now, astray=error.code in ASTRAY)
            return []
        return self.fail(error, now)

    def fail(self, error: TailraceError, now: float) -> list[Event]:
        """An error that is not over by asking the same again."""
        self.trouble(now, astray=False)
        return self._told(self.membership.refused(error))

    def lost_connection(self, now: float) -> None:
        """What was under way gets no answer."""
        self._under_way.clear()
        self.membership.unsaid = True
        self.trouble(now, astray=True)

    def trouble(self, now: float, *, astray: bool) -> float:
        """Something failed: the next attempt is so many seconds away."""
        self.astray = self.astray or astray
        pause_s = min(self._backoff.next(), self.patience_s / 2)
        self._not_before = now + pause_s
        return pause_s

    @property
    def attempts(self) -> int:
        """How often it failed since the last answer."""
        return self._backoff.attempts

    def retry_at(self) -> float:
        """When the coordinator may be looked for again."""
        return self._not_before

    def hurry(self) -> None:
        """There is a reason to believe that it works again."""
        self._not_before = -math.inf

    # ── what its owner wants ─────────────────────────────────────────────────────────────────

    def release(self, assignment: Assignment) -> list[Event]:
        """See ``Membership.release``."""
        return [] if self.over else self.membership.release(assignment)

    def leave(self) -> None:
        """Say goodbye at once."""
        self.membership.leave()
        self.hurry()

    def end(self) -> None:
        """Nothing is sent any more, whatever the coordinator believes."""
        self.over = True
        self._under_way.clear()

    def _settle(self, beat: Beat) -> None:
        if beat in self._under_way:
            self._under_way.remove(beat)

    def _told(self, events: list[Event]) -> list[Event]:
        if any(isinstance(event, Left | Failed) for event in events):
            self.end()
        return events
