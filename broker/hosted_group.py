"""One consumer group as this broker runs it: heartbeats that wait, deadlines, answers in due time.

The group itself (``group.py``) decides; here is what has to do with waiting:

- A heartbeat is held back, without a task, until there is news for its member, a newer one came,
  its time is up or the broker stops. A member whose connection is gone keeps its session.
- Nothing is told that is not durable: while the group has changes that are not written, every
  answer waits. If they cannot be written, whoever waited long enough is sent away to ask again
  (T036); its session goes on all the same.
- One timer per group, at the group's own next deadline.
"""

import logging
from collections.abc import Callable
from functools import partial

import trio

from tailrace.broker.call import Call
from tailrace.broker.group import Group
from tailrace.broker.group_members import Who
from tailrace.broker.group_notices import REASONS
from tailrace.broker.limits import POLL_WAIT_MS_MAX
from tailrace.broker.metrics import Metrics
from tailrace.broker.timers import Timer, Timers
from tailrace.protocol import texts_group
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import HeartbeatRequest

log = logging.getLogger("tailrace.broker.hosted_group")


class Heartbeat:
    """One in hand. Answered once, unless its connection ends first."""

    __slots__ = ("call", "due", "request", "timer")

    def __init__(self, call: Call, request: HeartbeatRequest) -> None:
        self.call = call
        self.request = request
        self.due = False  # answered as soon as what there is may be told, news or not
        self.timer: Timer | None = None


class HostedGroup:
    """``changed`` is called when the group has something to be written; ``awake`` before anybody
    is said to be late: it gives everybody a fresh session if this broker itself was away."""

    def __init__(
        self,
        group: Group,
        *,
        broker_id: str,
        timers: Timers,
        metrics: Metrics,
        changed: "Callable[[HostedGroup], None]",
        awake: Callable[[float], None],
        flush: Callable[[], None],
    ) -> None:
        self.group = group
        self.leaving = False  # it is being deleted: nobody gets hold of it
        self.stuck: TailraceError | None = None  # why its changes cannot be written at present
        self._broker_id = broker_id
        self._timers = timers
        self._metrics = metrics
        self._changed = changed
        self._awake = awake
        self._flush = flush
        self._told_of = group.changes  # up to where ``changed`` was called
        self._held: dict[str, Heartbeat] = {}  # by member id, its newest
        self._overdue: dict[Heartbeat, None] = {}  # older ones, and those whose time is up
        self._timer: Timer | None = None  # the group's
        self._timer_at = 0.0

    # ── heartbeats ───────────────────────────────────────────────────────────────────────────

    def beat(self, call: Call, request: HeartbeatRequest, who: Who) -> None:
        """Take up a heartbeat: answer it now or later. T042 T070 T082."""
        now = trio.current_time()
        self.group.heartbeat(now, request, who)
        older = self._held.pop(request.member_id, None)
        if older is not None:
            self._end_wait(older)
        mine = Heartbeat(call, request)
        self._held[request.member_id] = mine
        call.abandoned = partial(self._put_down, mine)
        self.look()
        if self.group.ready(request):
            self._answer(mine)
            return
        wait_s = min(self.group.hold_s(request), POLL_WAIT_MS_MAX / 1000)
        mine.timer = self._timers.at(now + wait_s, partial(self._time_up, mine))

    def release(self) -> None:
        """The broker stops: nobody waits any longer, but for what is being written."""
        for one in list(self._held.values()):
            self._end_wait(one)

    def look(self) -> None:
        """After whatever may have changed the group: see to it that it is written."""
        group = self.group
        if group.changes != self._told_of:
            self._told_of = group.changes
            self._changed(self)
        deadline = group.next_deadline()
        if self._timer is not None:
            if self._timer_at <= deadline:
                return
            self._timer.cancel()
            self._timer = None
        if deadline != float("inf"):
            self._timer_at = deadline
            self._timer = self._timers.at(deadline, self._tick)

    def written(self, changes: int) -> None:
        """The group as it was at so many changes is durable."""
        self.stuck = None
        self.group.written = changes
        if not self.group.dirty:
            self._tell()

    def not_written(self, error: TailraceError) -> None:
        """It could not be written, and will be tried again."""
        self.stuck = error
        for one in list(self._overdue):
            self._send_away(one, error)

    def turn_away(self, error: TailraceError) -> None:
        """Whoever waits gets the error, and looks for the coordinator anew."""
        for one in dict.fromkeys([*self._overdue, *self._held.values()]):
            self._put_down(one)
            one.call.fail(error)

    def drop(self, error: TailraceError) -> None:
        """Another broker has the group from now on; as ``turn_away``, and nothing is due here."""
        self.turn_away(error)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forget(self) -> None:
        """The group is no more. Who waits for an answer gets one."""
        self.group.written = self.group.changes
        self._tell()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ── steps ────────────────────────────────────────────────────────────────────────────────

    def _tell(self) -> None:
        """All that was decided may be told."""
        for ended in self.group.take_ended():
            first, _, _ = ended.reason.partition(REASONS)  # a few series, not one per combination
            self._metrics.group(self.group.name).rebalances(first).inc()
            self._metrics.group_rebalance_duration.observe(ended.took_ms / 1000)
            log.info(
                "group %s: %s; generation %d, %d members, %d ms",
                *(self.group.name, ended.reason, ended.generation),
                *(len(self.group.members), ended.took_ms),
                extra={
                    "event": "group.rebalanced",
                    "code": None,
                    "group": self.group.name,
                    "reason": ended.reason,
                    "generation": ended.generation,
                    "took_ms": ended.took_ms,
                },
            )
        for one in list(self._overdue):
            self._answer(one)
        for one in list(self._held.values()):
            if self.group.ready(one.request):
                self._answer(one)

    def _answer(self, one: Heartbeat) -> None:
        self._put_down(one)
        try:
            response = self.group.answer(one.request)
        except TailraceError as error:
            one.call.fail(error)
        else:
            one.call.answer(response)

    def _end_wait(self, one: Heartbeat) -> None:
        """Answer as soon as what there is may be told."""
        if not self.group.dirty:
            self._answer(one)
        elif self.stuck is not None:
            self._send_away(one, self.stuck)
        else:
            self._overdue[one] = None

    def _send_away(self, one: Heartbeat, error: TailraceError) -> None:
        self._put_down(one)
        one.call.fail(
            texts_group.coordinator_stuck(
                self.group.name, broker=self._broker_id, reason=error.message
            )
        )

    def _time_up(self, one: Heartbeat) -> None:
        one.timer = None
        self._end_wait(one)
        self._flush()

    def _put_down(self, one: Heartbeat) -> None:
        """It is about to be answered, or its connection is gone."""
        if one.timer is not None:
            one.timer.cancel()
            one.timer = None
        self._overdue.pop(one, None)
        if self._held.get(one.request.member_id) is one:
            del self._held[one.request.member_id]
        one.call.abandoned = None

    def _tick(self) -> None:
        """The group's deadline, or one that has moved since."""
        self._timer = None
        now = trio.current_time()
        self._awake(now)
        for member in self.group.expire(now):
            log.warning(
                "group %s: member %s of %s at %s was silent for %d ms",
                *(self.group.name, member.member_id, member.who.client_id, member.who.host),
                member.session_timeout_ms,
                extra={"event": "group.member_expired", "code": None, "group": self.group.name},
            )
        self.look()
