"""A topic's directory that cannot be removed: somebody is told, and nobody else has to wait."""

import errno
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tailrace.broker.world import World
from tailrace.protocol.errors import PartitionOffline
from tailrace.storage.disk import OsDisk
from tests.broker.harness import connected, run, serving
from tests.broker.test_topics import create

LEFT = r"orders\[0\] is no longer kept here, but files of it could not be removed for good yet"


class Stuck(OsDisk):
    failing = 0  # so many directories cannot be removed

    def remove_directory(self, path: str) -> None:
        if self.failing:
            self.failing -= 1
            raise OSError(errno.EIO, "planted")
        super().remove_directory(path)


def test_a_topic_that_cannot_be_removed_is_told_so_and_goes_with_the_next_try(
    tmp_path: Path,
) -> None:
    disk = Stuck()

    async def main() -> None:
        async with (
            serving(tmp_path, change=lambda world: replace(world, disk=disk)) as (_, ready),
            connected(ready) as client,
        ):
            await create(client, "orders", partitions=2)
            disk.failing = sys.maxsize
            with pytest.raises(PartitionOffline, match=LEFT):
                await client.delete("orders")
            disk.failing = 0
            await create(client, "orders")
            assert len(list((tmp_path / "data" / "topics").iterdir())) == 1

    run(main)


class Full(OsDisk):
    full = False  # no room to sync the names of partitions
    synced = 0  # of such syncs, that went well

    def sync_directory(self, path: str) -> None:
        if path.endswith("/topics"):
            if self.full:
                raise OSError(errno.ENOSPC, "planted")
            self.synced += 1
        super().sync_directory(path)


def test_without_room_to_make_a_removal_durable_it_is_told_and_done_with_the_next_try(
    tmp_path: Path,
) -> None:
    disk = Full()

    async def main() -> None:
        async with (
            serving(tmp_path, change=lambda world: replace(world, disk=disk)) as (_, ready),
            connected(ready) as client,
        ):
            await create(client, "orders", partitions=2)
            others = (await create(client, "others")).topic_id
            disk.full = True
            with pytest.raises(
                PartitionOffline, match=r"could not be removed for good yet: .*planted"
            ):
                await client.delete("orders")
            assert (await client.produce(others, [b"a"])).error is None
            disk.full, before = False, disk.synced
            await create(client, "more")
            assert disk.synced > before, "what was removed stays so now"
            assert len(list((tmp_path / "data" / "topics").iterdir())) == 2

    run(main)


def test_a_start_is_not_kept_up_by_a_topic_that_cannot_be_removed(tmp_path: Path) -> None:
    disk = Stuck()

    def change(world: World) -> World:
        return replace(world, disk=disk)

    async def main() -> None:
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            await create(client, "orders")
            others = (await create(client, "others")).topic_id
            disk.failing = sys.maxsize
            with pytest.raises(PartitionOffline, match=LEFT):
                await client.delete("orders")
        async with serving(tmp_path, change=change) as (_, ready), connected(ready) as client:
            assert [one.name for one in (await client.metadata()).topics] == ["others"]
            assert (await client.produce(others, [b"a"])).error is None
            assert len(list((tmp_path / "data" / "topics").iterdir())) == 2
            disk.failing = 0
            await create(client, "orders")
            assert len(list((tmp_path / "data" / "topics").iterdir())) == 2

    run(main)
