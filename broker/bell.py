"""Wakes one task: cheaper than an event per round, and rings are remembered."""

import trio


class Bell:
    """At most one task waits; ringing before it waits is as good as after."""

    __slots__ = ("_rung", "_waiting")

    def __init__(self) -> None:
        self._rung = False
        self._waiting: trio.lowlevel.Task | None = None

    def ring(self) -> None:
        """Let ``wait`` return, now or at its next call."""
        if self._rung:
            return
        self._rung = True
        if self._waiting is not None:
            trio.lowlevel.reschedule(self._waiting)
            self._waiting = None

    async def wait(self) -> None:
        """Return once the bell was rung since the last return. Cancelled: the ring is kept."""
        if self._rung:
            await trio.lowlevel.checkpoint()
        else:
            assert self._waiting is None, "one task per bell"
            self._waiting = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort)
        self._rung = False

    def _abort(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED
