"""Who may use a producer: only code that runs in the event loop it was opened in."""

import asyncio

import pytest

from tailrace.client.producer import Producer
from tailrace.protocol.errors import UsageError
from tests.client.world import World


def test_another_event_loop_is_refused(world: World) -> None:
    world.broker.create("orders")
    producers: list[Producer[bytes, bytes]] = []

    async def hold(opened: asyncio.Event, over: asyncio.Event) -> None:
        async with world.client() as client, client.producer() as producer:
            await producer.send("orders", b"0")
            producers.append(producer)
            opened.set()
            await over.wait()

    async def use() -> None:
        with pytest.raises(UsageError, match=r"T054.*another event loop"):
            producers[0].enqueue_nowait("orders", b"x")
        with pytest.raises(UsageError, match=r"T054.*another event loop"):
            await producers[0].send("orders", b"x")

    own, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    opened, over = asyncio.Event(), asyncio.Event()
    holding = own.create_task(hold(opened, over))
    own.run_until_complete(opened.wait())  # and stands still, with all that is open in it
    other.run_until_complete(use())
    over.set()
    own.run_until_complete(holding)
    own.close()
    other.close()
