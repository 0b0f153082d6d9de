"""One member in the heartbeat thread: its connection, and how it finds its coordinator.

A seat has a connection of its own, so that no long poll of one member takes the place of another's
request. It is driven by ``heart.py``: ``step`` does what is due, ``ready`` what the socket allows.
What happens is told by ``tell``, in the thread.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tailrace.client.heart_line import Line
from tailrace.client.heart_told import Teller, Told
from tailrace.client.net import reason_of
from tailrace.client.options import Address, ClientOptions
from tailrace.client.pulse import Beat, Pulse
from tailrace.protocol.connection import Answer
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.messages import (
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    HeartbeatResponse,
    MetadataRequest,
    MetadataResponse,
    Response,
)
from tailrace.protocol.texts import shown


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all seats of a client share."""

    options: ClientOptions
    cluster_id: str
    addresses: Callable[[], Sequence[Address]]  # of all brokers that are known, any thread


class Seat:
    """See the module."""

    def __init__(
        self,
        around: Surroundings,
        pulse: Pulse,
        coordinator: Address,
        tell: Callable[[Told], None],
    ) -> None:
        self.pulse = pulse
        self.line: Line | None = None
        self._around = around
        self._teller = Teller(pulse, tell)
        self._address = coordinator
        self._next_address = 0
        self._asked: dict[int, Beat | None] = {}  # by correlation id; None: where it should go
        self._give_up_at = math.inf  # when opening or finding has taken too long
        self._found: str | None = None  # the coordinator's broker id, while its address is asked
        pulse.astray = False

    # ── driven by the thread ─────────────────────────────────────────────────────────────────

    def step(self, now: float) -> None:
        """Do what is due."""
        if self.pulse.over:
            self.close()
            return
        try:
            if self.line is not None and now >= self.deadline():
                raise TimeoutError
            if self.line is None and now >= self.pulse.retry_at():
                self._dial(now)
            if self.line is not None and self.line.open:
                self._send(self.line, now)
        except OSError as error:
            self._failed(reason_of(error), now)
        except ConnectError as error:
            self._failed(error.message, now)

    def ready(self, now: float) -> None:
        """The connection can be read or written."""
        if (line := self.line) is None:
            return
        was_open = line.open
        try:
            answers = line.ready()
            if line.open and not was_open:
                self._give_up_at = math.inf
            for answer in answers:
                self._take(answer, now)
        except OSError as error:
            self._failed(reason_of(error), now)
        except ConnectError as error:
            self._failed(error.message, now)

    def wake_at(self) -> float:
        """When ``step`` is due again, if nothing comes before."""
        if self.pulse.over:
            return math.inf
        if self.line is None:
            return self.pulse.retry_at()
        if not self.line.open:
            return self.deadline()
        if self._looks():
            return min(self.deadline(), self.pulse.retry_at())
        if self.pulse.astray:
            return self.deadline()
        return min(self.deadline(), self.pulse.next_at())

    def deadline(self) -> float:
        """When the connection is given up."""
        return min(self._give_up_at, self.pulse.overdue_at())

    def farewell(self, now: float) -> None:
        """Say goodbye if that is possible now, and do not wait: nobody is there any more."""
        if self.line is not None and self.line.open and not self.pulse.over:
            self.pulse.leave()
            self.step(now)

    def close(self) -> None:
        """Without a word to the coordinator."""
        line, self.line = self.line, None
        self._asked.clear()
        self._found = None
        self._give_up_at = math.inf
        if line is not None:
            line.close()

    # ── sending ──────────────────────────────────────────────────────────────────────────────

    def _dial(self, now: float) -> None:
        if self.pulse.astray:  # whoever answers knows who the coordinator is
            known = [self._address, *(a for a in self._around.addresses() if a != self._address)]
            self._address = known[self._next_address % len(known)]
            self._next_address += 1
        options = self._around.options
        limit_s = min(options.connect_timeout, self.pulse.patience_s)
        self._give_up_at = now + limit_s
        self.line = Line(self._address, options.tls, options.client_id, self._around.cluster_id)

    def _looks(self) -> bool:
        """Whether the coordinator has to be asked for, and was not."""
        return self.pulse.astray and None not in self._asked.values()

    def _send(self, line: Line, now: float) -> None:
        if self._looks():
            if now >= self.pulse.retry_at():
                self._give_up_at = now + self.pulse.patience_s
                group = self.pulse.membership.identity.group
                self._asked[line.post(FindCoordinatorRequest(group))] = None
            return
        while not self.pulse.astray and self.pulse.next_at() <= now:
            beat = self.pulse.send(now)
            try:
                self._asked[line.post(beat.request)] = beat
            except ConnectError as error:
                if error.code != "T122":
                    raise
                self._teller.failed(error, now)

    # ── answers ──────────────────────────────────────────────────────────────────────────────

    def _take(self, answer: Answer, now: float) -> None:
        if answer.correlation_id not in self._asked:
            return  # of a connection that was given up meanwhile
        beat = self._asked.pop(answer.correlation_id)
        message = answer.message
        if isinstance(message, TailraceError):
            self._refused(beat, message, now)
        elif beat is None:
            self._located(message, now)
        else:
            assert isinstance(message, HeartbeatResponse)
            self._teller.answered(beat, message, now)

    def _refused(self, beat: Beat | None, error: TailraceError, now: float) -> None:
        if beat is not None:
            self._teller.refused(beat, error, self._address, now)
        elif error.retriable:
            self._astray(error.message, now)
        else:
            self._teller.failed(error, now)

    def _located(self, message: Response, now: float) -> None:
        """One step on the way to the coordinator: its name, then its address."""
        assert self.line is not None
        if isinstance(message, FindCoordinatorResponse):
            self._found = message.broker_id
            question = MetadataRequest(topics=(), auto_create=False)
            self._asked[self.line.post(question)] = None
            return
        assert isinstance(message, MetadataResponse)
        self._give_up_at = math.inf
        for broker in message.brokers:
            if broker.broker_id == self._found:
                address = Address(broker.host, broker.port)
                self.pulse.astray = False
                if address != self._address:
                    self._address = address
                    self.close()
                    self._dial(now)
                return
        reason = f"coordinator {shown(self._found or '')} is not listed by {self._address}"
        self._astray(reason, now)

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────

    def _failed(self, reason: str, now: float) -> None:
        """The connection broke, or could not be made."""
        self.close()
        self._teller.lost(self._address, reason, now)

    def _astray(self, reason: str, now: float) -> None:
        """Whoever was asked does not know the coordinator."""
        self._give_up_at = math.inf
        self.pulse.trouble(now, astray=True)
        self._teller.unreachable(self._address, reason, now, broken=False)
