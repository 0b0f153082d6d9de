"""The heartbeat thread: one per client, for as long as it has members of groups (C13).

It keeps their sessions alive whatever the event loop does: it has connections of its own, waits in
``select``, and never waits for the loop. What it hears goes to the loop by calls that do not wait.

Invariants:
- everything about a seat is done by the thread; the loop only asks for it (``_Thread.do``);
- what is told about a member arrives on the loop in the order in which it happened;
- it is a daemon and ends with the last member, with the client's tasks, or with the loop;
- a forked child has no such thread, and closes its copies of the sockets.
"""

import contextlib
import math
import os
import selectors
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import anyio

from tailrace.client.coordinator import Coordinator
from tailrace.client.heart_seat import Seat, Surroundings, Told
from tailrace.client.loop_calls import LoopCalls
from tailrace.client.loop_watch import LoopWatch
from tailrace.client.membership import Assignment, Event
from tailrace.client.options import Address
from tailrace.client.pulse import Pulse

if TYPE_CHECKING:
    from tailrace.client.client import Client

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # no descriptor to fork
_threads: "weakref.WeakSet[_Thread]" = weakref.WeakSet()


class Heart(Protocol):
    """What keeps members alive: ``ThreadHeart`` or ``heart_task.TaskHeart``."""

    def add(
        self,
        pulse: Pulse,
        coordinator: Coordinator,
        address: Address,
        tell: Callable[[Told], None],
    ) -> None:
        """Send its heartbeats from now on, first to ``address``; ``tell`` is called on the loop."""
        ...

    def release(self, pulse: Pulse, assignment: Assignment) -> None:
        """It reads that partition no longer."""
        ...

    def leave(self, pulse: Pulse) -> None:
        """Say goodbye; ``Left`` is told when the coordinator has heard it."""
        ...

    def remove(self, pulse: Pulse) -> None:
        """Nothing is sent or told any more. Safe to call again."""
        ...

    def hurry(self) -> None:
        """A broker has come back: whoever waits for its next attempt makes it now."""
        ...


