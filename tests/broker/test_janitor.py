"""Retention: by append time, by size, whole sealed segments, and never by a clock that stepped."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailrace.broker.server import Server
from tailrace.broker.world import World
from tailrace.protocol.errors import BrokerError
from tailrace.protocol.messages import (
    AlterTopicRequest,
    ConfigChange,
    ProduceResponse,
    TopicResponse,
)
from tailrace.storage.disk import File, OsDisk, OsFile
from tests.broker.harness import (
    Client,
    batch,
    connected,
    produce_request,
    run,
    serving,
)
from tests.hand_clock import HandClock


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


SECONDS_MAX = 20.0  # of a machine that is busy; the next look would be later


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
            await until(server, lambda: deleted_bytes(server) > 1_700_000)
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


@pytest.mark.parametrize("step_days", [30, -30])
def test_a_clock_that_is_wrong_after_a_restart_expires_nothing(
    tmp_path: Path, step_days: int
) -> None:
    clock = HandClock()

    async def main() -> None:
        settings = {"retention": "10d", "segment_age": "1h"}
        change = with_clock(clock)
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            topic_id = await fill(client, **settings)
        clock.step_ms = step_days * 86_400_000
        clock.seconds = 5.0  # the machine was off, and its monotonic clock begins anew
        async with serving(tmp_path, change=change) as (server, ready), connected(ready) as client:
            clock.seconds += 23 * 3_600
            await settle(server)
            assert await log_start(client, topic_id) == 0
            clock.step_ms = 0  # somebody mended it in time
            clock.seconds += 5 * 86_400
            await settle(server)
            assert await log_start(client, topic_id) == 0
            clock.seconds += 6 * 86_400
            await until(server, lambda: deleted_bytes(server) > 2_900_000)

    run(main)


def test_time_without_a_broker_counts_after_a_day(tmp_path: Path) -> None:
    clock = HandClock()

    async def main() -> None:
        change = with_clock(clock)
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            topic_id = await fill(client, retention="10d", segment_age="1h")
        clock.seconds += 30 * 86_400
        async with serving(tmp_path, change=change) as (server, ready), connected(ready) as client:
            await settle(server)
            assert await log_start(client, topic_id) == 0
            clock.seconds += 25 * 3_600
            await until(server, lambda: deleted_bytes(server) > 2_900_000)

    run(main)


def test_a_retention_that_is_shortened_holds_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await fill(client)
            assert await log_start(client, topic_id) == 0
            await alter(client, retention_size="1MiB")
            with trio.fail_after(SECONDS_MAX):
                while not deleted_bytes(server):
                    await trio.lowlevel.checkpoint()
            assert await log_start(client, topic_id) == 4  # these have four to a segment still

    run(main)


def test_retention_by_size_does_not_wait_for_the_next_look(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, ready), connected(ready) as client:
            topic_id = await fill(client, retention_size="1MiB")
            with trio.fail_after(SECONDS_MAX):
                while deleted_bytes(server) < 1_500_000:
                    await trio.lowlevel.checkpoint()
            # 6, if retention closed the last but one before the last was written: one too many
            # stays until the next is closed.
            assert await log_start(client, topic_id) in (6, 7)

    run(main)


def test_event_times_ahead_are_refused_by_the_topics_own_limit(tmp_path: Path) -> None:
    clock = HandClock()

    async def main() -> None:
        async with (
            serving(tmp_path, change=with_clock(clock)) as (_, ready),
            connected(ready) as client,
        ):
            topic_id = await client.create("orders", timestamp_ahead_max="10s")

            async def send(ahead_s: int) -> int:
                """The error's code, or 0."""
                entry = batch(topic_id, [b"a"], timestamp=clock.wall_ms() + ahead_s * 1000)
                request = produce_request(topic_id, [entry])
                answer, _ = await client.ask(request, ProduceResponse, entry)
                error = answer.results[0].error
                return error.code if error is not None else 0

            assert (await send(10), await send(11)) == (0, 22)
            await alter(client, timestamp_ahead_max="2h")
            assert (await send(7_000), await send(7_300)) == (0, 22)

    run(main)


class BadDisk(OsDisk):
    """Cannot write log starts: there is no room for them, or their sync fails."""

    error: int | None = None
    at_sync = False

    def open(self, path: str, *, create: bool = False) -> OsFile:
        if create and not self.at_sync:
            self._fail(path)
        return super().open(path, create=create)

    def sync(self, files: Sequence[File]) -> None:
        if self.at_sync:
            for file in files:
                self._fail(file.path)
        super().sync(files)

    def _fail(self, path: str) -> None:
        if self.error is not None and path.endswith("start.tmp"):
            raise OSError(self.error, "planted", path)


def test_a_log_start_that_cannot_be_written_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = BadDisk()

    async def main() -> None:
        async with (
            serving(tmp_path, change=lambda world: replace(world, disk=disk)) as (server, ready),
            connected(ready) as client,
        ):
            topic_id = await fill(client)
            disk.error = errno.ENOSPC
            await alter(client, retention_size="1MiB")
            await until(server, lambda: "retention of orders[0] failed" in caplog.text)
            assert await log_start(client, topic_id) == 0
            assert (await client.produce(topic_id, [b"a"])).error is None
            disk.error = None
            await until(server, lambda: deleted_bytes(server) > 0)

    run(main)


def test_a_log_start_whose_sync_failed_ends_the_broker(tmp_path: Path) -> None:
    disk = BadDisk()

    async def meet() -> None:
        async with (
            serving(tmp_path, change=lambda world: replace(world, disk=disk)) as (_, ready),
            connected(ready) as client,
        ):
            await fill(client)
            disk.error, disk.at_sync = errno.EIO, True
            await alter(client, retention_size="1MiB")
            await trio.sleep_forever()

    async def main() -> None:
        with pytest.raises(BaseExceptionGroup) as raised:
            await meet()
        assert raised.group_contains(BrokerError, match="T093")
        assert (tmp_path / "data" / "suspect").exists()

    run(main)


async def alter(client: Client, **settings: str) -> None:
    changes = tuple(ConfigChange(key, value) for key, value in settings.items())
    await client.ask(AlterTopicRequest("orders", changes), TopicResponse)
