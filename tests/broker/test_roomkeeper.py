"""Room on the disk: who loses records for it, who is refused, and what works all the same."""

import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from tailrace.broker.catalog import Leadership
from tailrace.broker.partition import Partition
from tailrace.broker.server import Server
from tailrace.broker.world import World
from tailrace.protocol.messages import (
    AlterTopicRequest,
    ConfigChange,
    ProduceResult,
    TopicResponse,
)
from tailrace.storage.disk import OsDisk, OsFile
from tests.broker.harness import Client, Settings, connected, run, serving

MIB = 1 << 20
SMALL: Settings = {"storage.max_size": "8MiB"}  # of segments of a MiB, four batches each


async def fill(client: Client, topic_id: bytes, batches: int) -> None:
    for number in range(batches):
        assert (await client.produce(topic_id, [bytes(250_000)])).error is None, number


async def bounds(client: Client, topic_id: bytes) -> tuple[int, int]:
    """Log start and end."""
    error = (await client.fetch(topic_id, offset=1 << 40))[0].results[0].error
    assert error is not None
    start, end = error.details["start"], error.details["end"]
    assert isinstance(start, int)
    assert isinstance(end, int)
    return start, end


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(20):
        while not await done():
            await trio.lowlevel.checkpoint()


def refused(result: ProduceResult) -> bool:
    if result.error is None:
        return False
    assert result.error.code == 31
    return True


def test_the_ring_takes_all_that_comes_and_keeps_the_newest(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, SMALL) as (server, ready), connected(ready) as client:
            topic_id, start = await client.create("ring", on_full="drop_oldest"), 0

            async def within() -> bool:
                start, end = await bounds(client, topic_id)
                return (end - start) * 250_000 <= 8 * MIB

            for _ in range(10):
                await fill(client, topic_id, 8)
                start, end = await bounds(client, topic_id)
                assert (await client.fetch(topic_id, offset=end - 1))[0].results[0].error is None
                assert (end - start) * 250_000 <= 9 * MIB  # the reserve is for while segments go
                await until(within)
                start, end = await bounds(client, topic_id)
            assert start > 40
            assert server.state == "running"
            behind = (await client.fetch(topic_id, offset=3))[0].results[0].error
            assert behind is not None
            assert (behind.code, behind.details["requested"]) == (41, 3)
            lost = behind.details["start"]
            assert isinstance(lost, int)
            assert lost >= start

    run(main)


def test_the_ring_goes_on_while_its_segments_are_rewritten_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partitions: list[Partition] = []
    unchanged = Partition.lead

    def lead(partition: Partition, leadership: Leadership) -> None:
        partitions.append(partition)
        unchanged(partition, leadership)

    monkeypatch.setattr(Partition, "lead", lead)

    async def rewrite(partition: Partition) -> None:
        while True:
            async with partition.maintenance:  # as an erasure has it, with no gap in between
                await trio.sleep(0.02)

    async def main() -> None:
        async with serving(tmp_path, SMALL) as (_, ready), connected(ready) as client:
            topic_id = await client.create("ring", on_full="drop_oldest")
            await fill(client, topic_id, 8)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rewrite, partitions[0])

                async def taken() -> bool:
                    return not refused(await client.produce(topic_id, [bytes(250_000)]))

                for _ in range(60):
                    await until(taken)  # refused at most for a moment
                nursery.cancel_scope.cancel()
            assert (await bounds(client, topic_id))[0] > 20

    run(main)


def test_the_oldest_over_all_topics_go_and_those_that_promised_keep_theirs(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, SMALL) as (_, ready), connected(ready) as client:
            kept = await client.create("kept")
            idle = await client.create("idle", on_full="drop_oldest")
            busy = await client.create("busy", on_full="drop_oldest")
            await fill(client, kept, 9)
            await fill(client, idle, 9)
            await fill(client, busy, 16)

            async def gone() -> bool:
                return (await bounds(client, idle))[0] > 0

            await until(gone)
            assert (await bounds(client, busy))[0] == 0

            async def taken() -> bool:
                return not refused(await client.produce(busy, [bytes(250_000)]))

            for _ in range(30):
                await until(taken)  # refused at most for a moment, if the machine is busy

            async def within() -> bool:  # while segments go, there is a reserve of a MiB
                return (await bounds(client, busy))[0] > 20

            await until(within)
            assert (await bounds(client, idle))[0] == 8  # all that was closed of it
            assert await bounds(client, kept) == (0, 9)

    run(main)


def test_without_anything_to_drop_both_are_refused_until_there_is_room(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, SMALL) as (server, ready), connected(ready) as client:
            kept = await client.create("kept")
            ring = await client.create("ring", on_full="drop_oldest")
            results = [await client.produce(kept, [bytes(250_000)]) for _ in range(40)]
            assert 30 <= sum(not refused(one) for one in results) <= 34
            error = results[-1].error
            assert error is not None
            assert "used, max_size 8 MiB" in error.message
            assert error.details["retry_after"] == 5
            assert server.state == "read_only"

            async def ring_refused() -> bool:
                return refused(await client.produce(ring, [b"a"]))

            await until(ring_refused)
            assert await bounds(client, kept) == (0, sum(not refused(one) for one in results))
            # Administration goes on, and what it changes holds at once.
            await client.create("third")
            changes = (ConfigChange("retention_size", "2MiB"),)
            await client.ask(AlterTopicRequest("kept", changes), TopicResponse)

            async def taken() -> bool:
                return not refused(await client.produce(kept, [b"a"]))

            await until(taken)
            assert (await bounds(client, kept))[0] > 0

    run(main)


def test_a_deleted_topic_gives_room_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, SMALL) as (_, ready), connected(ready) as client:
            old = await client.create("old")
            await fill(client, old, 30)
            new = await client.create("new")

            async def full() -> bool:
                return refused(await client.produce(new, [bytes(250_000)]))

            await until(full)
            await client.delete("old")

            async def taken() -> bool:
                return not await full()

            await until(taken)

    run(main)


class FullAtStart(OsDisk):
    """No file can be made for a partition while it is full."""

    full = False

    def open(self, path: str, *, create: bool = False) -> OsFile:
        if self.full and create and "/topics/" in path:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return super().open(path, create=create)


def test_a_partition_that_found_no_room_to_start_is_opened_when_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tailrace.broker.roomkeeper.LOOK_EVERY_S", 0.005)
    disk = FullAtStart()

    def change(world: World) -> World:
        return replace(world, disk=disk)

    async def main() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            topic_id = await client.create("orders")
            assert (await client.produce(topic_id, [b"a"])).error is None
        disk.full = True
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            assert refused(await client.produce(topic_id, [b"b"]))
            disk.full = False

            async def taken() -> bool:
                return not refused(await client.produce(topic_id, [b"b"]))

            await until(taken)
            assert await bounds(client, topic_id) == (0, 2)

    run(main)


class FillingDisk(OsDisk):
    """A file system of 100 MiB with so much free, and the ballast's room once that is removed."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__()
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
