"""The connections to one broker: control, produce and fetch, kept apart.

A ``Link`` is one of them: dialled when somebody asks for it, dialled again after a loss, with a
growing pause between failures. The control link is the broker's pulse: it is restored eagerly,
every attempt is logged, and the end of the outage (C11), and the other two wait for it, so that a
broker which is gone is knocked at once per pause and not three times.
"""

import copy
import logging
from typing import Literal, Protocol

import anyio

from tailrace.client.channel import Channel, Lost, open_channel
from tailrace.client.metrics import instruments
from tailrace.client.net import reason_of
from tailrace.client.options import Address
from tailrace.client.retry import LIMIT_S, Backoff, reconnected, reconnecting
from tailrace.client.runtime import Runtime
from tailrace.protocol.errors import ConnectError, TailraceError

DIAL_S = 1.0  # what somebody who could ask elsewhere waits for a connection

Kind = Literal["control", "produce", "fetch"]
_log = logging.getLogger("tailrace.client")


class Watcher(Protocol):
    """Whom a link reports to: the cluster."""

    failure: TailraceError | None  # set once the outage is over: every call raises it

    @property
    def cluster_id(self) -> str:
        """Told to every broker, so that a wrong one can say so."""
        ...

    def link_down(self, link: "Link", reason: str) -> None:
        """A control link was lost, or could not be dialled."""
        ...

    def link_up(self, link: "Link") -> None:
        """A control link is open."""
        ...


