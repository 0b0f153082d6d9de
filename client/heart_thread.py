"""The heartbeat thread: one per client, for as long as it has members of groups (C13).

It keeps their sessions alive whatever the event loop does: it has connections of its own, waits in
``select``, and never waits for the loop. What it hears goes to the loop by calls that do not wait.

Invariants:
- everything about a seat is done by the thread; the loop only asks for it (``do``);
- what is told about a member is told in the order in which it happened;
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
from typing import TYPE_CHECKING

import anyio

from tailrace.client.heart_seat import Seat, Surroundings
from tailrace.client.heart_told import Told
from tailrace.client.loop_calls import LoopCalls
from tailrace.client.loop_watch import LoopWatch
from tailrace.client.membership import Assignment
from tailrace.client.options import Address
from tailrace.client.pulse import Pulse

if TYPE_CHECKING:
    from tailrace.client.client import Client

_Selector: type[selectors.BaseSelector] = getattr(
    selectors, "PollSelector", selectors.SelectSelector
)  # no descriptor of its own: a forked child shares nothing with it
_threads: "weakref.WeakSet[HeartThread]" = weakref.WeakSet()


class HeartThread:
    """One life of the thread, from its first member to its last."""

    def __init__(self, client: "Client") -> None:
        self.told: deque[tuple[Pulse, Told]] = deque()
        self.bell = anyio.Event()  # rung on the loop when something was told
        self.stopping = False
        self.ended = False
        self.crash: BaseException | None = None  # what has ended it, if it was a bug
        self._now = client.clock.now
        self._calls = LoopCalls()
        self.watch = LoopWatch(self._calls, self._now)
        self._wishes: deque[Callable[[], None]] = deque()
        self._seats: dict[Pulse, Seat] = {}
        self._wake_at: dict[Seat, float] = {}
        self._touched: dict[Seat, None] = {}  # something may be due
        self._waits_for: dict[Seat, tuple[int, int]] = {}  # descriptor and events
        self._selector: selectors.BaseSelector = _Selector()
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
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
        """Begin. Raises RuntimeError if no thread can be started: nothing is left of it then."""
        try:
            self._thread.start()
        except RuntimeError:
            self.ended = True
            self.close()
            raise

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

    # ── in the thread: what is wished ────────────────────────────────────────────────────────

    def take(self, pulse: Pulse, address: Address) -> None:
        """A new member."""

        def tell(told: Told) -> None:
            self._tell(pulse, told)

        seat = self._seats[pulse] = Seat(self._around, pulse, address, tell)
        self._touched[seat] = None

    def release(self, pulse: Pulse, assignment: Assignment) -> None:
        """A member reads that partition no longer."""
        if (seat := self._seats.get(pulse)) is not None:
            for event in pulse.release(assignment):
                self._tell(pulse, event)
            self._touched[seat] = None

    def leave(self, pulse: Pulse) -> None:
        """A member says goodbye."""
        if (seat := self._seats.get(pulse)) is not None:
            pulse.leave()
            self._touched[seat] = None

    def drop(self, pulse: Pulse) -> None:
        """Forget a member, which may not have said goodbye."""
        seat = self._seats.pop(pulse, None)
        if seat is not None:
            seat.farewell(self._now())
            seat.close()
            self._look(seat)
            del self._wake_at[seat]
            self._touched.pop(seat, None)
        pulse.end()

    def hurry(self) -> None:
        """Whoever waits for its next attempt makes it now."""
        for pulse, seat in self._seats.items():
            if seat.line is None:
                pulse.hurry()
                self._touched[seat] = None

    # ── in the thread: its turns ─────────────────────────────────────────────────────────────

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
            self.watch.end()
            self.close()
            self._calls.soon(self._ring)

    def _turn(self) -> None:
        """Do what is due, wait for more, take what has come."""
        while self._wishes:
            self._wishes.popleft()()
        now = self._now()
        if now >= self.watch.next_at:
            self.watch.tick()
        due = [seat for seat, at in self._wake_at.items() if at <= now]
        touched, self._touched = self._touched, {}
        for seat in {**touched, **dict.fromkeys(due)}:
            seat.step(now)
            self._look(seat)
        for seat in self._wait():
            # After a stop of the process the answers come first, then what is overdue.
            seat.ready(self._now())
            self._look(seat)
            self._touched[seat] = None

    def _wait(self) -> list[Seat]:
        """The seats whose sockets are ready."""
        next_at = min(self.watch.next_at, min(self._wake_at.values(), default=math.inf))
        at_once = bool(self._wishes or self._touched)
        found = self._selector.select(0 if at_once else max(0.0, next_at - self._now()))
        ready: list[Seat] = []
        for key, _ in found:
            if key.data is None:
                self._drain()
            else:
                ready.append(key.data)
        return ready

    def _look(self, seat: Seat) -> None:
        """When a seat is due again, and what it waits for: after everything that it did."""
        self._wake_at[seat] = seat.wake_at()
        before, line = self._waits_for.get(seat), seat.line
        wanted: tuple[int, int] | None = None
        if line is not None:
            write = selectors.EVENT_WRITE if line.wants_write else 0
            wanted = (line.fileno(), selectors.EVENT_READ | write)
        if wanted == before:
            return
        if before is not None:
            self._selector.unregister(before[0])
            del self._waits_for[seat]
        if wanted is not None:
            self._selector.register(wanted[0], wanted[1], seat)
            self._waits_for[seat] = wanted

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def close(self) -> None:
        """Close what is open, without a word to anybody."""
        for seat in self._seats.values():
            seat.close()
        self._selector.close()
        self._woken.close()
        self._waker.close()


def _in_forked_child() -> None:
    for thread in list(_threads):
        thread.stopping = thread.ended = True
        thread.watch.end()  # the loop of a child has the same thread
        thread.close()


os.register_at_fork(after_in_child=_in_forked_child)
