"""Any broker answers for the whole cluster: a request goes to whoever it concerns.

Used by the broker's own rooms that answer users (HTTP). What concerns this broker goes to its own
handlers (``local.py``), as if a client had asked.
"""

from typing import TypeVar

from tailrace.broker.local import LocalCaller
from tailrace.broker.node import Node
from tailrace.protocol.errors import from_wire
from tailrace.protocol.messages import (
    MetadataRequest,
    MetadataResponse,
    Request,
    Response,
    TopicMetadata,
)

R = TypeVar("R", bound=Response)


class Gateway:
    """Every method raises the TailraceError that a client would get. Cancelled: a change may still
    take effect."""

    def __init__(self, node: Node, who: str = "http") -> None:
        self.node = node
        self._who = who

    async def ask(self, request: Request, expected: type[R]) -> R:
        """What this broker itself says."""
        response, _ = await self._ask_here(request, bytearray())
        assert isinstance(response, expected)
        return response

    async def ask_leader(
        self, topic: str, partition: int, request: Request, expected: type[R], body: bytes = b""
    ) -> tuple[R, bytes]:
        """What the leader of a partition says, and the bytes behind it."""
        response, data = await self._ask_here(request, bytearray(body))
        assert isinstance(response, expected)
        return response, data

    async def ask_group(self, group: str, request: Request, expected: type[R]) -> R:
        """What the coordinator of a group says."""
        return await self.ask(request, expected)

    async def topic(self, name: str, *, auto_create: bool = False) -> TopicMetadata:
        """Where a topic's partitions are. T010 if there is none."""
        response = await self.ask(MetadataRequest((name,), auto_create), MetadataResponse)
        found = response.topics[0]
        if found.error is not None:
            raise from_wire(found.error)
        return found

    async def _ask_here(self, request: Request, body: bytearray) -> tuple[Response, bytes]:
        return await LocalCaller(self.node, self._who).ask(request, body)
