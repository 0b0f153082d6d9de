"""The bytes a producer may hold, and the queue of those who wait for some of them (C5)."""

from collections import deque

import anyio

from tailrace.protocol.errors import TailraceError


class _Ticket:
    __slots__ = ("error", "event", "granted", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.granted = False
        self.error: TailraceError | None = None
        self.event = anyio.Event()


class Room:
    """``used`` of ``limit`` bytes; whoever waits is served in order of arrival."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.queue: deque[_Ticket] = deque()  # those who wait

    def free_for(self, size: int) -> bool:
        """Whether ``size`` bytes can be taken without waiting, and nobody waits already.

        A single record larger than everything is let in alone, else it would wait for ever.
        """
        return not self.queue and (self.used + size <= self.limit or not self.used)

    async def wait(self, size: int) -> None:
        """Until ``size`` bytes are free; take them before anything else is awaited.

        Raises what ``refuse`` was given. Cancelled: the place in the queue is given up.
        """
        ticket = _Ticket(size)
        self.queue.append(ticket)
        try:
            await ticket.event.wait()
        finally:
            if ticket.granted:
                self.used -= size  # it was kept for this task until now
            elif ticket.error is None:
                self.queue.remove(ticket)
        if ticket.error is not None:
            raise ticket.error

    def release(self, size: int) -> None:
        """So many bytes are free again."""
        self.used -= size
        assert self.used >= 0
        self.serve()

    def serve(self) -> None:
        """Let in from the queue whoever fits now."""
        while self.queue:
            first = self.queue[0]
            if self.used and self.used + first.size > self.limit:
                return
            self.queue.popleft()
            self.used += first.size
            first.granted = True
            first.event.set()

    def refuse(self, error: TailraceError) -> None:
        """Nobody is let in any more."""
        while self.queue:
            ticket = self.queue.popleft()
            ticket.error = error
            ticket.event.set()
