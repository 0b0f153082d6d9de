"""The life of one simulated process.

A process that was killed runs no more code, but its tasks unwind when they are cancelled. So it is
marked dead *before* it is cancelled, and from then on every call through a seam raises
``NodeDead`` and has no effect: a ``finally`` block cannot do what a dead process could not.
"""

from typing import cast


class NodeDead(BaseException):
    """The process this code runs in is dead; only the outer border of its node catches this."""


class Life:
    """One process from start to death. A restarted node has a new one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.steps = 0  # disk operations so far that change something
        self.dies_at_step: int | None = None  # crash point: dies instead of that operation

    def check(self) -> None:
        """Raise ``NodeDead`` if this process is no more."""
        if self.dead:
            raise NodeDead(self.name)

    def step(self) -> None:
        """As ``check``, before an operation that changes the disk."""
        self.check()
        if self.steps == self.dies_at_step:
            self.dead = True
            raise NodeDead(f"{self.name} at step {self.steps}")
        self.steps += 1


def single(error: BaseException) -> BaseException:
    """The one error of a group of one, however deep, as it would be without nurseries."""
    if isinstance(error, BaseExceptionGroup):
        inner = cast("tuple[BaseException, ...]", error.exceptions)
        return single(inner[0]) if len(inner) == 1 else cast("BaseException", error)
    return error
