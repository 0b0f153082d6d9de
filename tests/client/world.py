"""A network in memory with brokers that fail on command, and clients for them."""

from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import anyio

from tailrace.client.client import Client
from tailrace.client.options import resolve
from tests.client.fake_broker import FakeBroker, FakeNet

LIMIT_S = 5.0
Run = Callable[[Callable[[], Awaitable[None]]], None]


async def until(condition: Callable[[], bool]) -> None:
    """Let the client work until something is so."""
    while not condition():  # noqa: ASYNC110 what is waited for has no event
        await anyio.sleep(0.001)


class World:
    """One broker (more can be added) and clients for it."""

    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.net = FakeNet(self.broker)

    def client(self, url: str = "tailrace://broker:7400", **options: Any) -> Client:
        """Not connected yet; timeouts of a second unless given."""
        given: dict[str, Any] = {
            "client_id": "test",
            "tls": None,
            "connect_timeout": 1.0,
            "request_timeout": 1.0,
            "max_outage": None,
            "close_timeout": 1.0,
        }
        return Client(resolve(url, **given | options), net=self.net, random=Random(1))
