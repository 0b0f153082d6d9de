"""Heartbeats over the event loop (``heartbeat="task"``): a task and a connection per member.

What ``heart.py`` does with a thread, for the simulation: the client's network, clock and randomness
only, so that a run repeats. A handler that blocks the loop keeps these heartbeats from leaving.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio

from tailrace.client.channel import Channel, Lost, Outcome, open_channel
from tailrace.client.coordinator import Coordinator
from tailrace.client.heart_told import Teller, Told
from tailrace.client.membership import Assignment
from tailrace.client.net import reason_of
from tailrace.client.options import Address
from tailrace.client.pulse import Beat, Pulse
from tailrace.protocol.errors import ConnectError, TailraceError
from tailrace.protocol.messages import HeartbeatResponse

if TYPE_CHECKING:
    from tailrace.client.client import Client


class TaskHeart:
    """``heart.Heart`` by tasks."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._beating: dict[Pulse, _Beating] = {}

    def add(
        self,
        pulse: Pulse,
        coordinator: Coordinator,
        address: Address,
        tell: Callable[[Told], None],
    ) -> None:
        """See ``Heart``."""
        self._beating[pulse] = beating = _Beating(self._client, pulse, coordinator, tell)
        self._client.runtime.start_soon(beating.run)

    def release(self, pulse: Pulse, assignment: Assignment) -> None:
        """See ``Heart``."""
        if (beating := self._beating.get(pulse)) is not None:
            beating.release(assignment)

    def leave(self, pulse: Pulse) -> None:
        """See ``Heart``."""
        pulse.leave()
        if (beating := self._beating.get(pulse)) is not None:
            beating.wake()

    def remove(self, pulse: Pulse) -> None:
        """See ``Heart``."""
        if (beating := self._beating.pop(pulse, None)) is not None:
            beating.farewell()
            beating.end()
        pulse.end()

    def hurry(self) -> None:
        """See ``Heart``."""
        for pulse, beating in self._beating.items():
            if beating.channel is None:
                pulse.hurry()
                beating.wake()


class _Beating:
    """One member."""

    def __init__(
        self,
        client: "Client",
        pulse: Pulse,
        coordinator: Coordinator,
        tell: Callable[[Told], None],
    ) -> None:
        self.channel: Channel | None = None
        self._client = client
        self._pulse = pulse
        self._coordinator = coordinator
        self._teller = Teller(pulse, tell)
        self._now = client.clock.now
        self._woken = anyio.Event()
        self._scope = anyio.CancelScope()

    async def run(self) -> None:
        """Until the member has left, failed or was removed."""
        with self._scope:
            while not self._pulse.over:
                if self.channel is None:
                    await self._wait_until(self._pulse.retry_at())
                    await self._connect()
                elif self._pulse.astray:
                    self._coordinator.forget()
                    self.channel.close("not the coordinator")
                else:
                    self._send(self.channel)
                    await self._wait_until(min(self._pulse.next_at(), self._pulse.overdue_at()))
                    self._check_silence()
        self.end()

    def wake(self) -> None:
        """Something is due."""
        self._woken.set()

    def farewell(self) -> None:
        """Say goodbye if that is possible now, and do not wait."""
        if self.channel is not None and not self._pulse.over:
            self._pulse.leave()
            self._send(self.channel)

    def end(self) -> None:
        """Nothing is sent or told any more."""
        self._scope.cancel()
        if self.channel is not None:
            channel, self.channel = self.channel, None
            channel.on_lost = None
            channel.close()

    def release(self, assignment: Assignment) -> None:
        """See ``heart.Heart``."""
        self._teller.happened(self._pulse.release(assignment))
        self.wake()

    async def _wait_until(self, at: float) -> None:
        """Until then, or until ``wake``."""
        pause_s = at - self._now()
        if pause_s > 0:
            with anyio.move_on_after(pause_s):
                await self._woken.wait()
        self._woken = anyio.Event()

    async def _connect(self) -> None:
        pulse, runtime = self._pulse, self._client.runtime
        limit_s = min(runtime.options.connect_timeout, pulse.patience_s)
        address = runtime.options.addresses[0]
        try:
            address = await self._coordinator.address(timeout=limit_s)
            cluster_id = self._client.cluster.cluster_id
            channel = await open_channel(runtime, address, cluster_id, limit_s)
        except OSError as error:
            self._look_elsewhere()
            self._teller.lost(address, reason_of(error), self._now())
        except ConnectError as error:
            self._look_elsewhere()
            self._teller.lost(address, error.message, self._now())
        except TailraceError as error:
            if error.retriable:
                pulse.lost_connection(self._now())
                self._teller.unreachable(address, error.message, self._now(), broken=False)
            else:
                self._teller.failed(error, self._now())
        else:
            pulse.astray = False
            channel.on_lost = self._lost
            self.channel = channel

    def _look_elsewhere(self) -> None:
        """Another broker may have taken over; the only one there is, is waited for."""
        if self._client.cluster.several:
            self._coordinator.forget()

    def _send(self, channel: Channel) -> None:
        while self._pulse.next_at() <= self._now():
            beat = self._pulse.send(self._now())
            try:
                channel.post(beat.request, (), partial(self._outcome, beat))
            except ConnectError as error:  # it does not serve groups
                self._teller.failed(error, self._now())

    def _check_silence(self) -> None:
        if self.channel is not None and self._now() >= self._pulse.overdue_at():
            self.channel.close("timed out")

    def _outcome(self, beat: Beat, outcome: Outcome, _: memoryview) -> None:
        now = self._now()
        if isinstance(outcome, TailraceError):
            where = None if self.channel is None else self.channel.address
            self._teller.refused(beat, outcome, where, now)
        elif isinstance(outcome, HeartbeatResponse):
            self._teller.answered(beat, outcome, now)
        self.wake()

    def _lost(self, lost: Lost) -> None:
        self.channel = None
        self._look_elsewhere()
        self._teller.lost(lost.address, lost.reason, self._now())
        self.wake()
