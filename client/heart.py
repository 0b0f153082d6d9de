"""What keeps memberships alive (C13): the face of the heartbeat thread, on the event loop.

Heartbeats come from a thread (``heart_thread.py``), one per client for as long as it has members of
groups, or from tasks (``heart_task.py``). What is told about a member arrives on the loop, in the
order in which it happened.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import anyio

from tailrace.client.coordinator import Coordinator
from tailrace.client.heart_thread import HeartThread
from tailrace.client.heart_told import Told
from tailrace.client.membership import Assignment
from tailrace.client.net import reason_of
from tailrace.client.options import Address
from tailrace.client.pulse import Pulse
from tailrace.protocol import texts_client

if TYPE_CHECKING:
    from tailrace.client.client import Client


class Heart(Protocol):
    """What keeps members alive: ``ThreadHeart`` or ``heart_task.TaskHeart``."""

    def add(
        self,
        pulse: Pulse,
        coordinator: Coordinator,
        address: Address,
        tell: Callable[[Told], None],
    ) -> None:
        """Send its heartbeats from now on, first to ``address``; ``tell`` is called on the loop.

        Raises ConnectError T001 if this process has no thread or descriptor left for it.
        """
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
        self._thread: HeartThread | None = None

    def add(
        self,
        pulse: Pulse,
        coordinator: Coordinator,
        address: Address,
        tell: Callable[[Told], None],
    ) -> None:
        """See ``Heart``."""
        thread = self._thread
        if thread is None or thread.ended:
            try:
                thread = HeartThread(self._client)
                thread.start()
            except (OSError, RuntimeError) as error:
                reason = reason_of(error) if isinstance(error, OSError) else str(error)
                group = pulse.membership.identity.group
                raise texts_client.no_heart(group, address=str(address), reason=reason) from error
            self._thread = thread
            self._client.runtime.start_soon(self._deliver, thread)
        self._tellers[pulse] = tell
        taker = thread
        taker.do(lambda: taker.take(pulse, address))

    def release(self, pulse: Pulse, assignment: Assignment) -> None:
        """See ``Heart``."""
        if (thread := self._thread) is not None:
            thread.do(lambda: thread.release(pulse, assignment))

    def leave(self, pulse: Pulse) -> None:
        """See ``Heart``."""
        if (thread := self._thread) is not None:
            thread.do(lambda: thread.leave(pulse))

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

    async def _deliver(self, thread: HeartThread) -> None:
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
