"""Awaiting something in a ``contextvars`` context of its own, within a task that has another.

``run.py`` handles many records in one task. What a handler sets for one of them, a request id say,
must not be there for the next one, as if each had a task to itself.
"""

from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

A = TypeVar("A")


class Apart(Generic[A]):
    """``await Apart(context, call, argument)``: ``await call(argument)``, all of it in ``context``.

    Raises what that raises. Cancelled: that is.
    """

    __slots__ = ("_argument", "_call", "_context")

    def __init__(
        self, context: Context, call: Callable[[A], Awaitable[object]], argument: A
    ) -> None:
        self._context = context
        self._call = call
        self._argument = argument

    def __await__(self) -> Generator[Any, Any, None]:
        """``yield from`` (PEP 380), with each step in the context."""
        within = self._context.run
        steps: Any = within(_begin, self._call, self._argument)
        try:
            found = within(next, steps)
            while True:
                try:
                    told = yield found
                except GeneratorExit:
                    if hasattr(steps, "close"):
                        within(steps.close)
                    raise
                except BaseException as error:
                    if not hasattr(steps, "throw"):
                        raise
                    found = within(steps.throw, error)
                else:
                    found = within(next, steps) if told is None else within(steps.send, told)
        except StopIteration:
            return


def _begin(call: Callable[[A], Awaitable[object]], argument: A) -> object:
    return call(argument).__await__()