class ThreadHeart:
    """``Heart`` by a thread; used on the client's event loop."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._tellers: dict[Pulse, Callable[[Told], None]] = {}
        self._thread: _Thread | None = None

    def add(
        self,
        pulse: Pulse,
        coordinator: Coordinator,
        address: Address,
        tell: Callable[[Told], None],
    ) -> None:
        """See ``Heart``."""
        self._tellers[pulse] = tell
        if self._thread is None or self._thread.ended:
            self._thread = _Thread(self._client)
            self._client.runtime.start_soon(self._deliver, self._thread)
            self._thread.start()
        thread = self._thread
        thread.do(lambda: thread.take(pulse, address))

    def release(self, pulse: Pulse, assignment: Assignment) -> None:
        """See ``Heart``."""
        if (thread := self._thread) is not None:
            thread.do(lambda: thread.happened(pulse, pulse.release(assignment)))

    def leave(self, pulse: Pulse) -> None:
        """See ``Heart``."""
        if self._thread is not None:
            self._thread.do(pulse.leave)

    def remove(self, pulse: Pulse) -> None:
        """See ``Heart``."""
        if self._tellers.pop(pulse, None) is None or (thread := self._thread) is None:
            return
        thread.do(lambda: thread.drop(pulse))
        if not self._tellers:
            self._thread = None
            thread.stop()

    def hurry(self) -> None:
        """See ``Heart``."""
        if (thread := self._thread) is not None:
            thread.do(thread.hurry)

    async def _deliver(self, thread: "_Thread") -> None:
        """Tell the members what the thread has heard. The thread ends with this task."""
        try:
            while not thread.stopping:
                await thread.bell.wait()
                thread.bell = anyio.Event()
                while thread.told:
                    pulse, told = thread.told.popleft()
                    if (tell := self._tellers.get(pulse)) is not None:
                        tell(told)
                if thread.crash is not None:
                    raise thread.crash
        finally:
            thread.stop()


class _Thread:
    """One life of the thread, from its first member to its last."""

    def __init__(self, client: "Client") -> None:
        self.told: deque[tuple[Pulse, Told]] = deque()
        self.bell = anyio.Event()  # rung on the loop when something was told
        self.stopping = False
        self.ended = False
        self.crash: BaseException | None = None  # what has ended it, if it was a bug
        self._now = client.clock.now
        self._calls = LoopCalls()
        self._watch = LoopWatch(self._calls, self._now)
        self._wishes: deque[Callable[[], None]] = deque()
        self._seats: dict[Pulse, Seat] = {}
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        cluster, options = client.cluster, client.options

        def addresses() -> list[Address]:
            # Copied at once: the loop changes the dictionary meanwhile.
            known = [broker.address for broker in list(cluster.brokers.values())]
            return [*known, *options.addresses]

        self._around = Surroundings(options, cluster.cluster_id, addresses)
        self._thread = threading.Thread(target=self._main, name="tailrace.heart", daemon=True)
        _threads.add(self)

    # ── for the loop ─────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def do(self, wish: Callable[[], None]) -> None:
        """Have the thread do something soon, after what was wished before."""
        self._wishes.append(wish)
        self._wake()

    def stop(self) -> None:
        """End as soon as what was wished is done. Does not wait for it."""
        if not self.stopping:
            self.stopping = True
            self.bell.set()
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: it has ended
            self._waker.send(b"\0")

    # ── in the thread ────────────────────────────────────────────────────────────────────────

    def take(self, pulse: Pulse, address: Address) -> None:
        """A new member."""

        def tell(told: Told) -> None:
            self._tell(pulse, told)

        self._seats[pulse] = Seat(self._around, pulse, address, tell)

    def happened(self, pulse: Pulse, events: list[Event]) -> None:
        """Tell the loop."""
        for event in events:
            self._tell(pulse, event)

    def drop(self, pulse: Pulse) -> None:
        """Forget a member, which may not have said goodbye."""
        seat = self._seats.pop(pulse, None)
        if seat is not None:
            seat.farewell(self._now())
            seat.close()
        pulse.end()

    def hurry(self) -> None:
        """See ``Heart``."""
        for seat in self._seats.values():
            if seat.line is None:
                seat.pulse.hurry()

    def _tell(self, pulse: Pulse, told: Told) -> None:
        self.told.append((pulse, told))
        self._calls.soon(self._ring)

    def _ring(self) -> None:
        self.bell.set()

    def _main(self) -> None:
        try:
            # With the loop everybody is gone who could read for these members.
            while not (self.stopping or self._calls.ended):
                self._turn()
            while self._wishes:
                self._wishes.popleft()()
            for seat in self._seats.values():
                seat.farewell(self._now())
        except BaseException as error:  # the border between the threads
            self.crash = error
        finally:
            self.ended = True
            self._watch.end()
            self.close()
            self._calls.soon(self._ring)

    def _turn(self) -> None:
        """Wait until something is due or arrives, and do it."""
        while self._wishes:
            self._wishes.popleft()()
        if self._now() >= self._watch.next_at:
            self._watch.tick()
        for seat in list(self._seats.values()):
            seat.step(self._now())
        for seat in self._wait():
            seat.ready(self._now())

    def _wait(self) -> list[Seat]:
        """The seats whose sockets are ready."""
        wake_at = min((seat.wake_at() for seat in self._seats.values()), default=math.inf)
        with _Selector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for seat in self._seats.values():
                if seat.line is not None:
                    wanted = selectors.EVENT_READ
                    if seat.line.wants_write:
                        wanted |= selectors.EVENT_WRITE
                    selector.register(seat.line, wanted, seat)
            timeout = max(0.0, min(wake_at, self._watch.next_at) - self._now())
            found = [] if self._wishes else selector.select(timeout)
        ready: list[Seat] = []
        for key, _ in found:
            if key.data is None:
                self._drain()
            else:
                ready.append(key.data)
        return ready

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def close(self) -> None:
        """Close what is open, without a word to anybody."""
        for seat in self._seats.values():
            seat.close()
        self._woken.close()
        self._waker.close()


def _in_forked_child() -> None:
    for thread in list(_threads):
        thread.stopping = thread.ended = True
        thread.close()


os.register_at_fork(after_in_child=_in_forked_child)
