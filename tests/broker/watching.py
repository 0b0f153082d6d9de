"""A broker whose groups are watched by a clock the test moves."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from tailrace.broker.server import Server
from tailrace.broker.world import World
from tailrace.protocol.errors import CoordinatorLoading
from tailrace.protocol.messages import (
    DescribeGroupRequest,
    DescribeGroupResponse,
    PartitionProgress,
)
from tailrace.storage.disk import Disk
from tests.broker.harness import Client, Settings, connected, serving
from tests.hand_clock import HandClock


@asynccontextmanager
async def watched(
    path: Path,
    settings: Settings | None = None,
    seconds: float = 1_000.0,
    disk: Disk | None = None,
) -> AsyncGenerator[tuple[Server, Client, HandClock]]:
    """A broker whose clocks are the test's, and a client."""
    clock = HandClock(seconds)

    def change(world: World) -> World:
        return replace(world, clock=clock, disk=disk or world.disk)

    given: Settings = {"group.assign_delay": "0ms", **(settings or {})}
    async with serving(path, given, change) as (server, ready), connected(ready) as client:
        yield server, client, clock


async def describe(client: Client, group: str = "g") -> DescribeGroupResponse:
    while True:
        with suppress(CoordinatorLoading):
            return (await client.ask(DescribeGroupRequest(group), DescribeGroupResponse))[0]


async def first(client: Client) -> PartitionProgress:
    return (await describe(client)).partitions[0]
