"""The coordinator of a group: found when it is needed, remembered, asked with patience.

A request is tried again, until its time is up, over everything that passes: a broker that is gone
or is not (or no longer) the coordinator, a coordinator that still loads what the group committed.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import anyio

from tailrace.client.channel import name_of
from tailrace.client.metrics import instruments
from tailrace.client.options import Address
from tailrace.client.pulse import ASTRAY
from tailrace.client.retry import DISK_FAILED, LEADER_LIMIT_S, Backoff, passes
from tailrace.protocol import texts_client
from tailrace.protocol.errors import TailraceError
from tailrace.protocol.messages import (
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    Request,
    Response,
)

if TYPE_CHECKING:
    from tailrace.client.client import Client

T = TypeVar("T")


class Coordinator:
    """Of one group."""

    def __init__(self, client: "Client", group: str) -> None:
        self.group = group
        self._client = client
        self._broker_id: str | None = None  # as far as is known
        self._told_by, self._told_at = "", 0.0  # who said so, and when

    async def request(self, message: Request, *, timeout: float) -> Response:
        """Ask it, and return its answer; ``timeout`` in seconds, ``math.inf`` for ever.

        Raises what it answered, unless that passes; RequestTimeout T034, with the last error in its
        text; ConnectError T005. Cancelled: the request may still be carried out.
        """

        async def ask(limit_s: float) -> Response:
            clock = self._client.clock
            began = clock.now()
            broker_id = await self._find(limit_s)
            left_s = max(0.001, limit_s - (clock.now() - began))
            response, _ = await self._client.cluster.leader_request(
                broker_id, message, timeout=left_s
            )
            return response

        return await self._patiently(message, ask, timeout)

    async def address(self, *, timeout: float) -> Address:
        """Where it listens. Raises RequestTimeout T034 and ConnectError T005, as ``request``."""

        async def ask(limit_s: float) -> Address:
            broker_id = await self._find(limit_s)
            broker = self._client.cluster.brokers.get(broker_id)
            if broker is None:
                raise texts_client.no_broker([(broker_id, "not known")], elapsed_s=0.0)
            return broker.address

        return await self._patiently(FindCoordinatorRequest(self.group), ask, timeout)

    def forget(self) -> None:
        """It is somebody else, perhaps."""
        self._broker_id = None

    async def _find(self, timeout: float) -> str:
        if self._broker_id is None:
            self._broker_id, self._told_by = await _ask(self._client, self.group, timeout)
            self._told_at = self._client.clock.now()
        return self._broker_id

    async def _patiently(
        self, message: Request, ask: Callable[[float], Awaitable[T]], timeout: float
    ) -> T:
        clock, options = self._client.clock, self._client.options
        began = clock.now()
        several = self._client.cluster.several
        backoff = Backoff(self._client.random, LEADER_LIMIT_S if several else None)
        while True:
            left_s = max(0.001, timeout - (clock.now() - began))
            try:
                return await ask(min(left_s, options.request_timeout))
            except TailraceError as error:
                if not passes(error, several=several) or error.code in ("T005", "T042"):
                    raise
                if error.code in ASTRAY or error.code in ("T034", DISK_FAILED):
                    if self._broker_id is not None:
                        self._client.cluster.disbelieve(self._told_by, self._told_at)
                    self.forget()
                waited_s, pause_s = clock.now() - began, backoff.next()
                if waited_s + pause_s >= timeout:
                    if error.code == "T034":
                        raise
                    where = f"the coordinator of group '{self.group}' ({error.message})"
                    raise texts_client.request_timeout(
                        name_of(message), address=where, waited_s=waited_s
                    ) from error
                instruments.retried(error.code)
            await anyio.sleep(pause_s)


async def find_coordinator(client: "Client", group: str, *, timeout: float) -> str:
    """Its broker id, of a broker that is known. Raises what the request raises."""
    return (await _ask(client, group, timeout))[0]


async def _ask(client: "Client", group: str, timeout: float) -> tuple[str, str]:
    """``find_coordinator``, and who says so."""
    ends_at = client.clock.now() + timeout
    question = FindCoordinatorRequest(group)
    response, told_by = await client.cluster.ask_somebody(question, timeout=timeout)
    assert isinstance(response, FindCoordinatorResponse)
    if response.broker_id not in client.cluster.brokers:
        await client.cluster.refresh(timeout=max(0.001, ends_at - client.clock.now()))
    return response.broker_id, told_by