class Link:
    """One connection that is made again when it breaks."""

    def __init__(
        self, runtime: Runtime, watcher: Watcher, address: Address, control: "Link | None" = None
    ) -> None:
        self.address = address
        self.channel: Channel | None = None
        self.reason = ""  # of the last loss or failed attempt
        self.closed = False
        self._runtime = runtime
        self._watcher = watcher
        self._control = control  # None: this is the control link itself
        self._backoff = Backoff(runtime.random)
        self._not_before = 0.0
        self._hurried = anyio.Event()
        self._borne: list[Link] = []  # those that wait for this one
        self._opened_at = 0.0
        self._down_since: float | None = None
        self._attempts = 0  # since then
        self._dialling = False
        self._changed = anyio.Event()
        if control is not None:
            control._borne.append(self)

    @property
    def troubled(self) -> bool:
        """Whether the last attempt to open it, or the control link, has failed."""
        if self.channel is not None:
            return False
        control = self._control
        return self._down_since is not None or (control is not None and control.troubled)

    async def get(self, *, patient: bool = True) -> Channel:
        """The open channel, waiting through an outage for as long as it takes.

        Not ``patient``: only for an attempt that is under way, and for no more than ``DIAL_S``
        seconds; T001 says that it failed, and it goes on in the background all the same.

        Raises ConnectError T005 when ``max_outage`` passed, T001 when the broker has left the
        cluster. Cancelled: the dialling goes on in the background.
        """
        if not patient:
            with anyio.move_on_after(DIAL_S):
                return await self._get(patient=False)
            raise Lost(self.address, self.reason or "no connection yet").error(DIAL_S)
        return await self._get(patient=True)

    async def _get(self, *, patient: bool) -> Channel:
        while self.channel is None:
            if self._watcher.failure is not None:
                raise copy.copy(self._watcher.failure)
            if self.closed:
                raise Lost(self.address, self.reason or "closed").error(0.0)
            self.wake()
            if not patient and self.troubled:
                raise Lost(self.address, self.reason or "no connection yet").error(0.0)
            if not patient and self._control is not None and self._control.channel is None:
                await self._control.get(patient=False)
                continue
            await self._changed.wait()
        return self.channel

    def wake(self) -> None:
        """Dial in the background if there is no channel yet."""
        if self.channel is None and not self._dialling and not self.closed:
            self._dialling = True
            self._runtime.start_soon(self._dial)

    def hurry(self) -> None:
        """News that the broker is at work: the next attempt comes as soon as if it were the first.

        Not at once: its other clients have heard it, too. One that is under way stays, and what
        follows it if it fails is the second.
        """
        if self.channel is None:
            self._backoff.reset()
            at = self._runtime.clock.now() + self._backoff.next()
            self._not_before = min(self._not_before, at)
            self._look_again()

    def adopt(self, channel: Channel) -> None:
        """Use a channel that was opened elsewhere."""
        self.channel = channel
        self._opened_at = now = self._runtime.clock.now()
        if self._control is None and self._down_since is not None:
            text = reconnected(str(self.address), now - self._down_since, self._attempts)
            _log.warning(text, extra={"event": "client.reconnected", "code": None})
        self._down_since, self._attempts = None, 0
        channel.on_lost = self._lost
        self._notify()
        if self._control is None:
            self._watcher.link_up(self)
        if channel.lost is not None:  # it broke while nobody listened
            self._lost(channel.lost)

    def close(self, reason: str = "closed") -> None:
        """For good; whoever waits is told."""
        if self.closed:
            return
        self.closed = True
        self.reason = reason
        self._look_again()
        if self.channel is not None:
            self.channel.close(reason)
        self._notify()

    def tell_waiters(self) -> None:
        """The watcher's ``failure`` has been set."""
        self._notify()

    async def _dial(self) -> None:
        try:
            while self.channel is None and not self.closed and self._watcher.failure is None:
                if self._control is not None:
                    await self._control.get()
                pause_s = self._not_before - self._runtime.clock.now()
                if pause_s > 0:
                    with anyio.move_on_after(pause_s):
                        await self._hurried.wait()
                    continue
                await self._attempt()
        except ConnectError:
            pass  # the control link is over for good: waiters find out the same way
        except BaseException as error:
            # The client ends with what nobody foresaw, or has ended. Whoever waits meanwhile (a
            # last commit may) would dial again at once, and fail again, as long as it has time.
            self.close(f"dialling ended by {type(error).__name__}")
            raise
        finally:
            self._dialling = False
            self._notify()

    async def _attempt(self) -> None:
        timeout = self._runtime.options.connect_timeout
        try:
            channel = await open_channel(
                self._runtime, self.address, self._watcher.cluster_id, timeout
            )
        except OSError as error:
            self._failed(reason_of(error))
        except ConnectError as error:
            self._failed(error.message)
        else:
            if self.closed:
                channel.close()
            else:
                self.adopt(channel)

    def _lost(self, lost: Lost) -> None:
        channel, self.channel = self.channel, None
        if self.closed:
            return
        if channel is not None and self._worked(channel):
            self._backoff.reset()
            if self._control is not None:
                self._control._bore(self)
        self.reason = lost.reason
        if self._control is None:
            self._failed(lost.reason)
            self.wake()
        elif self._backoff.attempts:
            self._failed(lost.reason)
        else:  # first loss since it worked: try at once, as soon as the broker is there
            self._backoff.next()

    def _worked(self, channel: Channel) -> bool:
        """Whether the broker was at work, and not only taking connections. It may have answered on
        another one: of a producer's or a consumer's the control link carries next to nothing."""
        lasted_s = self._runtime.clock.now() - self._opened_at
        borne = [one.channel for one in self._borne if one._opened_at >= self._opened_at]
        answered = any(one.answered for one in (channel, *borne) if one is not None)
        return answered or lasted_s >= LIMIT_S

    def _bore(self, other: "Link") -> None:
        """One that waited for this link has worked, and is lost."""
        if self.channel is not None and other._opened_at >= self._opened_at:
            self._backoff.reset()

    def _look_again(self) -> None:
        """Whoever pauses before an attempt."""
        self._hurried.set()
        self._hurried = anyio.Event()

    def _failed(self, reason: str) -> None:
        self.reason = reason
        delay_s = self._backoff.next()
        attempt = self._backoff.attempts
        now = self._runtime.clock.now()
        self._not_before = now + delay_s
        self._down_since = now if self._down_since is None else self._down_since
        self._attempts += 1
        instruments.retried("reconnect")
        text = reconnecting(str(self.address), reason, attempt, delay_s)
        _log.warning(text, extra={"event": "client.reconnecting", "code": None})
        details = {"address": str(self.address), "attempt": attempt, "next_seconds": delay_s}
        self._runtime.events.emit("reconnecting", reason, **details)
        self._notify()
        if self._control is None:
            self._watcher.link_down(self, reason)

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
