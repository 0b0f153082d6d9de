"""Short tasks of one consumer: they live in the client's task group, and ``close`` ends them."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from tailrace.client.client import Client


class Errands:
    """See the module."""

    def __init__(self, client: "Client") -> None:
        self._client = client
        self._scopes: dict[anyio.CancelScope, None] = {}  # in order: a simulation repeats

    def start(self, fn: Callable[..., Awaitable[None]], *args: object) -> None:
        """Run it in the background."""
        scope = anyio.CancelScope()
        self._scopes[scope] = None
        self._client.runtime.start_soon(self._scoped, scope, fn, args)

    def close(self) -> None:
        """End those that run."""
        for scope in list(self._scopes):
            scope.cancel()

    async def _scoped(
        self,
        scope: anyio.CancelScope,
        fn: Callable[..., Awaitable[None]],
        args: tuple[object, ...],
    ) -> None:
        try:
            with scope:
                await fn(*args)
        finally:
            del self._scopes[scope]
