"""Identities for idempotent producers, from blocks of the metadata store.

An id is given out once, ever: what is left of a block when the broker stops is lost.
"""

import trio

from tailrace.broker.registry import Registry


class ProducerIds:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._block = iter(range(0))
        self._fetching = trio.Lock()  # one block at a time, not one for each who waits

    def take_now(self) -> int | None:
        """An id, or None if a new block must be taken first."""
        return next(self._block, None)

    async def take(self) -> int:
        """An id; T100 if a new block is needed and the store is away."""
        while (taken := self.take_now()) is None:
            async with self._fetching:
                if (taken := self.take_now()) is not None:
                    return taken
                self._block = iter(await self._registry.producer_ids())
        return taken
