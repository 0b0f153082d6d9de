"""Fixtures of the client's tests: both event loops, and two kinds of broker.

``broker`` is the real one, shared by a file; ``world`` is a network of brokers that fail on
command (``fake_broker.py``), where pauses between attempts take milliseconds.
"""

from collections.abc import Awaitable, Callable, Iterator

import anyio
import pytest

from tailrace.client import retry
from tailrace.testing import Broker
from tests.client.world import LIMIT_S, Run, World


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    """Which event loop the body runs on."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def broker() -> Iterator[Broker]:
    """A real broker; tests that break it make one of their own."""
    with Broker() as running:
        yield running


@pytest.fixture(scope="module")
def shop(broker: Broker) -> Broker:
    """A real broker with topics for groups: "orders" of 4 partitions, "bills" of 1."""
    broker.create_topic("orders", 4)
    broker.create_topic("bills", 1)
    return broker


@pytest.fixture
def group(request: pytest.FixtureRequest) -> str:
    """The name of a group that no other test uses."""
    name: str = request.node.name
    return name


@pytest.fixture(params=["thread", "task"])
def heartbeat(request: pytest.FixtureRequest) -> str:
    """What keeps members alive."""
    name: str = request.param
    return name


@pytest.fixture
def run(backend: str) -> Run:
    """Run an async function to its end; a test that hangs fails instead."""

    def runner(main: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            with anyio.fail_after(LIMIT_S):
                await main()

        anyio.run(limited, backend=backend)

    return runner


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(retry, "FIRST_MAX_S", 0.002)  # their length has a test of its own
    monkeypatch.setattr(retry, "LIMIT_S", 0.01)
    return World()
