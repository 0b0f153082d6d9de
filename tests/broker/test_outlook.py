"""Forecasts of loss by size and for want of room, held against a broker that drops records."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tailrace.broker.server import Server
from tests.broker.harness import Client, Settings, run
from tests.broker.members import commit, committing
from tests.broker.watching import first, watched
from tests.hand_clock import HandClock

BATCH = [bytes(120_000)]


async def seconds(
    server: Server, client: Client, clock: HandClock, topic: bytes, count: int
) -> None:
    """One batch of 120 kB each second."""
    for _ in range(count):
        await client.produce(topic, BATCH)
        clock.move(1.0)
        await server.clean()
        await server.look_at_groups()


async def lost_after(
    server: Server, client: Client, clock: HandClock, topic: bytes, at_most: int
) -> int:
    """How many seconds until the log starts behind the group."""
    for number in range(at_most):
        one = await first(client)
        if one.committed is not None and one.log_start > one.committed:
            return number
        await seconds(server, client, clock, topic, 1)
    raise AssertionError(f"nothing was lost within {at_most} s")


def forecast(
    tmp_path: Path,
    settings: Settings,
    check: Callable[[Server, Client, HandClock, bytes], Awaitable[None]],
    **config: str,
) -> None:
    async def main() -> None:
        async with watched(tmp_path, settings) as (server, client, clock):
            topic = await client.create("orders", 1, **config)
            await commit(client, "g", committing(topic, 0, 0))
            await check(server, client, clock, topic)

    run(main)


def test_loss_by_size_is_foreseen_to_a_segment(tmp_path: Path) -> None:
    async def check(server: Server, client: Client, clock: HandClock, topic: bytes) -> None:
        await seconds(server, client, clock, topic, 15)
        margin_ms = (await first(client)).margin_ms
        assert margin_ms is not None
        took = await lost_after(server, client, clock, topic, 60)
        assert took == pytest.approx(margin_ms / 1_000, abs=9)  # a segment takes 8 s

    forecast(tmp_path, {}, check, retention_size="4MiB", retention="forever")


def test_loss_for_want_of_room_is_foreseen_to_a_segment(tmp_path: Path) -> None:
    settings: Settings = {"storage.max_size": "8MiB"}

    async def check(server: Server, client: Client, clock: HandClock, topic: bytes) -> None:
        await seconds(server, client, clock, topic, 15)
        margin_ms = (await first(client)).margin_ms
        assert margin_ms is not None
        took = await lost_after(server, client, clock, topic, 100)
        assert took == pytest.approx(margin_ms / 1_000, abs=10)

    forecast(tmp_path, settings, check, on_full="drop_oldest")


def test_topic_that_refuses_producers_loses_nothing_for_want_of_room(tmp_path: Path) -> None:
    async def check(server: Server, client: Client, clock: HandClock, topic: bytes) -> None:
        await seconds(server, client, clock, topic, 8)
        assert (await first(client)).margin_ms is None

    forecast(tmp_path, {"storage.max_size": "8MiB"}, check, retention="forever")


def test_compacted_topic_loses_nothing(tmp_path: Path) -> None:
    async def check(server: Server, client: Client, clock: HandClock, topic: bytes) -> None:
        one = await first(client)
        assert one.margin_ms is None

    forecast(tmp_path, {}, check, cleanup="compact")
