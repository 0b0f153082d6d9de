"""Hooks on what happens to a client: connected, reconnecting, rebalanced, stalled."""

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, cast

from tailrace.client.shapes import Event
from tailrace.protocol.seams import Clock

EventName = Literal["connected", "reconnecting", "rebalanced", "stalled"]
Hook = Callable[[Event], Awaitable[None] | None]
NAMES: tuple[EventName, ...] = ("connected", "reconnecting", "rebalanced", "stalled")

_log = logging.getLogger("tailrace.client")


class StartSoon(Protocol):
    """Starts a background task in the client's task group."""

    def __call__(self, fn: Callable[..., Awaitable[object]], *args: object) -> None: ...


class Events:
    """The hooks of one client. A hook that fails is logged at ERROR and hurts nobody else."""

    def __init__(self, clock: Clock, start_soon: StartSoon) -> None:
        self._clock = clock
        self._start_soon = start_soon
        self._hooks: dict[EventName, list[Hook]] = {name: [] for name in NAMES}

    def on(self, name: EventName, hook: Hook) -> None:
        """Call ``hook`` at every such event from now on; a coroutine runs as a task."""
        self._hooks[name].append(hook)

    def emit(self, name: EventName, reason: str, **details: object) -> None:
        """Tell the hooks. Synchronous: a hook that is a coroutine function is started."""
        hooks = self._hooks[name]
        if not hooks:
            return
        event = Event(name=name, at=self._clock.wall_ms(), reason=reason, details=details)
        for hook in hooks:
            try:
                result = hook(event)
            except Exception:  # the border to user code
                _log_failure(name)
            else:
                if inspect.isawaitable(result):
                    self._start_soon(_await_hook, name, result)


async def _await_hook(name: EventName, result: object) -> None:
    try:
        await cast(Awaitable[None], result)
    except Exception:  # the border to user code
        _log_failure(name)


def _log_failure(name: EventName) -> None:
    extra = {"event": "client.hook_failed", "code": None}
    _log.exception("a hook on '%s' failed", name, extra=extra)
