"""Every test of the client runs under asyncio and under trio, on a network in memory."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import anyio
import pytest

from tailrace.client import retry
from tailrace.client.client import Client
from tailrace.client.options import resolve
from tests.client.fake_broker import FakeBroker, FakeNet

LIMIT_S = 5.0
Run = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(backend: str) -> Run:
    """Run an async function to its end; a test that hangs fails instead."""

    def runner(main: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            with anyio.fail_after(LIMIT_S):
                await main()

        anyio.run(limited, backend=backend)

    return runner


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off in milliseconds: its lengths have a test of their own."""
    monkeypatch.setattr(retry, "FIRST_MAX_S", 0.002)
    monkeypatch.setattr(retry, "LIMIT_S", 0.01)


class World:
    """One broker (more can be added) and clients for it."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.net = FakeNet(self.broker)

    def client(self, url: str = "tailrace://broker:7400", **options: Any) -> Client:
        given: dict[str, Any] = {
            "client_id": "test",
            "tls": None,
            "connect_timeout": 1.0,
            "request_timeout": 1.0,
            "max_outage": None,
            "close_timeout": 1.0,
        }
        return Client(resolve(url, **given | options), net=self.net, random=Random(1))


@pytest.fixture
def world() -> World:
    return World()
