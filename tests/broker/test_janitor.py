"""Retention: by append time, by size, whole sealed segments, and never by a clock that stepped."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailrace.broker.server import Server
from tailrace.broker.world import World
from tailrace.protocol.messages import ProduceResponse
from tailrace.storage.disk import OsDisk
from tests.broker.harness import (
    NOW_MS,
    Client,
    batch,
    connected,
    produce_request,
    run,
    serving,
)


class HandClock:
    """Both clocks move only when told to, the wall clock also alone."""

    def __init__(self) -> None:
        self.seconds = 1_000.0
        self.step_ms = 0

    def now(self) -> float:
        return self.seconds

    def wall_ms(self) -> int:
        return NOW_MS + int(self.seconds * 1000) + self.step_ms


async def fill(client: Client, **settings: str) -> bytes:
    """A topic of 12 batches of 250 KB, in segments of four."""
    topic_id = await client.create("orders", 1, **settings)
    for _ in range(12):
        assert (await client.produce(topic_id, [bytes(250_000)])).error is None
    return topic_id


async def log_start(client: Client, topic_id: bytes) -> int:
    return (await client.fetch(topic_id, offset=12))[0].results[0].log_start


async def until(server: Server, done: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not done():
            server.clean_now()
            await trio.sleep(0.001)


def deleted_bytes(server: Server) -> float:
    return server.metrics.retention_deleted_bytes.of("orders").value


def test_expired_segments_go_whole_and_the_active_one_after_its_age(tmp_path: Path) -> None:
    clock = HandClock()

    async def main() -> None:
        async with (
            serving(tmp_path, change=with_clock(clock)) as (server, ready),
            connected(ready) as client,
        ):
            topic_id = await fill(client, retention="1h", segment_age="10m")
            clock.seconds += 59 * 60
            await settle(server)
            assert await log_start(client, topic_id) == 0
            clock.seconds += 2 * 60
            await until(server, lambda: deleted_bytes(server) > 2_900_000)
            assert await log_start(client, topic_id) == 12
            assert (await client.produce(topic_id, [b"a"])).base_offset == 12
            refused, _ = await client.fetch(topic_id, offset=3)
            error = refused.results[0].error
            assert error is not None
            assert (error.code, error.details["start"]) == (41, 12)

    run(main)


def test_a_log_larger_than_its_size_loses_its_oldest_segments(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await fill(client, retention_size="1MiB")
            await until(server, lambda: deleted_bytes(server) > 0)
            # Segments of an eighth of that hold one batch each; five of them are a MiB.
            assert await log_start(client, topic_id) == 7

    run(main)


@pytest.mark.parametrize("step_days", [30, -30])
def test_a_step_of_the_wall_clock_expires_nothing(tmp_path: Path, step_days: int) -> None:
    clock = HandClock()

    async def main() -> None:
        async with (
            serving(tmp_path, change=with_clock(clock)) as (server, ready),
            connected(ready) as client,
        ):
            topic_id = await fill(client, retention="1h", segment_age="10m")
            clock.step_ms = step_days * 86_400_000
            await settle(server)
            assert await log_start(client, topic_id) == 0

    run(main)


def test_segments_stamped_ahead_of_now_age_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()

    async def main() -> None:
        clock.step_ms = 30 * 86_400_000
        async with (
            serving(tmp_path, change=with_clock(clock)) as (_, ready),
            connected(ready) as client,
        ):
            topic_id = await fill(client, retention="1h", segment_age="10m")
        clock.step_ms = 0  # somebody mended it
        async with (
            serving(tmp_path, change=with_clock(clock)) as (server, ready),
            connected(ready) as client,
        ):
            await settle(server)
            assert await log_start(client, topic_id) == 0
            clock.seconds += 61 * 60
            await until(server, lambda: deleted_bytes(server) > 0)

    run(main)
    assert "T110" in caplog.text


async def settle(server: Server) -> None:
    """Let retention look several times."""
    for _ in range(5):
        server.clean_now()
        await trio.sleep(0.001)


def with_clock(clock: HandClock) -> Callable[[World], World]:
    return lambda world: replace(world, clock=clock)


def test_producers_that_are_silent_for_a_day_are_forgotten_while_the_broker_runs(
    tmp_path: Path,
) -> None:
    clock = HandClock()

    async def main() -> None:
        async with (
            serving(tmp_path, change=with_clock(clock)) as (server, ready),
            connected(ready) as client,
        ):
            topic_id = await client.create("orders")

            async def send(sequence: int) -> int:
                """The error's code, or 0."""
                entry = batch(
                    topic_id, [b"a"], producer_id=5, producer_epoch=0, base_sequence=sequence
                )
                request = produce_request(topic_id, [entry])
                answer, _ = await client.ask(request, ProduceResponse, entry)
                error = answer.results[0].error
                return error.code if error is not None else 0

            assert await send(0) == 0
            clock.seconds += 23 * 3_600
            await settle(server)
            assert await send(1) == 0
            clock.seconds += 25 * 3_600
            await settle(server)
            assert await send(2) == 39

    run(main)


class FillingDisk(OsDisk):
    """A file system of 100 MiB with so much free, and the ballast's room once that is removed."""

    def __init__(self, tmp_path: Path) -> None:
        self.ballast = tmp_path / "data" / "ballast"
        self.free_bytes = 50 << 20

    def usage(self, path: str) -> tuple[int, int]:
        return self.free_bytes + (0 if self.ballast.exists() else 1 << 20), 100 << 20


def test_a_full_disk_gets_the_ballast_and_gives_it_back_before_producers_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.broker.roomkeeper.LOOK_EVERY_S", 0.005)
    disk = FillingDisk(tmp_path)

    async def becomes(server: Server, state: str, *, held: bool) -> None:
        with trio.fail_after(5):
            while (server.state, disk.ballast.exists()) != (state, held):
                await trio.lowlevel.checkpoint()

    async def main() -> None:
        async with serving(
            tmp_path, {"storage.min_free": "1MiB"}, lambda world: replace(world, disk=disk)
        ) as (server, _):
            await becomes(server, "running", held=True)
            disk.free_bytes = 0
            await becomes(server, "read_only", held=False)
            disk.free_bytes = 1 << 20  # with the ballast's room that is min_free and 1%
            await trio.sleep(0.02)
            assert server.state == "read_only"
            disk.free_bytes = 3 << 20
            await becomes(server, "running", held=True)
            disk.free_bytes = 0
            await becomes(server, "read_only", held=False)

    run(main)
    disk.ballast.write_bytes(bytes(1 << 20))

    async def start() -> None:
        async with serving(
            tmp_path, {"storage.min_free": "2MiB"}, lambda world: replace(world, disk=disk)
        ) as (server, _):
            await becomes(server, "read_only", held=False)  # there was room to start

    run(start)
