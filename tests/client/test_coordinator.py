"""The coordinator of a group: found, remembered, asked again over what passes."""

import math
from collections import deque
from functools import partial

import anyio
import pytest

from tailrace.client.commits import fetch_committed
from tailrace.client.coordinator import Coordinator
from tailrace.protocol import texts, texts_group
from tailrace.protocol.errors import InvalidName, RequestTimeout, TailraceError
from tailrace.protocol.messages import (
    CommittedOffset,
    FetchOffsetsRequest,
    FetchOffsetsResponse,
    FindCoordinatorRequest,
    FindCoordinatorResponse,
    Response,
)
from tailrace.protocol.shapes import TopicPartition
from tests.client.fake_broker import FakeBroker, FakeNet
from tests.client.world import Run, World, until

LOADING = texts_group.coordinator_loading("g", broker="n1")
MOVED = texts.not_leader("__offsets", 0, broker="n1", leader="n2")
ORDERS = TopicPartition("orders", 0)
ID = b"t" * 16


class Grouped(FakeBroker):
    """A broker that coordinates: errors of its scripts first."""

    def __init__(self) -> None:
        super().__init__()
        self.finds: deque[TailraceError] = deque()
        self.fetches: deque[TailraceError] = deque()
        self.asked: list[str] = []

    def _answer(self, message: object) -> Response:
        if isinstance(message, FindCoordinatorRequest):
            self.asked.append("find")
            if self.finds:
                raise self.finds.popleft()
            return FindCoordinatorResponse(self.broker_id, 0)
        if isinstance(message, FetchOffsetsRequest):
            self.asked.append("fetch")
            if self.fetches:
                raise self.fetches.popleft()
            return FetchOffsetsResponse((CommittedOffset(ID, 0, 7, 1, 2, 3, 4, "note"),))
        return super()._answer(message)


@pytest.fixture
def grouped(world: World) -> Grouped:
    """The broker of ``world``."""
    world.broker = Grouped()
    world.net = FakeNet(world.broker)
    return world.broker


def test_coordinator_is_found_once(run: Run, world: World, grouped: Grouped) -> None:
    async def main() -> None:
        async with world.client() as client:
            coordinator = Coordinator(client, "g")
            for _ in range(2):
                found = await fetch_committed(coordinator, {ORDERS: ID}, timeout=1.0)
                assert found[ORDERS] == (7, 1, 2, 3, 4, "note")
            assert grouped.asked == ["find", "fetch", "fetch"]
            address = await coordinator.address(timeout=1.0)
            assert (address.host, address.port) == ("broker", 7400)

    run(main)


def test_loading_coordinator_is_asked_until_it_knows(
    run: Run, world: World, grouped: Grouped
) -> None:
    grouped.finds += [LOADING] * 2
    grouped.fetches += [LOADING] * 3

    async def main() -> None:
        async with world.client() as client:
            coordinator = Coordinator(client, "g")
            assert (await fetch_committed(coordinator, {ORDERS: ID}, timeout=5.0))[ORDERS]
        assert grouped.asked == ["find"] * 3 + ["fetch"] * 4

    run(main)


def test_broker_that_is_not_the_coordinator_any_more_is_looked_up_again(
    run: Run, world: World, grouped: Grouped
) -> None:
    grouped.fetches += [MOVED]

    async def main() -> None:
        async with world.client() as client:
            coordinator = Coordinator(client, "g")
            assert (await fetch_committed(coordinator, {ORDERS: ID}, timeout=5.0))[ORDERS]
        assert grouped.asked == ["find", "fetch", "find", "fetch"]

    run(main)


def test_time_is_up_some_time_and_the_last_error_is_told(
    run: Run, world: World, grouped: Grouped
) -> None:
    grouped.fetches += [LOADING] * 1_000

    async def main() -> None:
        async with world.client() as client:
            with pytest.raises(RequestTimeout, match="still loading"):
                await fetch_committed(Coordinator(client, "g"), {ORDERS: ID}, timeout=0.05)

    run(main)


def test_outage_is_waited_through(run: Run, world: World, grouped: Grouped) -> None:
    async def main() -> None:
        async with world.client() as client:
            coordinator = Coordinator(client, "g")
            await fetch_committed(coordinator, {ORDERS: ID}, timeout=1.0)
            grouped.refusing = ConnectionRefusedError(111, "refused")
            grouped.disconnect()
            dialled = grouped.dialled
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    partial(fetch_committed, coordinator, {ORDERS: ID}, timeout=math.inf)
                )
                await until(lambda: grouped.dialled > dialled)
                grouped.refusing = None

    run(main)


def test_what_does_not_pass_is_raised_at_once(run: Run, world: World, grouped: Grouped) -> None:
    grouped.finds.append(texts.invalid_id("group", "a\nb"))

    async def main() -> None:
        async with world.client() as client:
            with pytest.raises(InvalidName):
                await Coordinator(client, "a\nb").address(timeout=math.inf)
        assert grouped.asked == ["find"]

    run(main)
